"""Where a graph computes attention in plain operators: scores, mask, Softmax and mixture, as exporters write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk

_SWAP_LAST, _HEADS_FIRST, _KEYS_DOWN = (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1)
_SAME = frozenset({"Identity", "Dropout"})


@dataclass(eq=False)
class Site:
    """One attention in plain operators.

    Attributes:
        mixture: the MatMul of probabilities and values.
        query: (batch, heads, length, size).
        key: new keys, (batch, kv heads, length, size).
        value: new values, the same.
        past_key: the graph input that older keys come from; None where there are none.
        past_value: the same for values.
        joined_key: older and new keys in one, which the graph gives out; None where there are no older ones.
        joined_value: the same for values.
        mask: what is added to the scores; None where nothing is.
        scale: what the scores are multiplied by.
        heads: of queries.
        kv_heads: of keys and values.
        size: of a head.
    """

    mixture: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value | None
    past_value: ir.Value | None
    joined_key: ir.Value | None
    joined_value: ir.Value | None
    mask: ir.Value | None
    scale: float
    heads: int
    kv_heads: int
    size: int

    @property
    def mask_name(self) -> str:
        """Name of the mask; empty where there is none."""
        return "" if self.mask is None else self.mask.name or ""


def find_sites(model: ir.Model) -> list[Site]:
    """Every attention in plain operators of the main graph, in order, whose parts can be told from each other."""
    found = (_site(node) for node in model.graph if node.op_type == "MatMul" and node.domain == "")
    return [site for site in found if site is not None]


def _site(mixture: ir.Node) -> Site | None:
    softmax = _softmax(mixture.inputs[0])
    if softmax is None:
        return None
    scores, mask, scale = _unmasked(softmax.inputs[0])
    product, factor = _unscaled(scores)
    if product is None or product.op_type != "MatMul" or product.domain != "":
        return None
    query, by_query = _unscaled_value(product.inputs[0])
    keys = _keys(product.inputs[1])
    if query is None or keys is None:
        return None
    all_keys, by_keys = keys
    values = _one_head_each(mixture.inputs[1])
    shapes = walk.dims(query), walk.dims(all_keys.whole), None if values is None else walk.dims(values.whole)
    if values is None or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    (q, k, v) = shapes
    assert q is not None and k is not None and v is not None
    heads, size, kv_heads = q[1], q[3], k[1]
    if not heads or not size or not kv_heads or k[3] != size or v[3] != size or v[1] != kv_heads or heads % kv_heads:
        return None
    if heads // kv_heads != all_keys.repeats or heads // kv_heads != values.repeats:
        return None
    new_key, past_key = _joined(all_keys.whole)
    new_value, past_value = _joined(values.whole)
    if (past_key is None) != (past_value is None):
        return None
    return Site(
        mixture, query, new_key, new_value, past_key, past_value,
        all_keys.whole if past_key is not None else None, values.whole if past_value is not None else None,
        mask, scale * factor * by_query * by_keys, heads, kv_heads, size,
    )  # fmt: skip


def _producer(value: ir.Value | None) -> ir.Node | None:
    """What makes a value, behind nodes that only pass it on."""
    node = None if value is None else value.producer()
    while node is not None and node.domain == "" and node.op_type in _SAME and node.outputs[0] is value:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" else None


def _softmax(value: ir.Value | None) -> ir.Node | None:
    """The Softmax over the last axis that makes a value; rows that are nothing but masked may be set to zero."""
    node = _producer(value)
    if node is not None and node.op_type == "Where":  # Where(IsNaN(p), 0, p)
        test, filled = _producer(node.inputs[0]), walk.const_array(node.inputs[1])
        if test is None or test.op_type != "IsNaN" or filled is None or test.inputs[0] is not node.inputs[2]:
            return None
        node = _producer(node.inputs[2])
    if node is None or node.op_type != "Softmax":
        return None
    axis = walk.attr_int(node, "axis", -1)
    return node if axis == -1 or axis == (walk.rank(node.outputs[0]) or -1) - 1 else None


def _number(value: ir.Value | None) -> float | None:
    array = walk.const_array(value)
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    return float(np.asarray(array, np.float64).reshape(()))


def _unmasked(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None, float]:
    """(scores, what is added to them, what the sum is multiplied by)."""
    node = _producer(value)
    if node is None or node.op_type != "Add":
        return value, None, 1.0
    for here, there in ((0, 1), (1, 0)):
        product, _ = _unscaled(node.inputs[here])
        other = node.inputs[there]
        if product is not None and product.op_type == "MatMul" and not _is_scores(other):
            return node.inputs[here], other, 1.0
    return value, None, 1.0


def _is_scores(value: ir.Value | None) -> bool:
    product, _ = _unscaled(value)
    return product is not None and product.op_type == "MatMul"


def _unscaled_value(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before it is multiplied by single numbers, and their product."""
    factor = 1.0
    node = _producer(value)
    while node is not None and node.op_type in ("Mul", "Div"):
        left, right = _number(node.inputs[0]), _number(node.inputs[1])
        if right is not None:
            factor, value = factor * right if node.op_type == "Mul" else factor / right, node.inputs[0]
        elif left is not None and node.op_type == "Mul":
            factor, value = factor * left, node.inputs[1]
        else:
            break
        node = _producer(value)
    return value, factor


def _unscaled(value: ir.Value | None) -> tuple[ir.Node | None, float]:
    found, factor = _unscaled_value(value)
    return _producer(found), factor


@dataclass
class _Heads:
    """Keys or values before they are repeated for each head of queries: the value, and how often."""

    whole: ir.Value
    repeats: int


def _keys(value: ir.Value | None) -> tuple[_Heads, float] | None:
    """Keys as (batch, kv heads, length, size), and what they are multiplied by, from the transposed ones."""
    value, before = _unscaled_value(value)
    node = _producer(value)
    if node is None or node.op_type != "Transpose" or walk.attr_ints(node, "perm") != _SWAP_LAST:
        return None
    value, behind = _unscaled_value(node.inputs[0])
    found = _one_head_each(value)
    return None if found is None else (found, before * behind)


def _one_head_each(value: ir.Value | None) -> _Heads | None:
    """Undo Reshape(Expand(Unsqueeze(x, 2))), which repeats each head for the queries of its group."""
    if value is None:
        return None
    node = _producer(value)
    if node is not None and node.op_type == "Reshape":
        wide = _producer(node.inputs[0])
        if wide is not None and wide.op_type == "Expand":
            narrow = _producer(wide.inputs[0])
            before, after = walk.dims(narrow.inputs[0] if narrow is not None else None), walk.dims(value)
            axes = walk.const_array(walk.input_at(narrow, 1)) if narrow is not None else None
            if narrow is None or narrow.op_type != "Unsqueeze" or axes is None or list(axes.reshape(-1)) != [2]:
                return None
            if before is None or after is None or not before[1] or not after[1] or len(before) != 4 != len(after):
                return None
            source, spread = narrow.inputs[0], walk.dims(wide.outputs[0])
            if source is None or spread is None or spread[1] not in (None, before[1]):
                return None
            return _Heads(source, after[1] // before[1]) if after[1] % before[1] == 0 else None
    return _Heads(value, 1)


def _joined(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """(new, older) of keys or values that are appended to those of a graph input and given out; else all, None."""
    node = value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or not value.is_graph_output():
        return value, None
    if walk.attr_int(node, "axis") not in (2, -2):
        return value, None
    older, new = node.inputs
    if older is None or new is None or not older.is_graph_input() or not read_by(older, node):
        return value, None
    return new, older


def read_by(value: ir.Value, node: ir.Node) -> bool:
    """Whether a node alone reads the contents of a value, once; others may ask for its shape."""
    readers = [use.node for use in value.uses() if use.node.op_type != "Shape" or use.node.domain != ""]
    return len(readers) == 1 and readers[0] is node and not value.is_graph_output()


def flat_of(value: ir.Value) -> ir.Value | None:
    """(batch, length, heads · size) that a value of (batch, heads, length, size) was made of; None if it was not."""
    turned = _producer(value)
    if turned is None or turned.op_type != "Transpose" or walk.attr_ints(turned, "perm") != _HEADS_FIRST:
        return None
    shaped = _producer(turned.inputs[0])
    if shaped is None or shaped.op_type != "Reshape":
        return None
    flat, apart = shaped.inputs[0], walk.dims(shaped.outputs[0])
    dims = walk.dims(flat)
    if flat is None or dims is None or apart is None or len(dims) != 3 or len(apart) != 4:
        return None
    return flat if dims[2] and apart[2] and apart[3] and dims[2] == apart[2] * apart[3] else None


def flat_behind(mixture: ir.Node) -> ir.Node | None:
    """The Reshape to (batch, length, heads · size) behind a mixture that nothing else reads; None if there is none."""
    turned = walk.only_use(mixture.outputs[0])
    if turned is None or turned.op_type != "Transpose" or walk.attr_ints(turned, "perm") != _HEADS_FIRST:
        return None
    shaped = walk.only_use(turned.outputs[0])
    if shaped is None or shaped.op_type != "Reshape" or walk.rank(shaped.outputs[0]) != 3:
        return None
    apart, flat = walk.dims(turned.outputs[0]), walk.dims(shaped.outputs[0])
    if apart is None or flat is None or not apart[2] or not apart[3] or flat[2] != apart[2] * apart[3]:
        return None
    return shaped
