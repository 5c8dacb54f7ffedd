"""Boxes that a detector gives beside scores, in whatever form, as shares of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.verify import loss
from onnxq.verify.kinds.output_kinds import ANCHORS

_SURE = 0.5
_MOST = 12
_OVERLAP = 0.45
"""Intersection over union from which the box with the smaller score is left out."""

_RIGHT = 0.95
"""Share of boxes that has to make sense in a form for it to be that form."""

Pair = tuple[Array, Array]


def boxes_of(
    pairs: Mapping[str, Pair], kinds: Mapping[str, str], size: tuple[int, int] | None
) -> dict[str, Any] | None:
    """The boxes of one item in both models; None where no outputs look like boxes with scores.

    Args:
        pairs: what both models gave, by output, one item along axis 0.
        kinds: what each output holds.
        size: (height, width) of the input picture; None where there is none.

    Returns:
        ``names`` of the outputs that were read, and ``float`` and ``quantized``: rows of left, top, right and bottom as
        shares of the picture, and the score; overlapping ones are left out.
    """
    if size is None:
        return None
    for name, pair in pairs.items():
        if kinds.get(name) == loss.DETECTION and pair[0].ndim == 3:
            return _settle([name], [_side_by_side(array) for array in pair], size)
        if pair[0].ndim != 3 or pair[0].shape[2] != 4 or pair[0].shape[1] < ANCHORS or pair[0].dtype.kind != "f":
            continue
        for other, scores in pairs.items():
            fits = scores[0].ndim == 3 and scores[0].shape[:2] == pair[0].shape[:2] and other != name
            if fits and kinds.get(other) in (loss.POSITIONS, loss.CLASSES, loss.PROBABILITIES):
                return _settle([other, name], [(pair[i][0], _best(scores[i][0], kinds[other])) for i in (0, 1)], size)
    return None


def _best(scores: Array, kind: str) -> Array:
    """The score of each position, background left out where there is one, (positions,)."""
    if kind == loss.PROBABILITIES or scores.shape[1] == 1:
        return np.asarray(scores.max(axis=1))
    background = 0 if scores.shape[1] == 2 else int(np.bincount(scores.argmax(axis=1)).argmax())
    return np.asarray(np.delete(scores, background, axis=1).max(axis=1))


def _side_by_side(output: Array) -> tuple[Array, Array]:
    """(positions, 4) coordinates and (positions,) scores of an output that holds both, coordinates first."""
    rows = output[0] if output.shape[2] < output.shape[1] else output[0].T
    return rows[:, :4], np.asarray(rows[:, 4:].max(axis=1) if rows.shape[1] > 4 else np.zeros(len(rows)))


def _settle(names: list[str], found: list[tuple[Array, Array]], size: tuple[int, int]) -> dict[str, Any] | None:
    """Corners as shares of the picture, in the form that the float model's boxes have."""
    boxes, scores = (np.nan_to_num(np.asarray(array, np.float64)) for array in found[0])
    sure = boxes[scores > _SURE] if (scores > _SURE).any() else boxes[np.argsort(-scores)[:1]]
    corners = np.mean((sure[:, 2] > sure[:, 0]) & (sure[:, 3] > sure[:, 1])) >= _RIGHT
    pixels = float(np.abs(sure).max()) > 4.0
    rows = [_chosen(np.nan_to_num(np.asarray(b, np.float64)), np.asarray(s), bool(corners)) for b, s in found]
    if pixels:
        scale = np.array([size[1], size[0], size[1], size[0], 1.0])
        rows = [row / scale for row in rows]
    if not all(np.isfinite(row).all() and np.abs(row).max(initial=0.0) < 8.0 for row in rows):
        return None
    return {
        "names": names,
        "float": np.clip(rows[0], 0.0, 1.0).round(4).tolist(),
        "quantized": np.clip(rows[1], 0.0, 1.0).round(4).tolist(),
        "ratio": size[1] / size[0],
    }


def _chosen(boxes: Array, scores: Array, corners: bool) -> Array:
    """(boxes, 5): the best that do not overlap, as corners and score."""
    if not corners:  # centre and size
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    kept: list[int] = []
    for index in np.argsort(-scores)[:200]:
        if scores[index] <= _SURE or len(kept) == _MOST:
            break
        if all(_overlap(boxes[index], boxes[other]) < _OVERLAP for other in kept):
            kept.append(int(index))
    return np.concatenate([boxes[kept], scores[kept, None]], axis=1) if kept else np.zeros((0, 5))


def _overlap(one: Array, other: Array) -> float:
    """Intersection over union of two boxes given as corners."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0.0)))
    whole = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return shared / whole if whole > 0 else 0.0
