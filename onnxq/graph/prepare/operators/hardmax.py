"""Hardmax before operator set 13 takes all axes from its own on for one; onnx's converter overlooks that.

References:
    ONNX operator Hardmax, versions 11 and 13: from 13 on it works along one axis, which by default is the last.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk

CHANGED_IN = 13
"""The operator set from which on it works along one axis."""


def flatten(model: ir.Model) -> None:
    """Spell out what each Hardmax of an older model does: to a matrix, along its rows, and back to the shape.

    One along the last axis means the same in every version; its axis is written down, since the default is another.
    """
    if walk.opset(model) >= CHANGED_IN:
        return
    names = walk.Names(model)
    for node in list(walk.all_nodes(model.graph)):
        if node.op_type == "Hardmax" and node.domain == "" and node.inputs[0] is not None:
            _flatten(node, names)


def _flatten(node: ir.Node, names: walk.Names) -> None:
    graph, source, output = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(graph, ir.Graph) and source is not None
    axis, rank = walk.attr_int(node, "axis", 1), walk.rank(source)
    if rank is not None and axis % max(rank, 1) == rank - 1:
        node.attributes["axis"] = ir.AttrInt64("axis", rank - 1)
        return
    base = output.name or "hardmax"
    shape = ir.Value(name=names.value(f"{base}_shape"), type=ir.TensorType(ir.DataType.INT64))
    matrix = ir.Value(name=names.value(f"{base}_matrix"), type=source.type, shape=ir.Shape([None, None]))
    graph.insert_before(
        node,
        [
            ir.Node("", "Shape", [source], outputs=[shape], name=names.node(f"{node.name}_shape")),
            ir.Node(
                "",
                "Flatten",
                [source],
                [ir.AttrInt64("axis", axis)],
                outputs=[matrix],
                name=names.node(f"{node.name}_flatten"),
            ),
        ],
    )
    node.replace_input_with(0, matrix)
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    full = ir.Node("", "Reshape", [None, shape], num_outputs=1, name=names.node(f"{node.name}_reshape"))
    graph.insert_after(node, full)
    edit.take_over(output, full.outputs[0])
    output.name, output.shape = names.value(f"{base}_rows"), matrix.shape
    full.replace_input_with(0, output)
