"""What quantizing weights costs: bits and error of each layer whose activations stay float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.rounding_error import weight_error_db
from onnxq.core.codebook import CodebookTensor, decode
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.core.mapped import forget, forget_tensor
from onnxq.core.spec import PerBlock, QTensor
from onnxq.graph import walk
from onnxq.graph.emit.packed_weights.packed import block_of
from onnxq.graph.emit.rewrite import Rewrite, WeightRewrite
from onnxq.graph.experts import holds_experts, stacks_of
from onnxq.graph.types import Node
from onnxq.plan.weights.tables import matrix_at
from onnxq.plan.weights.weight_only import BLOCKED, EXPERTS, matrix_of, weight_position


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
    nodes: Mapping[str, Node],
    rewrite: Rewrite,
    output_db: Mapping[str, float | None] | None = None,
    known: Mapping[int, float | None] | None = None,
) -> list[LayerWeight]:
    """Bits and error of every weight that is packed or stored.

    Args:
        nodes: of the prepared model, not rewritten yet.
        rewrite: what becomes of them.
        output_db: signal to quantization noise of the outputs of layers whose input was calibrated.
        known: errors in dB by the identity of the quantized weight, of weights that need not be read again.
    """
    outputs, errors = output_db or {}, known or {}
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
            error = errors[id(tensor)] if id(tensor) in errors else weight_error_db(matrix, tensor)
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
            error = errors[id(tensor)] if id(tensor) in errors else weight_error_db(array, tensor)
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
