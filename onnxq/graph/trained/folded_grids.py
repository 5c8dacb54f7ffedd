"""Find the grids of weights whose fake quantization an exporter has computed.

tf2onnx folds what it can: a Keras model that was trained with fake quantization has Q and DQ around activations, and
float weights that lie on a grid, each channel of them multiplied by what of its BatchNormalization was folded.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.graph import walk
from onnxq.graph.reading.ops import Kind, channel_axis, row_of
from onnxq.graph.trained.given_grids import GivenGrid
from onnxq.graph.trained.lift import is_dequantized

_MOST = 127
"""Steps from zero to the largest weight of a channel, at most."""

_OFF = 1e-3
"""Steps by which a weight may lie beside its grid: folding in float32 leaves a hundredth of that."""

_LOOKED = 64
"""Elements of a channel that are tried first: where these lie on no grid, the others are not looked at."""

_LEAST = 16
"""Elements of a weight that say something: fewer may lie on a grid by chance."""


def on_grids(model: ir.Model) -> dict[str, tuple[Array, GivenGrid]]:
    """Integers and grid of each float weight that lies on one, by the initializer's name.

    Args:
        model: prepared, with its Q and DQ; not changed.

    Returns:
        Nothing where most layers behind a DequantizeLinear have weights that lie on no grid: they were meant to stay
        float.
    """
    found: dict[str, tuple[Array, GivenGrid]] = {}
    asked = 0
    for node in walk.all_nodes(model.graph):
        row = row_of(node)
        if row is None or row.kind is not Kind.WEIGHTED or row.weight is None:
            continue
        value = walk.input_at(node, row.weight)
        array = walk.const_array(value)
        if value is None or array is None or array.dtype != np.float32:
            continue
        asked += is_dequantized(node.inputs[0])
        axis = channel_axis(node, array.ndim)
        grid = None if axis is None else grid_under(array, axis)
        if grid is not None:
            found[value.name or ""] = grid
    return found if 2 * len(found) > asked else {}


def grid_under(weight: Array, axis: int) -> tuple[Array, GivenGrid] | None:
    """Integers and grid, without zero points, of a weight that lies on one; None where it lies on none.

    Args:
        weight: float32.
        axis: of the channels, of which each may have a scale of its own.
    """
    turned = np.moveaxis(weight, axis, 0)
    rows = turned.reshape(len(turned), -1).astype(np.float64)
    largest = abs(rows).max(axis=1, initial=0.0)
    if weight.size < _LEAST or not np.isfinite(largest).all() or not largest.any():
        return None
    steps = np.zeros(len(rows))
    missing = largest > 0
    some = rows[:, :: max(rows.shape[1] // _LOOKED, 1)]
    for count in range(1, _MOST + 1):
        which = np.flatnonzero(missing)
        if not which.size:
            break
        for looked in (some, rows):
            which = which[_are_whole(looked[which] * (count / largest[which])[:, None])]
        steps[which] = largest[which] / count
        missing[which] = False
    if missing.any():
        return None
    steps[steps == 0] = np.median(steps[steps > 0])
    integers = np.moveaxis(np.rint(rows / steps[:, None]).reshape(turned.shape), 0, axis).astype(np.int64)
    scale, zero = steps.astype(np.float32), np.zeros(len(steps), np.int64)
    return integers, GivenGrid(QType.INT8, scale, zero, axis, -_MOST, _MOST)


def _are_whole(rows: Array) -> Array:
    """Whether all elements of a row are integers, nearly."""
    return np.asarray((abs(rows - np.rint(rows)) < _OFF).all(axis=1))
