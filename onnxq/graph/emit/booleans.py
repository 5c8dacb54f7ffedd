"""Boolean inputs that a model hands on, written so that every engine copies them."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk


def copy_booleans(model: ir.Model) -> int:
    """Write an Identity from a boolean input to an output as two Casts, there and back.

    OpenVINO's CPU plug-in (seen in 2025.4) joins the Identity with arithmetic on the same mask, and then has no kernel.

    Returns:
        How many were written so.
    """
    names, count = walk.Names(model), 0
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Identity" and node.domain in ("", "ai.onnx") else None
        if source is None or source.dtype != ir.DataType.BOOL or not source.is_graph_input():
            continue
        whole = ir.Value(name=names.value(f"{source.name}_uint8"), type=ir.TensorType(ir.DataType.UINT8))
        there = ir.Node(
            "", "Cast", [source], [ir.AttrInt64("to", int(ir.DataType.UINT8))], outputs=[whole],
            name=names.node(f"{node.name}_uint8"),
        )  # fmt: skip
        result = node.outputs[0]
        back = ir.Node("", "Cast", [whole], [ir.AttrInt64("to", int(ir.DataType.BOOL))], num_outputs=1, name=node.name)
        model.graph.insert_before(node, [there, back])
        edit.take_over(result, back.outputs[0])
        model.graph.remove(node, safe=True)
        count += 1
    return count
