"""Products of integers in float: what they are multiplied with stands behind them, as Cast and Mul."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.undo.tracker import SMALL, Real, Tracker


def _product(tracker: Tracker, node: ir.Node) -> None:
    """MatMulInteger or ConvInteger: the product of the real factor and of the others' steps, or of two real factors."""
    left = tracker.known(node.inputs[0]) or _gathered(tracker, node)
    right = tracker.known(walk.input_at(node, 1))
    weight, zero = walk.input_at(node, 1), tracker.array(walk.input_at(node, 3))
    op_type = "MatMul" if node.op_type == "MatMulInteger" else "Conv"
    if left is None or weight is None:
        return
    if right is not None:
        made = tracker.instead(node, "", op_type, [left.value, right.value], list(node.attributes.values()))
        tracker.stand_for(node.outputs[0], Real(made, left.scale, None, product=True, other=right.scale))
        return
    integers = tracker.array(weight)
    factor = _factor(tracker, node, left)
    if integers is None or factor is None:
        return
    if zero is not None and zero.size > 1:  # one for each column, or output channel
        zero = zero.reshape(-1, *(1,) * (integers.ndim - 1)) if op_type == "Conv" else zero
    real = integers.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
    if op_type == "Conv" and factor.size > 1:  # it scales channels of the product, (1, C, 1, 1) or (C, 1, 1)
        factor = factor.reshape(-1, *(1,) * (real.ndim - 1))
    elif factor.ndim > 1 and real.ndim == 2:
        factor = factor.reshape(-1, factor.shape[-1])[-1]
    value = tracker.shared(
        weight, (op_type, factor.tobytes(), str(factor.shape)), lambda: (real * factor).astype(np.float32)
    )
    made = tracker.instead(node, "", op_type, [left.value, value], list(node.attributes.values()))
    tracker.stand_for(node.outputs[0], Real(made, left.scale, None, product=True))


def _gathered(tracker: Tracker, node: ir.Node) -> Real | None:
    """Rows of a table of integers that are multiplied as they are; their scale is the first one of the product's."""
    rows = node.inputs[0]
    gather = rows.producer() if rows is not None else None
    if rows is None or gather is None or gather.op_type != "Gather" or gather.inputs[0] is None:
        return None
    if gather.inputs[0].dtype not in SMALL:
        return None
    for factor in _factors(node):
        product = factor.producer()
        scale = factor if product is None or product.op_type != "Mul" else product.inputs[0]
        step = tracker.array(scale)
        if step is not None and step.size == 1:
            tracker.floats(node, rows, scale, walk.input_at(node, 2))
            return tracker.known(rows)
    return None


def _factor(tracker: Tracker, node: ir.Node, left: Real) -> Array | None:
    """The constant that the product's scale is made of, beside the scale of the activation."""
    for other in _factors(node):
        found = _constant_part(tracker, other, left.scale)
        if found is not None:
            return found
    return None


def _factors(node: ir.Node) -> Iterator[ir.Value]:
    """What the product is multiplied with behind its Cast."""
    readers = list(node.outputs[0].consumers())
    readers += [user for reader in readers if reader.op_type == "Add" for user in reader.outputs[0].consumers()]
    for cast in readers:
        for user in cast.outputs[0].consumers() if cast.op_type == "Cast" else ():
            other = _other(user, cast.outputs[0])
            if other is not None:
                yield other


def _other(node: ir.Node, one: ir.Value) -> ir.Value | None:
    """The other operand of a Mul."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    return node.inputs[1] if node.inputs[0] is one else node.inputs[0]


def _constant_part(tracker: Tracker, factor: ir.Value, scale: ir.Value | None) -> Array | None:
    """What a product's factor is without the scale of the activation; None where it is something else."""
    whole = tracker.array(factor)
    if whole is not None:
        step = tracker.array(scale)
        return None if step is None else np.asarray(whole / step, np.float32)
    if factor is scale:
        return np.ones((), np.float32)
    node = factor.producer()
    if node is None or node.op_type != "Mul" or scale is None:
        return None
    for one in (0, 1):
        if node.inputs[one] is scale and (array := tracker.array(node.inputs[1 - one])) is not None:
            return np.asarray(array, np.float32)
    return None


def _cast(tracker: Tracker, node: ir.Node) -> None:
    """A Cast of sums of products stands for what these stand for; one of gathered integers may be a table's."""
    known = tracker.known(node.inputs[0])
    if known is not None and known.product:
        tracker.stand_for(node.outputs[0], known)


def _adding(tracker: Tracker, node: ir.Node) -> None:
    """A bias that is added to sums of products, in their steps."""
    for one, other in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        known = tracker.known(one)
        if known is None or not known.product or other is None or (bias := _in_steps(tracker, other)) is None:
            continue
        value = tracker.constant(f"{node.outputs[0].name}_bias", bias)
        made = tracker.instead(node, "", "Add", [known.value, value], [])
        tracker.stand_for(node.outputs[0], Real(made, known.scale, None, product=True, other=known.other))
        return


def _in_steps(tracker: Tracker, value: ir.Value) -> Array | None:
    """The constant behind ``Div → Floor or Round → Cast → Reshape``, in the shape that it ends up with."""
    shape: Array | None = None
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Cast", "Floor", "Round") and node.inputs[0] is not None:
        if node.op_type == "Reshape" and shape is None:
            shape = tracker.array(node.inputs[1])
            if shape is None:
                return None
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Div" or tracker.array(node.inputs[1]) is not None:
        return None
    bias = tracker.array(node.inputs[0])
    if bias is None or bias.dtype.kind != "f":
        return None
    return np.ascontiguousarray(bias if shape is None else bias.reshape(shape), np.float32)


def _scaling(tracker: Tracker, node: ir.Node) -> None:
    """The Mul that brings products back to their scale, or rows of a table to theirs."""
    for one in node.inputs:
        known = tracker.known(one)
        if one is None or known is None or not known.product:
            continue
        other = _other(node, one)
        part = None if other is None else _is_scale(tracker, other, known)
        if part:
            tracker.take_over(node, node.outputs[0], known.value)
        return
    _rows(tracker, node)


def _is_scale(tracker: Tracker, factor: ir.Value, known: Real) -> bool:
    if known.other is None:
        return _constant_part(tracker, factor, known.scale) is not None
    node = factor.producer()
    return (
        node is not None
        and node.op_type == "Mul"
        and {id(v) for v in node.inputs} == {id(known.scale), id(known.other)}
    )


def _rows(tracker: Tracker, node: ir.Node) -> None:
    """Gathered rows of integers times their scales: rows of the float table."""
    for one in node.inputs:
        cast = one.producer() if one is not None else None
        gather = cast.inputs[0].producer() if cast is not None and cast.op_type == "Cast" and cast.inputs[0] else None
        if gather is None or gather.op_type != "Gather" or gather.inputs[0] is None or one is None:
            continue
        table, other = tracker.array(gather.inputs[0]), _other(node, one)
        if table is None or gather.inputs[0].dtype not in SMALL or other is None:
            continue
        scale = tracker.array(other)
        behind = other.producer()
        if scale is None and behind is not None and behind.op_type == "Gather" and behind.inputs[1] is gather.inputs[1]:
            scale = tracker.array(behind.inputs[0])
        elif scale is not None and scale.size != 1:
            continue
        axis = walk.attr_int(gather, "axis")
        whole = scale is not None and (scale.size == 1 or scale.ndim == table.ndim)
        if scale is None or (axis and not whole):
            continue
        if axis and scale.size > 1 and (behind is None or walk.attr_int(behind, "axis") != axis):
            continue
        if scale.ndim == 1 and scale.size > 1:
            scale = scale.reshape(-1, *(1,) * (table.ndim - 1))
        real = tracker.constant(gather.inputs[0].name or "", (table.astype(np.float32) * scale).astype(np.float32))
        made = tracker.instead(gather, "", "Gather", [real, gather.inputs[1]], list(gather.attributes.values()))
        tracker.take_over(node, node.outputs[0], made)
        return


PRODUCTS: dict[str, Callable[[Tracker, ir.Node], None]] = {
    "MatMulInteger": _product,
    "ConvInteger": _product,
    "Add": _adding,
    "Cast": _cast,
    "Mul": _scaling,
}
