"""Factors of channels on their way back through the heads of an attention and what reshapes them.

Factors are an array that broadcasts against a value from the right; an axis of length 1 says that they do not depend on
it.
"""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.types import Node, Value

_STANDARD = ("", "ai.onnx")
_STEPS = 16
"""Nodes between an output projection and what repeats the heads of its values, at most."""

_PASSED = traits.MOVING | {"Cast", "Dropout", "Identity"}


def read_only_by(value: Value | None, node: Node) -> bool:
    """Whether a node is all that reads the elements of a value; others may ask for its shape."""
    if value is None or value.is_graph_output():
        return False
    readers = [use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
    return len(readers) == 1 and readers[0] is node


def tied_channels(value: Value | None, channels: int) -> Array | None:
    """Which channels of an output projection's input come from the same channel of its values (grouped queries).

    Args:
        value: what the projection reads.
        channels: of it.

    Returns:
        int, (channels,), the same number for channels that are copies of one; None where no head is repeated.
    """
    for _ in range(_STEPS):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        heads = _heads(node)
        if heads is not None:
            return _labels(*heads, channels) if heads[1] > 1 else None
        if node.domain not in _STANDARD:
            return None
        if node.op_type == "Expand":
            shape = _repeats(node)
            return None if shape is None else _labels(*shape, channels)
        if node.op_type == "MatMul" and not walk.is_constant(walk.input_at(node, 1)):
            value = walk.input_at(node, 1)
        elif node.op_type in _PASSED:
            value = walk.input_at(node, 0)
        else:
            return None
    return None


def _labels(heads: int, repeats: int, channels: int) -> Array | None:
    width, rest = divmod(channels, heads * repeats)
    if rest or width == 0:
        return None
    labels = np.arange(heads)[:, None, None] * width + np.arange(width)
    return np.broadcast_to(labels, (heads, repeats, width)).reshape(-1)


def _repeats(node: Node) -> tuple[int, int] | None:
    """(heads, copies of each) where an Expand repeats the heads of (…, heads, 1, length, width)."""
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    if not before or not after or len(before) != len(after) or len(after) < 4:
        return None
    heads, copies = after[-4], after[-3]
    return (heads, copies) if before[-3] == 1 and heads and copies else None


def _heads(node: Node) -> tuple[int, int] | None:
    """(heads of values, queries for each) of an attention operator on (N, S, heads · width)."""
    if node.op_type == "GroupQueryAttention" and node.domain == "com.microsoft":
        queries, heads = walk.attr_int(node, "num_heads"), walk.attr_int(node, "kv_num_heads")
    elif node.op_type == "MultiHeadAttention" and node.domain == "com.microsoft":
        queries = heads = walk.attr_int(node, "num_heads")
    elif node.op_type == "Attention" and node.domain in _STANDARD:
        queries, heads = walk.attr_int(node, "q_num_heads"), walk.attr_int(node, "kv_num_heads")
    else:
        return None
    return (heads, queries // heads) if heads > 0 and queries % heads == 0 else None


def attention_values(node: Node, factors: Array) -> tuple[Value, Array] | None:
    """The values that an attention operator mixes, and what they have to be multiplied by.

    Args:
        node: any.
        factors: of its first output.

    Returns:
        The input and its factors; None where it is no such operator, something depends on the values besides its first
        output (a cache), or heads that share values have other factors.
    """
    heads, value = _heads(node), walk.input_at(node, 2)
    if heads is None or value is None or factors.ndim != 1 or not read_only_by(value, node):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    # behind the values: a bias for all three, or caches; masks and lengths have no part in them
    others = {"GroupQueryAttention": (3, 4), "MultiHeadAttention": (3, 6, 7), "Attention": (4, 5)}[node.op_type]
    if any(walk.input_at(node, position) is not None for position in others):
        return None
    if node.op_type == "Attention" and walk.rank(value) != 3:
        return None
    count, repeats = heads
    if factors.size % (count * repeats):
        return None
    each = factors.reshape(count, repeats, -1)
    return (value, each[:, 0].reshape(-1)) if (each == each[:, :1]).all() else None


def before_expand(node: Node, factors: Array) -> Array | None:
    """The factors of an Expand's input; None where copies of one element have different factors."""
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    if not before or not after or len(before) != len(after) or factors.ndim > len(after):
        return None
    for axis in range(-factors.ndim, 0):
        if before[axis] != 1 or factors.shape[axis] == 1:
            if before[axis] is None and factors.shape[axis] != 1:
                return None
            continue
        first = np.take(factors, [0], axis=axis)
        if not (factors == first).all():
            return None
        factors = first
    return factors


def before_reshape(node: Node, factors: Array) -> Array | None:
    """The factors of a Reshape's input, by axes that hold the same elements in the same order.

    Axes of unknown length count as the same where they have the same name.
    """
    before, after = _named_dims(walk.input_at(node, 0)), _named_dims(node.outputs[0])
    if before is None or after is None or factors.ndim > len(after):
        return None
    found: list[tuple[int, ...]] = []
    spread: list[tuple[int, ...]] = []
    i, j, left = len(after), len(before), factors.ndim
    while left > 0:
        if i == 0 or j == 0:
            return None
        length = factors.shape[left - 1]
        if after[i - 1] == before[j - 1]:
            found.insert(0, (length,))
            spread.insert(0, (length,))
            i, j, left = i - 1, j - 1, left - 1
            continue
        ours: list[int] = []
        theirs: list[int] = []
        while not ours or not theirs or math.prod(ours) != math.prod(theirs):
            if not theirs or (ours and math.prod(ours) > math.prod(theirs)):
                j -= 1
                dim, into = (before[j] if j >= 0 else None), theirs
            else:
                i -= 1
                dim, into = (after[i] if i >= 0 else None), ours
            if not isinstance(dim, int) or dim < 1:
                return None
            into.insert(0, dim)
        left -= len(ours)
        spread.insert(0, tuple(ours))
        found.insert(0, tuple(theirs))
    factors = factors.reshape((1,) * max(-left, 0) + factors.shape)
    full = np.broadcast_to(factors, [dim for dims in spread for dim in dims])
    return full.reshape([dim for dims in found for dim in dims])


def _named_dims(value: Value | None) -> list[int | str | None] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else (dim.value or f"?{id(dim)}") for dim in value.shape]
