"""Constant nodes become initializers of the graph they are in."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk


def lift(model: ir.Model) -> int:
    """Turn Constant nodes into initializers; those that are outputs of a graph, or hold strings, stay.

    Returns:
        How many were turned.
    """
    lifted = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            if node.op_type != "Constant" or node.domain != "" or node.outputs[0].is_graph_output():
                continue
            output = node.outputs[0]
            array = walk.const_array(output)
            if array is None or output.name is None:
                continue
            name, dtype = output.name, _element_type(node)
            output.name = None
            value = edit.add_initializer(graph, name, array, dtype)
            output.replace_all_uses_with(value)
            edit.remove_node(node)
            lifted += 1
    return lifted


def _element_type(node: ir.Node) -> ir.DataType | None:
    attribute = node.attributes.get("value")
    tensor = None if attribute is None else walk.tensor_of(attribute)
    return None if tensor is None else tensor.dtype
