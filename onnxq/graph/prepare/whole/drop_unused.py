"""Nodes, optional outputs and initializers that nothing reads are dropped."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxq.graph import edit, walk

_KNOWN = frozenset({"", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview.training"})
"""Domains whose operators have no effect but their outputs; a custom one may do anything."""


def run(model: ir.Model) -> int:
    """Remove what has no influence on the outputs; inputs of the graph and custom operators stay.

    Returns:
        How many nodes, outputs of nodes and initializers were removed.
    """
    return _nodes(model.graph) + _outputs(model) + _initializers(model)


def _nodes(graph: ir.Graph) -> int:
    removed = 0
    for node in reversed(list(graph)):
        if node.domain in _KNOWN and not any(output.uses() or output.is_graph_output() for output in node.outputs):
            edit.remove_node(node)
            removed += 1
        else:
            removed += sum(_nodes(body) for _, body in walk.subgraphs(node))
    return removed


def _outputs(model: ir.Model) -> int:
    """Such as the indices of MaxPool: they are of another type than what the node is for."""
    version, removed = walk.opset(model), 0
    for node in walk.all_nodes(model.graph):
        if len(node.outputs) < 2 or node.domain != "" or _trains(node):
            continue
        for output, optional in zip(node.outputs, _optional(node.op_type, version), strict=False):
            if optional and output.name and not output.uses() and not output.is_graph_output():
                output.name = ""
                removed += 1
    return removed


def _trains(node: ir.Node) -> bool:
    """Whether it is a BatchNormalization that trains, whose further outputs may not be left out."""
    return node.op_type == "BatchNormalization" and walk.attr_int(node, "training_mode") != 0


def _optional(op_type: str, version: int) -> list[bool]:
    """For each output of an operator whether it may be left out."""
    try:
        schema = onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return []
    return [output.option == onnx.defs.OpSchema.FormalParameterOption.Optional for output in schema.outputs]


def _initializers(model: ir.Model) -> int:
    removed = 0
    for graph in walk.all_graphs(model.graph):
        for value in list(graph.initializers.values()):
            removed += edit.drop_unused_initializer(value)
    return removed
