"""Where a graph computes attention in plain operators: scores, mask, Softmax and mixture, as exporters write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.traits import Trait, having

_SWAP_LAST, _HEADS_FIRST, _KEYS_DOWN = (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1)
_SAME = having(Trait.COPIES)


@dataclass(frozen=True)
class RunFacts:
    """What runs of the model showed: exporters compute much of it that is always the same.

    Attributes:
        shapes: shape of each value in one run.
        numbers: single numbers that were the same in every run, by name of the value.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, float] = field(default_factory=dict)

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Of a value; () where it is not known."""
        return () if value is None else self.shapes.get(value.name or "", ())

    def number(self, value: ir.Value | None) -> float | None:
        """A single number, constant or seen; None for anything else."""
        array = walk.const_array(value)
        if array is None:
            return None if value is None else self.numbers.get(value.name or "")
        if array.size != 1 or array.dtype.kind != "f":
            return None
        return float(np.asarray(array, np.float64).reshape(()))


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


def factors_of(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of computed values of one element that something is multiplied with or divided by."""
    found: dict[str, None] = {}
    for node in model.graph:
        if node.domain == "" and node.op_type in ("Mul", "Div"):
            for value in node.inputs:
                if value is None or walk.is_constant(value) or not value.name:
                    continue
                if value.name in shapes and int(np.prod(shapes[value.name])) == 1:
                    found[value.name] = None
    return list(found)


def find_sites(model: ir.Model, seen: RunFacts) -> list[Site]:
    """Every attention in plain operators of the main graph, in order, whose parts can be told from each other.

    Args:
        model: unchanged.
        seen: from runs of it.
    """
    products = [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]
    found = (_Reader(seen).site(node) for node in products)
    return [site for site in found if site is not None]


@dataclass
class _Heads:
    """Keys or values before they are repeated for each head of queries: the value, and how often."""

    whole: ir.Value
    repeats: int


class _Reader:
    """Reads an attention backwards from its mixture."""

    def __init__(self, seen: RunFacts) -> None:
        self._seen = seen

    def site(self, mixture: ir.Node) -> Site | None:
        """The attention that a MatMul is the mixture of."""
        softmax = self._softmax(mixture.inputs[0])
        if softmax is None:
            return None
        scores, mask = self._unmasked(softmax.inputs[0])
        product, factor = self._unscaled(scores)
        if product is None or product.op_type != "MatMul":
            return None
        query, by_query = self._unscaled_value(product.inputs[0])
        keys, values = self._keys(product.inputs[1]), self._one_head_each(mixture.inputs[1])
        if query is None or keys is None or values is None:
            return None
        (all_keys, by_keys), seen = keys, self._seen
        q, k, v = seen.shape(query), seen.shape(all_keys.whole), seen.shape(values.whole)
        if not len(q) == len(k) == len(v) == 4:
            return None
        heads, size, kv_heads = q[1], q[3], k[1]
        if k[3] != size or v[3] != size or v[1] != kv_heads or not all(q[0] == other[0] for other in (k, v)):
            return None
        if heads != kv_heads * all_keys.repeats or heads != kv_heads * values.repeats or not heads * size:
            return None
        new_key, past_key = _joined(all_keys.whole)
        new_value, past_value = _joined(values.whole)
        if (past_key is None) != (past_value is None):
            return None
        return Site(
            mixture, query, new_key, new_value, past_key, past_value,
            all_keys.whole if past_key is not None else None, values.whole if past_value is not None else None,
            mask, factor * by_query * by_keys, heads, kv_heads, size,
        )  # fmt: skip

    def _softmax(self, value: ir.Value | None) -> ir.Node | None:
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
        return node if axis in (-1, len(self._seen.shape(node.outputs[0])) - 1) else None

    def _unmasked(self, value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
        """(scores, what is added to them)."""
        node = _producer(value)
        if node is None or node.op_type != "Add":
            return value, None
        for here, there in ((0, 1), (1, 0)):
            product, _ = self._unscaled(node.inputs[here])
            other, _ = self._unscaled(node.inputs[there])
            if _is_product(product) and not _is_product(other):
                return node.inputs[here], node.inputs[there]
        return value, None

    def _unscaled_value(self, value: ir.Value | None) -> tuple[ir.Value | None, float]:
        """A value before it is multiplied by single numbers, and their product."""
        factor = 1.0
        node = _producer(value)
        while node is not None and node.op_type in ("Mul", "Div"):
            left, right = (self._seen.number(operand) for operand in node.inputs[:2])
            if right is not None:
                factor, value = factor * right if node.op_type == "Mul" else factor / right, node.inputs[0]
            elif left is not None and node.op_type == "Mul":
                factor, value = factor * left, node.inputs[1]
            else:
                break
            node = _producer(value)
        return value, factor

    def _unscaled(self, value: ir.Value | None) -> tuple[ir.Node | None, float]:
        found, factor = self._unscaled_value(value)
        return _producer(found), factor

    def _keys(self, value: ir.Value | None) -> tuple[_Heads, float] | None:
        """Keys as (batch, kv heads, length, size), and what they are multiplied by, from the transposed ones."""
        value, before = self._unscaled_value(value)
        node = _producer(value)
        if node is None or node.op_type != "Transpose" or walk.attr_ints(node, "perm") != _SWAP_LAST:
            return None
        value, behind = self._unscaled_value(node.inputs[0])
        found = self._one_head_each(value)
        return None if found is None else (found, before * behind)

    def _one_head_each(self, value: ir.Value | None) -> _Heads | None:
        """Undo Reshape(Expand(Unsqueeze(x, 2))), which repeats each head for the queries of its group."""
        if value is None:
            return None
        node = _producer(value)
        wide = _producer(node.inputs[0]) if node is not None and node.op_type == "Reshape" else None
        if node is None or wide is None or wide.op_type != "Expand":
            return _Heads(value, 1)
        narrow = _producer(wide.inputs[0])
        axes = walk.const_array(walk.input_at(narrow, 1)) if narrow is not None else None
        if narrow is None or narrow.op_type != "Unsqueeze" or axes is None or list(axes.reshape(-1)) != [2]:
            return None
        source, shape = narrow.inputs[0], self._seen.shape
        before, spread, after = shape(source), shape(wide.outputs[0]), shape(value)
        if source is None or len(before) != 4 or len(spread) != 5 or not before[1]:
            return None
        if spread != (*before[:2], spread[2], *before[2:]) or after != (before[0], before[1] * spread[2], *before[2:]):
            return None
        return _Heads(source, spread[2])


def _is_product(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "MatMul"


def _producer(value: ir.Value | None) -> ir.Node | None:
    """What makes a value, behind nodes that only pass it on."""
    node = None if value is None else value.producer()
    while node is not None and node.domain == "" and node.op_type in _SAME and node.outputs[0] is value:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" else None


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


def of_lengths_alone(value: ir.Value) -> bool:
    """Whether a value is the same for all inputs of one shape: nothing that makes it reads their contents."""
    seen, waiting = set(), [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if current.is_graph_input():
            return False
        if node is None or id(node) in seen or (node.op_type in ("Shape", "Size") and node.domain == ""):
            continue
        seen.add(id(node))
        if walk.subgraphs(node):
            return False
        waiting += [read for read in node.inputs if read is not None]
    return True


def flat_of(value: ir.Value, seen: RunFacts) -> ir.Value | None:
    """(batch, length, heads · size) that a value of (batch, heads, length, size) was made of; None if it was not."""
    turned = _producer(value)
    if turned is None or turned.op_type != "Transpose" or walk.attr_ints(turned, "perm") != _HEADS_FIRST:
        return None
    shaped = _producer(turned.inputs[0])
    if shaped is None or shaped.op_type != "Reshape":
        return None
    flat, apart = seen.shape(shaped.inputs[0]), seen.shape(shaped.outputs[0])
    if len(flat) != 3 or len(apart) != 4 or flat != (*apart[:2], apart[2] * apart[3]):
        return None
    return shaped.inputs[0]


def flat_behind(mixture: ir.Node, seen: RunFacts) -> ir.Node | None:
    """The Reshape to (batch, length, heads · size) behind a mixture that nothing else reads; None if there is none."""
    turned = walk.only_use(mixture.outputs[0])
    if turned is None or turned.op_type != "Transpose" or walk.attr_ints(turned, "perm") != _HEADS_FIRST:
        return None
    shaped = walk.only_use(turned.outputs[0])
    if shaped is None or shaped.op_type != "Reshape":
        return None
    apart, flat = seen.shape(turned.outputs[0]), seen.shape(shaped.outputs[0])
    return shaped if len(apart) == 4 and flat == (*apart[:2], apart[2] * apart[3]) else None
