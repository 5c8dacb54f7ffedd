"""What precedes a value can take up a factor for each of its channels: which constants would change, and to what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.types import Node, Value
from onnxq.passes.heads import attention_values, before_expand, before_reshape, read_only_by

_STANDARD = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"

_NORMS: dict[tuple[str, str], tuple[int, ...]] = {
    **{(domain, "LayerNormalization"): (1, 2) for domain in _STANDARD},
    **{(domain, "RMSNormalization"): (1,) for domain in _STANDARD},
    **{(domain, "SimplifiedLayerNormalization"): (1,) for domain in (*_STANDARD, _MICROSOFT)},
    (_MICROSOFT, "SkipLayerNormalization"): (2, 3),
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): (2,),
}
"""Normalizations over the last axis, and the inputs that scale and shift their first output."""

_HOMOGENEOUS = traits.HOMOGENEOUS
"""Operators with f(s·x) = s·f(x) for s > 0."""

_MOVING = traits.RESHAPING
"""Operators that leave the order of elements as it is."""


@dataclass(frozen=True, eq=False)
class Change:
    """A constant that takes up the factors.

    Attributes:
        node: its reader.
        position: the input.
        array: its new contents.
    """

    node: Node
    position: int
    array: Array


def absorb(value: Value, factors: Array) -> list[Change] | None:
    """How what makes a value can make it times ``factors`` instead, without a node more.

    Args:
        value: any.
        factors: float64, positive; broadcasts against the value from the right. One axis stands for channels along the
            last axis; on the way through reshapes and the heads of an attention there can be more.

    Returns:
        The changes; None where there is no way.
    """
    try:
        return _absorb(value, factors)
    except RecursionError:  # a chain of hundreds of reshapes and transposes, which nobody needs followed
        return None


def _absorb(value: Value, factors: Array) -> list[Change] | None:
    while factors.ndim > 1 and factors.shape[0] == 1:
        factors = factors[0]
    node = _source_of(value)
    if node is None:
        return None
    standard = node.domain in _STANDARD
    if standard and node.op_type in _MOVING:
        return _reshape(node, factors)
    if standard and node.op_type == "Transpose":
        return _transpose(node, factors)
    if standard and node.op_type == "Expand":
        moved = before_expand(node, factors)
        return None if moved is None else _through(node, moved)
    if standard and node.op_type == "MatMul" and not walk.is_constant(walk.input_at(node, 1)):
        return _mixture(node, factors)
    mixed = attention_values(node, factors)
    if mixed is not None:
        return _absorb(*mixed)
    if factors.ndim > 1:
        return None
    if (node.domain, node.op_type) in _NORMS:
        return _constants(node, _NORMS[node.domain, node.op_type], factors)
    match node.op_type if standard else "":
        case "BatchNormalization":
            return _batch_normalization(node, factors)
        case "MatMul":
            return _matmul(node, factors)
        case "Gemm":
            return _gemm(node, factors)
        case "Mul" | "Div":
            return _product(node, factors)
        case "Add" | "Sub":
            return _join(_operand(node, position, factors) for position in (0, 1))
    return None


def _source_of(value: Value) -> Node | None:
    """What makes a value, in front of operators that any factor passes; None where there is no way to it.

    A loop, since there is no end to how many of them a model can put in a row.
    """
    while True:
        node = value.producer()
        if node is None or node.outputs[0] is not value:
            return None
        if node.domain not in _STANDARD or node.op_type not in _HOMOGENEOUS:
            return node
        source = walk.input_at(node, 0)
        if source is None or not read_only_by(source, node):
            return None
        value = source


def _join(found: Iterable[list[Change] | None]) -> list[Change] | None:
    changes: list[Change] = []
    for part in found:
        if part is None:
            return None
        changes += part
    return changes


def _through(node: Node, factors: Array) -> list[Change] | None:
    """The factors go on to the first input, if nothing else reads it."""
    source = walk.input_at(node, 0)
    return _absorb(source, factors) if source is not None and read_only_by(source, node) else None


def _reshape(node: Node, factors: Array) -> list[Change] | None:
    """Axes at the end that hold as many elements before and after hold the same elements in the same order."""
    moved = before_reshape(node, factors)
    if moved is not None:
        return _through(node, moved)
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    if not before or not after or len(after) < factors.ndim:
        return None
    tail = _known(after[-factors.ndim :])
    if tail is None:
        return None
    for count in range(1, len(before) + 1):
        shape = _known(before[-count:])
        if shape is None or math.prod(shape) > math.prod(tail):
            return None
        if math.prod(shape) == math.prod(tail):
            return _through(node, np.broadcast_to(factors, tail).reshape(shape))
    return None


def _known(dims: Sequence[int | None]) -> tuple[int, ...] | None:
    found = tuple(dim for dim in dims if dim is not None)
    return found if len(found) == len(dims) else None


def _transpose(node: Node, factors: Array) -> list[Change] | None:
    order = walk.attr_ints(node, "perm")
    if not order or len(order) < factors.ndim:
        return None
    full = factors.reshape((1,) * (len(order) - factors.ndim) + factors.shape)
    return _through(node, full.transpose(np.argsort(order)))


def _mixture(node: Node, factors: Array) -> list[Change] | None:
    """A product of two activations, as attention mixes values by probabilities: the right one takes the factors up."""
    value = walk.input_at(node, 1)
    shape, rank = walk.dims(value), walk.rank(node.outputs[0])
    if value is None or shape is None or rank != len(shape) or rank < 2 or not read_only_by(value, node):
        return None
    if factors.ndim > rank or (factors.ndim > 1 and factors.shape[-2] != 1):
        return None
    ends = zip(shape[-factors.ndim :], factors.shape, strict=True)
    return _absorb(value, factors) if all(size in (1, dim) for dim, size in ends) else None


def _times(node: Node, position: int, factors: Array) -> Change | None:
    """A constant that broadcasts against the output, times the factors along the last axis."""
    array = walk.const_array(walk.input_at(node, position))
    if array is None or not walk.is_float(walk.input_at(node, position)):
        return None
    known = walk.dims(node.outputs[0])
    if array.shape[-1:] != factors.shape and (array.size > 1 or not known or known[-1] != factors.size):
        return None  # it would become larger than it has to be, or its node's output larger than it was
    with np.errstate(over="ignore"):
        scaled = (array.astype(np.float64) * factors).astype(array.dtype)
    return Change(node, position, scaled) if np.isfinite(scaled).all() else None


def _constants(node: Node, positions: Iterable[int], factors: Array) -> list[Change] | None:
    changes = []
    for position in positions:
        value = walk.input_at(node, position)
        if value is None:
            continue
        array = walk.const_array(value)
        change = _times(node, position, factors) if array is not None and array.shape[-1:] == factors.shape else None
        if change is None:
            return None
        changes.append(change)
    return changes or None


def _batch_normalization(node: Node, factors: Array) -> list[Change] | None:
    if walk.attr_int(node, "training_mode") or walk.rank(node.outputs[0]) != 2:
        return None
    return _constants(node, (1, 2), factors)


def _matmul(node: Node, factors: Array) -> list[Change] | None:
    array = walk.const_array(walk.input_at(node, 1))
    if array is None or array.ndim < 2 or array.shape[-1] != factors.size:
        return None
    change = _times(node, 1, factors)
    return None if change is None else [change]


def _gemm(node: Node, factors: Array) -> list[Change] | None:
    array, bias = walk.const_array(walk.input_at(node, 1)), walk.input_at(node, 2)
    if array is None or array.ndim != 2:
        return None
    transposed = walk.outputs_first(node)
    if array.shape[0 if transposed else 1] != factors.size:
        return None
    along = factors[:, None] if transposed else factors
    with np.errstate(over="ignore"):
        scaled = (array.astype(np.float64) * along).astype(array.dtype)
    if not np.isfinite(scaled).all():
        return None
    changes = [Change(node, 1, scaled)]
    if bias is not None:
        change = _times(node, 2, factors)
        if change is None:
            return None
        changes.append(change)
    return changes


def _product(node: Node, factors: Array) -> list[Change] | None:
    """One factor of a product takes up all; the divisor of a quotient cannot unless it is constant."""
    if node.op_type == "Mul":
        for position in (0, 1):
            change = _times(node, position, factors)
            if change is not None:
                return [change]
    else:
        change = _times(node, 0, factors) or _times(node, 1, 1.0 / factors)
        if change is not None:
            return [change]
    for position in (0, 1) if node.op_type == "Mul" else (0,):
        found = _operand(node, position, factors)
        if found is not None:
            return found
    return None


def _operand(node: Node, position: int, factors: Array) -> list[Change] | None:
    """One operand of an element-wise operator: a constant, or a value that nothing else reads."""
    value = walk.input_at(node, position)
    if value is None:
        return None
    if walk.is_constant(value):
        change = _times(node, position, factors)
        return None if change is None else [change]
    return _absorb(value, factors) if read_only_by(value, node) else None
