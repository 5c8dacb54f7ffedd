"""The float form of each quantized operator, in its place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.emit.channels.pointwise import to_first, to_last
from onnxq.graph.undo import real_weights
from onnxq.graph.undo.own import OWN
from onnxq.graph.undo.products import PRODUCTS
from onnxq.graph.undo.tracker import FLOAT_TYPE, Real, Tracker
from onnxq.graph.views.canonical import DROPPED, float_form

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

MOVING = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather GatherND GatherElements MaxPool GlobalMaxPool Split "
    "Identity Expand Tile DepthToSpace SpaceToDepth Pad Concat Resize Upsample Dropout Where Clip Min Max Relu "
    "ReverseSequence Compress ScatterND ScatterElements ReduceMax ReduceMin TopK".split()
)
"""Operators that give some of the integers that they get."""

_BRANCHES: dict[str, tuple[int, ...] | None] = {
    "Concat": None,
    "Where": (1, 2),
    "Min": None,
    "Max": None,
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}
"""Inputs that hold integers of one grid, where that is not the first alone; None for all."""

_BOUNDS = {"Clip": (1, 2), "Pad": (2,)}
"""Inputs that hold one integer of the grid."""


def rewrite(tracker: Tracker, node: ir.Node) -> None:
    """Write the float form of a node, if it is quantized."""
    form = _FORMS.get(node.op_type)
    if form is not None:
        form(tracker, node)
    elif node.op_type.startswith("QLinear") or node.op_type in ("QGemm", "MatMulIntegerToFloat"):
        _integer_operator(tracker, node)
    elif node.op_type in MOVING and node.domain == "":
        _moving(tracker, node)


# QuantizeLinear and DequantizeLinear.


def _quantize(tracker: Tracker, node: ir.Node) -> None:
    x, scale, zero = node.inputs[0], walk.input_at(node, 1), walk.input_at(node, 2)
    output = node.outputs[0]
    if x is None or output.is_graph_output():
        return
    array, step, middle = tracker.array(x), tracker.array(scale), tracker.array(zero)
    if array is not None and step is not None and (zero is None or middle is not None):
        axis, block = walk.attr_int(node, "axis", 1), walk.attr_int(node, "block_size")
        integers = real_weights.rounded(array, step, middle, axis, block)
        value = tracker.constant(x.name or "", real_weights.dequantized(integers, step, middle, axis, block))
        tracker.stand_for(output, Real(value, scale, zero))
        return
    divide = x.producer()
    by_row = divide is not None and divide.op_type == "Div" and step is not None and step.size == 1 and step.item() == 1
    if by_row and divide is not None and divide.inputs[0] is not None and tracker.array(divide.inputs[1]) is None:
        tracker.stand_for(output, Real(divide.inputs[0], divide.inputs[1], zero))
        return
    tracker.stand_for(output, Real(tracker.clamped(node, x, scale, zero), scale, zero))


def _dynamic_quantize(tracker: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    if x is not None and not any(output.is_graph_output() for output in node.outputs):
        tracker.stand_for(node.outputs[0], Real(x, node.outputs[1], node.outputs[2]))


def _dequantize(tracker: Tracker, node: ir.Node) -> None:
    source, scale, zero = node.inputs[0], walk.input_at(node, 1), walk.input_at(node, 2)
    if source is None or (source.dtype == ir.DataType.INT32 and tracker.array(source) is None):
        return
    axis, block = walk.attr_int(node, "axis", 1), walk.attr_int(node, "block_size")
    if block:
        value = tracker.weight(source, scale, zero, axis, block)
        if value is None:
            return
    else:
        value = tracker.floats(node, source, scale, zero, axis)
    tracker.take_over(node, node.outputs[0], value)


# Operators on integers.


def _integer_operator(tracker: Tracker, node: ir.Node) -> None:
    form = float_form(node, with_bias=True)
    if form is None or (form.result is not None and node.outputs[0].is_graph_output()):
        return
    rank = _rank(tracker, node) if walk.attr_int(node, "channels_last") else 0  # of what has its channels last
    if rank is None:
        return
    inputs: list[ir.Value | None] = []
    scales: list[Array | None] = []
    for position, operand in enumerate(form.operands):
        if not isinstance(operand, tuple):
            inputs.append(operand)
            continue
        value, scale, zero = operand
        if value is None:
            inputs.append(None)
        elif scale is None:
            inputs.append(_bias(tracker, value, scales))
        else:
            scales.append(tracker.array(scale))
            inputs.append(tracker.floats(node, value, scale, zero, form.axes.get(position, 1)))
            if rank and position == 0:
                inputs[0] = _turned(tracker, node, inputs[0], to_first(rank))
    while inputs and inputs[-1] is None:
        inputs.pop()
    kept = [attribute for name, attribute in node.attributes.items() if name not in DROPPED]
    made = tracker.instead(node, "", form.op_type, inputs, kept)
    if rank:
        made.shape = None
        made = _turned(tracker, node, made, to_last(rank))
    if node.op_type == "MatMulIntegerToFloat" and (bias := walk.input_at(node, 6)) is not None:
        made = tracker.before(node, "Add", [made, bias], f"{node.outputs[0].name}_sum")
    if form.result is None:
        tracker.take_over(node, node.outputs[0], made)
        return
    _, scale, zero = form.result
    tracker.stand_for(node.outputs[0], Real(tracker.clamped(node, made, scale, zero), scale, zero))
    tracker.done += 1


def _turned(tracker: Tracker, node: ir.Node, value: ir.Value | None, order: list[int]) -> ir.Value:
    name = value.name if value is not None else node.name
    made = tracker.before(node, "Transpose", [value], f"{name}_turned", [ir.AttrInt64s("perm", order)])
    made.shape = ir.Shape([None] * len(order))
    return made


def _rank(tracker: Tracker, node: ir.Node) -> int | None:
    """Axes of a convolution's or pool's input; None where nothing says so."""
    if node.op_type == "QLinearConv":
        return walk.rank(walk.input_at(node, 3))
    if "kernel_shape" in node.attributes:
        return len(node.attributes["kernel_shape"].as_ints()) + 2
    real = tracker.known(node.inputs[0])
    ranks = [walk.rank(value) for value in (node.inputs[0], real.value if real is not None else None, node.outputs[0])]
    return next((rank for rank in ranks if rank is not None), None)


def _bias(tracker: Tracker, value: ir.Value, scales: list[Array | None]) -> ir.Value:
    """An int32 bias at the product of the other two scales; a float one as it is."""
    integers = tracker.array(value)
    if integers is None or integers.dtype.kind == "f" or scales[0] is None or scales[1] is None:
        return value
    factor = (scales[0].astype(np.float32) * scales[1].astype(np.float32)).reshape(-1)
    return tracker.constant(value.name or "bias", (integers.astype(np.float32) * factor).astype(np.float32))


def _pool_with_channels_last(tracker: Tracker, node: ir.Node) -> None:
    real = tracker.known(node.inputs[0])
    if real is None or real.product or node.outputs[0].is_graph_output() or "kernel_shape" not in node.attributes:
        return
    rank = len(node.attributes["kernel_shape"].as_ints()) + 2
    turned = _turned(tracker, node, real.value, to_first(rank))
    made = tracker.instead(node, "", "MaxPool", [turned], list(node.attributes.values()))
    made.shape = None
    tracker.stand_for(node.outputs[0], Real(_turned(tracker, node, made, to_last(rank)), real.scale, real.zero))
    tracker.done += 1


def _moving(tracker: Tracker, node: ir.Node) -> None:
    branches = _BRANCHES.get(node.op_type, (0,))
    positions = tuple(range(len(node.inputs))) if branches is None else branches
    values = [walk.input_at(node, position) for position in positions]
    known = [tracker.known(value) for value in values]
    first = next((real for real in known if real is not None), None)
    if first is None:
        return
    if node.op_type == "Clip" and not any(output.is_graph_output() for output in node.outputs):
        tracker.stand_for(node.outputs[0], first)  # it keeps integers in a part of their type
        return
    if first.product or any(output.is_graph_output() for output in node.outputs[:1]):
        return
    for position, value, real in zip(positions, values, known, strict=True):
        if value is None:
            continue
        if real is None and tracker.weight(value, first.scale, first.zero) is None:
            return
        node.replace_input_with(
            position, real.value if real is not None else tracker.weight(value, first.scale, first.zero)
        )
    for position in _BOUNDS.get(node.op_type, ()):
        bound = walk.input_at(node, position)
        if bound is not None and (made := tracker.weight(bound, first.scale, first.zero)) is not None:
            node.replace_input_with(position, made)
    outputs = node.outputs if node.op_type == "Split" else node.outputs[:1]
    for output in outputs:
        output.type = FLOAT_TYPE
        tracker.stand_for(output, Real(output, first.scale, first.zero))


_FORMS: dict[str, Callable[[Tracker, ir.Node], None]] = {
    _QUANTIZE: _quantize,
    _DEQUANTIZE: _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "NhwcMaxPool": _pool_with_channels_last,
    **PRODUCTS,
    **OWN,
}
QUANTIZED = frozenset(_FORMS) - {"Add", "Cast", "Mul"} | {"QGemm", "MatMulIntegerToFloat"}
"""Operators that hold or make integers; beside them all whose name begins with QLinear."""
