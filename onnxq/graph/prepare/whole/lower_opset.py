"""A model of an operator set that runtimes do not know in full gets an older one where its operators are the same."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxq.graph import walk

NEWEST = 27
"""The newest operator set whose QuantizeLinear and DequantizeLinear ONNX Runtime computes (those of 25)."""


def run(model: ir.Model, newest: int = NEWEST) -> bool:
    """Import an older default operator set, if every node means the same in it; nodes are not changed.

    A version of an operator that only takes further element types counts as the same.

    Returns:
        Whether the model was changed.
    """
    version = walk.opset(model)
    if version <= newest or model.functions:
        return False
    nodes = [node for node in walk.all_nodes(model.graph) if node.domain == ""]
    if not all(_means_the_same(node, version, newest) for node in nodes):
        return False
    model.opset_imports[""] = newest
    for graph in walk.all_graphs(model.graph):
        graph.opset_imports[""] = newest
    return True


def _means_the_same(node: ir.Node, newer: int, older: int) -> bool:
    try:
        new, old = (onnx.defs.get_schema(node.op_type, version) for version in (newer, older))
    except onnx.defs.SchemaError:
        return False
    return new.since_version == old.since_version or _form(new) == _form(old)


def _form(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    attributes = {
        name: (attribute.type, attribute.required, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
    }
    ends = [(value.name, value.option) for value in (*schema.inputs, *schema.outputs)]
    return attributes, ends
