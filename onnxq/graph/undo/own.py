"""The float form of ONNX Runtime's own operators: those with packed weights, and those that quantize their inputs."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.reading.ops import MICROSOFT
from onnxq.graph.undo import real_weights
from onnxq.graph.undo.tracker import Tracker


def _packed(
    weight_of: Callable[[ir.Node, list[Array | None]], Array | None], bias_at: int
) -> Callable[[Tracker, ir.Node], None]:
    def form(tracker: Tracker, node: ir.Node) -> None:
        packed = walk.input_at(node, 1)
        array = weight_of(node, [tracker.array(value) for value in node.inputs])
        if array is None or packed is None:
            return
        value = tracker.shared(packed, (node.op_type, id(walk.input_at(node, 2))), lambda: array)
        made = tracker.instead(node, "", "MatMul", [node.inputs[0], value], [])
        if (bias := walk.input_at(node, bias_at)) is not None:
            made = tracker.before(node, "Add", [made, bias], f"{node.outputs[0].name}_sum")
        tracker.take_over(node, node.outputs[0], made)

    return form


def _block_table(tracker: Tracker, node: ir.Node) -> None:
    array = real_weights.of_table(node, [tracker.array(value) for value in node.inputs])
    if array is None or node.inputs[0] is None:
        return
    value = tracker.constant(node.inputs[0].name or "", array)
    axis = [ir.AttrInt64("axis", walk.attr_int(node, "gather_axis"))]
    made = tracker.instead(node, "", "Gather", [value, node.inputs[1]], axis)
    tracker.take_over(node, node.outputs[0], made)


def _experts(tracker: Tracker, node: ir.Node) -> None:
    inputs: list[ir.Value | None] = [walk.input_at(node, 0), walk.input_at(node, 1)]
    for number in range(3):
        place, first = 3 * number + 2, len(inputs)
        packed = walk.input_at(node, place)
        inputs += [None, walk.input_at(node, place + 2)]
        if packed is None:
            continue
        parts = [tracker.array(walk.input_at(node, i)) for i in (place, place + 1, 11 + number)]
        array = real_weights.of_experts(node, number, parts)
        if array is None:
            return
        inputs[first] = tracker.constant(packed.name or "", array)
    made = tracker.instead(node, MICROSOFT, "MoE", without_tail(inputs), real_weights.of_moe(node))
    tracker.take_over(node, node.outputs[0], made)


def _dynamic_matmul(tracker: Tracker, node: ir.Node) -> None:
    integers, scale = walk.input_at(node, 1), walk.input_at(node, 2)
    array = tracker.array(integers)
    if integers is None or array is None:
        return
    value = tracker.weight(integers, scale, walk.input_at(node, 3), array.ndim - 1)
    if value is None:
        return
    made = tracker.instead(node, "", "MatMul", [node.inputs[0], value], [])
    if (bias := walk.input_at(node, 4)) is not None:
        made = tracker.before(node, "Add", [made, bias], f"{node.outputs[0].name}_sum")
    tracker.take_over(node, node.outputs[0], made)


def _lstm(tracker: Tracker, node: ir.Node) -> None:
    arrays = [tracker.array(walk.input_at(node, i)) for i in range(12)]
    weights = []
    for position, scale in ((1, 8), (2, 10)):
        array, step, zero = arrays[position], arrays[scale], arrays[scale + 1]
        if array is None or step is None:
            return
        name = node.inputs[position]
        weights.append(
            tracker.constant(name.name or "" if name is not None else "", real_weights.of_lstm(array, step, zero))
        )
    inputs = [node.inputs[0], *weights, *(walk.input_at(node, i) for i in range(3, 8))]
    _own(tracker, node, "", "LSTM", inputs)


def _attention(tracker: Tracker, node: ir.Node) -> None:
    i = [walk.input_at(node, position) for position in range(9)]
    source, weight = i[0], i[1]
    if source is None or weight is None:
        return
    value = tracker.weight(weight, i[4], i[7], 1)
    if value is None:
        return
    x = tracker.floats(node, source, i[3], i[6])
    _own(tracker, node, MICROSOFT, "Attention", [x, value, i[2], i[5], i[8]])


def _embedding(tracker: Tracker, node: ir.Node) -> None:
    """QEmbedLayerNormalization: three tables and two rows of parameters, each with one scale."""
    i = [walk.input_at(node, position) for position in range(18)]
    reals: list[ir.Value | None] = []
    for index in range(5):
        integers = i[2 + index]
        real = None if integers is None else tracker.weight(integers, i[8 + index], i[13 + index])
        if integers is not None and real is None:
            return
        reals.append(real)
    _own(tracker, node, MICROSOFT, "EmbedLayerNormalization", [i[0], i[1], *reals, i[7]])


def without_tail(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """Inputs up to the last one that is there."""
    last = max((i for i, value in enumerate(inputs) if value is not None), default=-1)
    return inputs[: last + 1]


def _own(tracker: Tracker, node: ir.Node, domain: str, op_type: str, inputs: list[ir.Value | None]) -> None:
    """A float operator with the outputs of a quantized one."""
    made = tracker.instead(node, domain, op_type, without_tail(inputs), list(node.attributes.values()))
    if node.outputs[0].name:
        tracker.take_over(node, node.outputs[0], made)
    else:
        tracker.done += 1


OWN: dict[str, Callable[[Tracker, ir.Node], None]] = {
    "MatMulNBits": _packed(real_weights.of_nbits, 5),
    "MatMulBnb4": _packed(real_weights.of_bnb4, 99),
    "GatherBlockQuantized": _block_table,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "DynamicQuantizeLSTM": _lstm,
    "QAttention": _attention,
    "QEmbedLayerNormalization": _embedding,
    "QMoE": _experts,
}
