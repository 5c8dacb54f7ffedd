"""What quantizing weights costs: bits and error of each layer whose activations stay float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.core.affine import dequantize
from onnxq.core.codebook import CodebookTensor, decode
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.core.in_order import each
from onnxq.core.mapped import forget, forget_tensor
from onnxq.core.spec import PerBlock, QParams, QTensor
from onnxq.graph import walk
from onnxq.graph.emit.packed_weights.packed import block_of
from onnxq.graph.emit.rewrite import Rewrite, WeightRewrite
from onnxq.graph.experts import holds_experts, stacks_of
from onnxq.graph.types import Node
from onnxq.plan.weights.tables import matrix_at
from onnxq.plan.weights.weight_only import BLOCKED, EXPERTS, matrix_of, weight_position

_SLAB = 1 << 18
"""Elements of a weight that are dequantized at a time: few enough to stay in the cache."""

_LARGE = 1 << 20
"""Elements of a weight beyond which its error is that of some of its rows: a hundredth of a dB is all that it costs."""

_TOGETHER = 64
"""Neighbouring rows that are taken of a large weight: of a transposed one they share the lines of the cache."""


@dataclass(frozen=True)
class LayerWeight:
    """The quantized weight of one layer.

    Attributes:
        node: the layer.
        form: what unfolds the weight: an operator, or "Cast, Mul" at load.
        algorithm: how it was rounded.
        elements: numbers in it.
        bits: bits an element takes, scales and zero points included.
        error_db: signal to quantization noise of the weight, in dB; None where the float weight is all zeros.
        shares: the layer whose quantized weight it shares; None where it has its own.
        output_db: signal to quantization noise of the layer's output over the calibration samples, for the input that
            the float model gives it, in dB; None where its input was not calibrated.
    """

    node: str
    form: str
    algorithm: str
    elements: int
    bits: float
    error_db: float | None
    shares: str | None = None
    output_db: float | None = None


def weight_report(
    nodes: Mapping[str, Node], rewrite: Rewrite, output_db: Mapping[str, float | None] | None = None
) -> list[LayerWeight]:
    """Bits and error of every weight that is packed or stored.

    Args:
        nodes: of the prepared model, not rewritten yet.
        rewrite: what becomes of them.
        output_db: signal to quantization noise of the outputs of layers whose input was calibrated.
    """
    outputs = output_db or {}
    found: list[LayerWeight] = []
    seen: dict[int, str] = {}
    for name, change in rewrite.weights.items():
        found += _codebook_rows(nodes[name], change, seen)
        if not change.constants:
            continue
        matrices = _matrices(nodes[name])
        for position, tensor in change.constants.items():
            matrix = matrices[position]
            first = seen.setdefault(id(tensor), name)
            bits = packed_bits(tensor, change, 8 * matrix.dtype.itemsize) / matrix.size
            error = weight_error_db(matrix, tensor)
            shares = first if first != name else None
            row = LayerWeight(name, change.form, change.algorithm, matrix.size, bits, error, shares, outputs.get(name))
            found.append(row)
            _forget(matrix, tensor)
    for name, constants in rewrite.storage.items():
        for position, tensor in constants.items():
            array = walk.const_array(nodes[name].inputs[position])
            assert array is not None
            first = seen.setdefault(id(tensor), name)
            bits = tensor.params.spec.dtype.bits + 32 * tensor.params.scale.size / array.size
            error = weight_error_db(array, tensor)
            shares = first if first != name else None
            found.append(LayerWeight(name, "Cast, Mul", "rtn", array.size, bits, error, shares))
            _forget(array, tensor)
    return found


def _matrices(node: Node) -> dict[int, Array]:
    """The float matrices of a node by input position."""
    if holds_experts(node):
        stacks = stacks_of(node)
        assert not isinstance(stacks, str)
        return stacks
    matrix = matrix_of(node)
    assert not isinstance(matrix, str)
    return {weight_position(node): matrix}


def _forget(array: Array, tensor: QTensor) -> None:
    forget(array)
    forget_tensor(tensor)


def _codebook_rows(node: Node, change: WeightRewrite, seen: dict[int, str]) -> list[LayerWeight]:
    rows, name = [], node.name or ""
    for position, tensor in change.codebooks.items():
        matrix = matrix_at(node, position)
        assert matrix is not None
        first = seen.setdefault(id(tensor), name)
        error = _error_db(np.asarray(matrix, np.float32), decode(tensor).reshape(matrix.shape))
        bits = codebook_bits(tensor) / matrix.size
        rows.append(
            LayerWeight(name, change.form, change.algorithm, matrix.size, bits, error, first if first != name else None)
        )
    return rows


def codebook_bits(tensor: CodebookTensor) -> int:
    """Bits of a weight stored as indices, with its scales (where there are any but ones) and tables of float32."""
    rows, width = tensor.indices.shape
    if isinstance(tensor.granularity, PerBlock):
        width = -(-width // tensor.granularity.size) * tensor.granularity.size
    scales = 0 if bool((tensor.scale == 1).all()) else int(tensor.scale.size)
    return int(rows * width) * tensor.bits + 32 * (scales + int(tensor.table.size))


def _error_db(real: Array, actual: Array) -> float | None:
    signal, noise = float(np.vdot(real, real)), float(np.vdot(real - actual, real - actual))
    if not signal or not math.isfinite(signal):
        return None
    return decibels(signal, noise)


def bits_per_weight(layers: Iterable[LayerWeight]) -> float | None:
    """Bits that a quantized weight takes on average, scales and zero points included; shared ones count once."""
    own = [layer for layer in layers if layer.shares is None]
    elements = sum(layer.elements for layer in own)
    return sum(layer.bits * layer.elements for layer in own) / elements if elements else None


def packed_bits(tensor: QTensor, change: WeightRewrite, scale_bits: int = 32) -> int:
    """Bits of a weight as its form stores it, with padding of uneven blocks."""
    spec, (rows, width) = tensor.params.spec, tensor.values.shape
    if change.form in (BLOCKED, EXPERTS):
        integers, groups = rows * width, tensor.params.scale.size
    else:
        block = block_of(tensor)
        blocks = -(-width // block)
        integers, groups = rows * blocks * block, rows * blocks
        if change.form == "GatherBlockQuantized":
            integers = rows * width
    return int(integers) * spec.dtype.bits + int(groups) * (scale_bits + (0 if spec.symmetric else spec.dtype.bits))


def weight_error_db(array: Array, tensor: QTensor) -> float | None:
    """Signal to quantization noise of a weight, in dB; ``inf`` where it is exact, None where there is no signal.

    Of a large weight evenly spaced rows stand for all of them.

    Args:
        array: floating point, shape of the tensor.
        tensor: its quantized form.
    """
    width = max(1, math.prod(array.shape[1:]))

    def powers(part: slice) -> tuple[float, float]:
        real = np.ascontiguousarray(array[part], np.float32)
        error = dequantize(tensor.values[part], _rows(tensor.params, part, array.shape[0]))
        np.subtract(real, error, out=error)
        return float(np.vdot(real, real)), float(np.vdot(error, error))

    parts = each(powers, [slice(None)] if not array.ndim or _leads(tensor) else _sampled_rows(array.shape[0], width))
    signal, noise = sum(part[0] for part in parts), sum(part[1] for part in parts)
    if not signal or not math.isfinite(signal):
        return None
    return decibels(signal, noise)


def _sampled_rows(rows: int, width: int) -> list[slice]:
    """Runs of rows, as many as are dequantized at a time: all, or evenly spaced ones of a large weight."""
    together = max(1, _SLAB // width)
    if rows * width <= 2 * _LARGE:
        return [slice(start, min(start + together, rows)) for start in range(0, rows, together)]
    together = min(together, _TOGETHER)
    count = max(_LARGE // (width * together), 1)
    starts = np.linspace(0, max(rows - together, 0), count).astype(np.int64)
    return [slice(int(start), min(int(start) + together, rows)) for start in starts]


def _rows(params: QParams, part: slice, length: int) -> QParams:
    if params.scale.ndim == 0 or params.scale.shape[0] != length:
        return params
    return QParams(params.spec, params.scale[part], params.zero_point[part])


def _leads(tensor: QTensor) -> bool:
    granularity = tensor.params.spec.granularity
    return isinstance(granularity, PerBlock) and granularity.axis == 0
