"""Find trained integers again in a model whose constants were folded since.

Folding BatchNormalization into a layer multiplies whole channels of its weight, and Gemm may have been turned. The
integers stay what they were, so that the scale of each channel is what the reals have over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, PerTensor, QParams, QTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.reading.matrices import matrices_of
from onnxq.graph.reading.ops import Kind, activation_positions, channel_axis, row_of
from onnxq.graph.trained.given_grids import GivenGrid
from onnxq.graph.types import Model, Node

_EXACT = 4e-6
"""Relative error up to which a real is a multiple of its scale: some roundings of float32."""


def find_again(
    model: Model, weights: Mapping[str, tuple[Array, GivenGrid]], activation: QType, weight: QType
) -> dict[tuple[str, int], QTensor]:
    """The trained constants of a model, by (node, input).

    Args:
        model: prepared, with floats in the place of its quantized constants; not changed.
        weights: integers and grid of each constant before, by its name.
        activation: type of operands on the target.
        weight: type of weights on the target.
    """
    known: dict[bytes, list[tuple[Array, Array]]] = {}
    for integers, grid in weights.values():
        moved = grid.shifted(weight)
        if moved is None or moved.zero_point.any():
            continue
        centred = integers - (grid.zero_point[0] if grid.zero_point.size else 0)
        for rows in _both_ways(centred):
            known.setdefault(_key(rows), []).append((rows, grid.scale))
    found: dict[tuple[str, int], QTensor] = {}
    for node in walk.all_nodes(model.graph):
        row = row_of(node)
        if row is None:
            continue
        if row.kind is Kind.WEIGHTED and row.weight is not None:
            tensor = _weight(node, known, weight)
            if tensor is not None:
                found[(node.name or "", row.weight)] = tensor
        elif row.kind is Kind.REQUANTIZING:
            for position in activation_positions(node, row):
                operand = _operand(node, position, weights, activation)
                if operand is not None:
                    found[(node.name or "", position)] = operand
    return found


def _both_ways(integers: Array) -> Iterator[Array]:
    """(channels, rest) of a weight, whichever of two axes holds its channels."""
    if integers.ndim < 2:
        return
    yield integers.reshape(len(integers), -1)
    if integers.ndim == 2:
        yield np.ascontiguousarray(integers.T)


def _key(rows: Array) -> bytes:
    """The signs of all elements, those of each row turned so that its first one counts as positive."""
    signs = np.sign(rows).astype(np.int8)
    first = np.take_along_axis(signs, np.argmax(signs != 0, axis=1)[:, None], axis=1)
    turned = signs * np.where(first == 0, 1, first)
    return repr(rows.shape).encode() + np.packbits(turned > 0).tobytes() + np.packbits(turned < 0).tobytes()


def _weight(node: Node, known: dict[bytes, list[tuple[Array, Array]]], dtype: QType) -> QTensor | None:
    array, how = walk.const_array(walk.input_at(node, 1)), matrices_of(node)
    if array is None or how is None or array.dtype != np.float32 or not np.isfinite(array).all():
        return None
    rows = how.split(array).reshape(how.groups * how.outputs, how.inputs)
    for integers, given in known.get(_key(rows), []):
        scale = _scales(rows.astype(np.float64), integers.astype(np.float64))
        if scale is None:
            continue
        values = integers * np.where(scale < 0, -1, 1)[:, None]
        if values.min(initial=0) < dtype.qmin or values.max(initial=0) > dtype.qmax:
            continue
        steps = np.broadcast_to(given, scale.shape) if given.size in (1, scale.size) else abs(scale)
        same = abs(abs(scale) - steps) <= _EXACT * steps  # up to a rounding of the division
        whole = how.join(values.reshape(how.split(array).shape), array.shape)
        return _tensor(node, whole, np.where(same, steps, abs(scale)), given.size == 1 and bool(same.all()), dtype)
    return None


def _scales(reals: Array, integers: Array) -> Array | None:
    """One number a row that the integers have to be multiplied with; None where there is none."""
    squares = np.einsum("ri,ri->r", integers, integers)
    scale: Array = np.einsum("ri,ri->r", reals, integers) / np.where(squares > 0, squares, 1.0)
    scale[squares == 0] = 0.0
    if (abs(reals - scale[:, None] * integers) > _EXACT * abs(scale[:, None]) * np.maximum(abs(integers), 1.0)).any():
        return None
    used = scale[scale != 0]
    scale[scale == 0] = np.median(abs(used)) if used.size else 1.0  # of a channel that is all zeros
    return scale


def _tensor(node: Node, values: Array, scale: Array, single: bool, dtype: QType) -> QTensor:
    axis = channel_axis(node, values.ndim)
    granularity = PerTensor() if single or axis is None else PerAxis(axis)
    shape = tuple(scale.size if index == axis and not single else 1 for index in range(values.ndim))
    narrow = bool(values.min(initial=0) > dtype.qmin)
    spec = TensorSpec(dtype, granularity, symmetric=True, narrow_range=narrow)
    steps = (scale[:1] if single else scale).astype(np.float32).reshape(shape)
    return QTensor(np.ascontiguousarray(values.astype(dtype.numpy)), QParams(spec, steps, np.zeros(shape, dtype.numpy)))


def _operand(node: Node, position: int, weights: Mapping[str, tuple[Array, GivenGrid]], dtype: QType) -> QTensor | None:
    """A constant operand of an element-wise node that still is what was unfolded."""
    value = node.inputs[position]
    array = walk.const_array(value)
    given = weights.get(value.name or "") if value is not None else None
    grid = given[1].shifted(dtype) if given is not None else None
    if array is None or given is None or grid is None or given[0].shape != array.shape or grid.axis is not None:
        return None
    integers = given[0] + (grid.zero_point - given[1].zero_point)
    params = grid.params(array.ndim)
    reals = (integers - grid.zero_point).astype(np.float32) * grid.scale
    if not np.array_equal(reals.astype(np.float32), array):
        return None
    return QTensor(integers.astype(dtype.numpy), params)
