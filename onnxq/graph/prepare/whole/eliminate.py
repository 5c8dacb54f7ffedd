"""Nodes that do nothing at inference: Identity, Dropout, and Cast to the type a value has."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk


def run(model: ir.Model) -> int:
    """Remove them; one that gives a graph output its name passes the name on where ONNX allows.

    Returns:
        How many were removed.
    """
    return sum(_remove(node) for graph in list(walk.all_graphs(model.graph)) for node in list(graph) if _is_noop(node))


def _is_noop(node: ir.Node) -> bool:
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        return node.inputs[0].dtype is not None and node.inputs[0].dtype.value == walk.attr_int(node, "to", -1)
    return node.op_type == "Dropout" and _is_inference_dropout(node)


def _is_inference_dropout(node: ir.Node) -> bool:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if walk.attr_int(node, "is_test", 1) == 0:
        return False
    training = walk.input_at(node, 2)
    if training is None:
        return True
    array = walk.const_array(training)
    return array is not None and not array.any()


def _remove(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None and node.graph is not None
    if output.is_graph_output():
        if not edit.can_be_output(source, node.graph):
            return False
        edit.take_over(output, source)
    else:
        output.replace_all_uses_with(source)
    edit.remove_node(node)
    return True
