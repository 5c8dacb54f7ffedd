"""The values of convolutions that were written as products with the channels last, under the names they had."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.emit.channels.pointwise import to_first, to_last, turned_shape


def bring_back(quantized: ir.Model, float_model: ir.Model) -> int:
    """Let a quantized model pass through the values of a float model's Convs that it holds with the channels last.

    Two Transposes that undo each other are put behind such a product; the value between them has the name, the shape
    and the numbers that the float model knows.

    Args:
        quantized: changed in place.
        float_model: unchanged.

    Returns:
        How many values came back.
    """
    convs = {node.name: node for node in float_model.graph if node.op_type == "Conv" and node.name}
    names = walk.Names(quantized)
    known = {value.name for value in walk.all_values(quantized.graph)}
    found = 0
    for node in list(quantized.graph):
        conv = convs.get(node.name or "") if node.op_type == "MatMulIntegerToFloat" else None
        rank = walk.rank(walk.input_at(conv, 1)) if conv is not None else None
        if conv is None or rank is None or conv.outputs[0].name in known:
            continue
        output, shape = node.outputs[0], conv.outputs[0].shape
        first = _turn(output, to_first(rank), names)
        last = _turn(first.outputs[0], to_last(rank), names)
        first.outputs[0].name, first.outputs[0].shape = conv.outputs[0].name, shape
        last.outputs[0].name = names.value(f"{output.name}_again")
        last.outputs[0].shape = turned_shape(shape, to_last(rank))
        output.replace_all_uses_with(last.outputs[0], replace_graph_outputs=True)
        first.replace_input_with(0, output)
        quantized.graph.insert_after(node, [first, last])
        found += 1
    return found


def _turn(value: ir.Value, order: list[int], names: walk.Names) -> ir.Node:
    node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", order)], num_outputs=1)
    node.name, node.outputs[0].type = names.node(f"{value.name}_Transpose"), ir.TensorType(ir.DataType.FLOAT)
    return node
