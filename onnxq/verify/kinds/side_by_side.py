"""Outputs of two models for single samples, reduced to what can be drawn: pictures, boxes, scores, texts, curves."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.verify import loss
from onnxq.verify.kinds.boxes import boxes_of
from onnxq.verify.kinds.output_kinds import is_real, normalized_axis

PIXELS, BOXED = 96, 176
"""Longest side of a picture, and of one that boxes are drawn in; larger ones are thinned out."""

_LONG, _LONGEST = 3.0, 12.0
"""A picture this many times as long as wide, such as a line of text, may have the area of a square one."""

_CLASSES = 5
_POINTS = 240
_PAIRS = 200
_SYMBOLS = 60
_FEW = 12
"""Numbers that are shown as numbers rather than as points."""

_SMALLEST_IMAGE = 8
_IMAGE_CHANNELS = (1, 3, 4)

Pair = tuple[Array, Array]


def shown_sample(
    feed: Feed, outputs: Mapping[str, Pair], kinds: Mapping[str, str], first: int, *, most: int
) -> list[dict[str, Any]]:
    """What the items of one feed look like in both models.

    Args:
        feed: one sample, several items along axis 0 or one.
        outputs: what the float and the quantized model gave, by name.
        kinds: what each output holds (`onnxq.verify.loss.Judged`).
        first: number of the first item.
        most: items to show.

    Returns:
        One entry an item: ``sample``, ``input`` (a picture or a curve, or None), and ``outputs``: entries with
        ``output``, ``kind`` and ``form``, which says what else they hold.
    """
    items = max((array.shape[0] for array in feed.values() if array.ndim), default=1)
    rows = []
    for index in range(min(items, most)):
        given = {name: _item(array, index, items) for name, array in feed.items()}
        pairs = {
            name: (_item(pair[0], index, items), _item(pair[1], index, items))
            for name, pair in outputs.items()
            if kinds.get(name) != loss.STATE and pair[0].shape == pair[1].shape and pair[0].size
        }
        seen_by_eye = {name: array for name, array in given.items() if not _is_state(feed[name], outputs, kinds)}
        picture = _input_picture(seen_by_eye)
        drawn = boxes_of(pairs, kinds, None if picture is None else picture[1].shape[:2])
        left = {name: pair for name, pair in pairs.items() if not drawn or name not in drawn["names"]}
        shown = (
            [{"output": ", ".join(drawn["names"]), "kind": loss.DETECTION, "form": "boxes", **drawn}] if drawn else []
        )
        for name, pair in left.items():
            found = _shown(pair, kinds.get(name, loss.VALUES), given)
            if found is not None:
                shown.append({"output": name, "kind": kinds.get(name, loss.VALUES), **found})
        if picture is None:
            seen = _input_curve(seen_by_eye)
        else:
            seen = {"name": picture[0], "picture": _photo(picture[1], BOXED if drawn else PIXELS)}
        rows.append({"sample": first + index, "input": seen, "outputs": shown})
    return rows


def _is_state(array: Array, outputs: Mapping[str, Pair], kinds: Mapping[str, str]) -> bool:
    """Whether an input is what an output carries on: as that one's shape, but for one axis that grows."""
    states = (pair[0].shape for name, pair in outputs.items() if kinds.get(name) == loss.STATE)
    return any(
        len(shape) == array.ndim and sum(a != b for a, b in zip(shape, array.shape, strict=True)) <= 1
        for shape in states
    )


def _item(array: Array, index: int, items: int) -> Array:
    """One item of a batch, its axis kept; the whole array where it is not laid out by items."""
    return array[index : index + 1] if array.ndim and items > 1 and array.shape[0] == items else array


def _shown(pair: Pair, kind: str, feed: Feed) -> dict[str, Any] | None:
    expected, got = pair
    if not is_real(expected):
        return _strings(expected, got)
    expected, got = (np.nan_to_num(np.asarray(array, np.float32), posinf=0.0, neginf=0.0) for array in pair)
    if kind in (loss.CLASSES, loss.POSITIONS, loss.TEXT) and expected.ndim > 1:
        return _decisions(expected, got, kind, feed)
    if expected.size == 1:
        return {"form": "numbers", "float": _numbers(expected), "quantized": _numbers(got)}
    if kind == loss.PROBABILITIES and expected.ndim != 4:
        return _scores(expected, got) if expected.size <= 4096 and expected.ndim <= 2 else _scatter(expected, got)
    if expected.ndim == 4 and min(expected.shape[2:]) >= _SMALLEST_IMAGE and expected.shape[1] <= 4:
        return _pictures(expected, got)
    if kind == loss.SIGNAL or (expected.ndim >= 2 and expected.size == expected.shape[-1] >= 4 * _FEW):
        return _curves(expected, got)
    if expected.size <= _FEW:
        return {"form": "numbers", "float": _numbers(expected), "quantized": _numbers(got)}
    return _scatter(expected, got)


def _decisions(expected: Array, got: Array, kind: str, feed: Feed) -> dict[str, Any]:
    """Scores of classes: of the item, or of each position."""
    axis = normalized_axis(expected)
    if axis is None:
        axis = 1 if expected.ndim in (2, 4) else expected.ndim - 1
    left, right = (np.moveaxis(array, axis, -1) for array in (expected, got))
    if left.size == left.shape[-1]:
        return _scores(*(_as_probabilities(array.reshape(-1)) for array in (left, right)))
    best, other = left.argmax(axis=-1), right.argmax(axis=-1)
    if best.ndim == 3 and min(best.shape[1:]) >= _SMALLEST_IMAGE:
        return {
            "form": "classes",
            "float": _indices(best[0]),
            "quantized": _indices(other[0]),
            "differs": float(np.mean(best != other)),
            "count": int(left.shape[-1]),
        }
    best, other = best.reshape(-1), other.reshape(-1)
    blank = None
    if kind == loss.TEXT:
        blank = max((0, left.shape[-1] - 1), key=lambda symbol: int(np.count_nonzero(best == symbol)))
    return {
        "form": "symbols",
        "float": _symbols(best, blank),
        "quantized": _symbols(other, blank),
        "differs": float(np.mean(best != other)),
    }


def _symbols(best: Array, blank: int | None) -> list[int]:
    """The symbols of a sequence; where there is a blank, runs are one symbol and blanks none (CTC)."""
    if blank is not None:
        best = best[np.r_[True, best[1:] != best[:-1]]]
        best = best[best != blank]
    return [int(symbol) for symbol in best[:_SYMBOLS]]


def _as_probabilities(scores: Array) -> Array:
    """Scores of classes as they are where they sum to 1, else their softmax."""
    if float(scores.min()) >= 0.0 and abs(float(scores.sum()) - 1.0) < 1e-2:
        return scores
    shifted = np.exp((scores - scores.max()).astype(np.float64))
    return np.asarray(shifted / shifted.sum())


def _scores(expected: Array, got: Array) -> dict[str, Any]:
    """The largest scores of both models, by class."""
    left, right = expected.reshape(-1), got.reshape(-1)
    count = min(_CLASSES, left.size)
    chosen = sorted({*np.argsort(-left)[:count].tolist(), int(right.argmax())}, key=lambda index: -left[index])
    return {
        "form": "scores",
        "rows": [[int(index), float(left[index]), float(right[index])] for index in chosen],
        "same": bool(left.argmax() == right.argmax()),
    }


def _pictures(expected: Array, got: Array) -> dict[str, Any]:
    """Images of one scale, and how far apart they are."""
    low, high = float(expected.min()), float(expected.max())
    left, right = (np.moveaxis(array[0][: 1 if array.shape[1] == 2 else 3], 0, -1) for array in (expected, got))
    apart = np.abs(left - right).max(axis=-1, keepdims=True)
    return {
        "form": "pictures",
        "float": picture_of(left, low, high),
        "quantized": picture_of(right, low, high),
        "difference": picture_of(apart, 0.0, max(float(apart.max()), 1e-12)),
        "largest": float(apart.max()),
    }


def _curves(expected: Array, got: Array) -> dict[str, Any]:
    left, right = expected.reshape(-1), got.reshape(-1)
    step = -(-left.size // _POINTS)
    return {"form": "curves", "float": _numbers(left[::step]), "quantized": _numbers(right[::step]), "step": step}


def _scatter(expected: Array, got: Array) -> dict[str, Any]:
    left, right = expected.reshape(-1), got.reshape(-1)
    step = -(-left.size // _PAIRS)
    step += 1 - step % 2  # odd, so that no axis of even length is skipped over
    return {"form": "points", "float": _numbers(left[::step]), "quantized": _numbers(right[::step])}


def _strings(expected: Array, got: Array) -> dict[str, Any]:
    left, right = expected.reshape(-1), got.reshape(-1)
    return {
        "form": "strings",
        "float": [str(entry) for entry in left[:_FEW].tolist()],
        "quantized": [str(entry) for entry in right[:_FEW].tolist()],
        "differs": float(np.mean(left != right)),
    }


def _numbers(array: Array) -> list[float]:
    return [float(f"{number:.4g}") for number in array.reshape(-1)]


def _indices(classes: Array) -> dict[str, Any]:
    """A map of class numbers, (height, width), thinned out."""
    small = _thinned(classes[..., None])[..., 0]
    return _packed((small % 256).astype(np.uint8)[..., None])


def _photo(image: Array, pixels: int) -> dict[str, Any]:
    return picture_of(image, float(image.min()), float(image.max()), pixels)


def picture_of(image: Array, low: float, high: float, pixels: int = PIXELS) -> dict[str, Any]:
    """An image, (height, width, channels), as bytes between two ends of a scale, thinned out."""
    small = _thinned(image, pixels).astype(np.float32)
    return _packed(np.clip((small - low) / max(high - low, 1e-12) * 255.0, 0, 255).round().astype(np.uint8))


def _thinned(image: Array, pixels: int = PIXELS) -> Array:
    height, width = image.shape[:2]
    aspect = max(height / width, width / height)
    longest = pixels * math.sqrt(min(aspect, _LONGEST)) if aspect > _LONG else pixels
    step = max(math.ceil(max(height, width) / longest), 1)
    return image[::step, ::step]


def _packed(pixels: Array) -> dict[str, Any]:
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()}


def _input_picture(feed: Feed) -> tuple[str, Array] | None:
    """The name and the contents, (height, width, 1 or 3), of the first input that is an image."""
    for name, array in feed.items():
        if array.ndim != 4 or array.dtype.kind not in "fu" or not array.size:
            continue
        image = array[0]
        if image.shape[0] in _IMAGE_CHANNELS and min(image.shape[1:]) >= _SMALLEST_IMAGE:
            image = np.moveaxis(image, 0, -1)
        elif not (image.shape[-1] in _IMAGE_CHANNELS and min(image.shape[:2]) >= _SMALLEST_IMAGE):
            continue
        return name, np.nan_to_num(image[..., : 1 if image.shape[-1] == 1 else 3].astype(np.float32))
    return None


def _input_curve(feed: Feed) -> dict[str, Any] | None:
    """The first input that is a long row of real numbers."""
    for name, array in feed.items():
        if is_real(array) and array.ndim and array.size == array.shape[-1] >= 4 * _FEW:
            flat = np.nan_to_num(array.reshape(-1).astype(np.float32))
            return {"name": name, "curve": _numbers(flat[:: -(-flat.size // _POINTS)])}
    return None
