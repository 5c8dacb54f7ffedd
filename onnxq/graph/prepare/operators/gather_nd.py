"""GatherND over the first axis of a constant, written as the Gather that it is.

PyTorch's exporter indexes a stack of experts with it, and tables too. Gather has packed forms, GatherND has none.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk

_SQUEEZES = 13
"""The operator set from which on the axes of Squeeze are an input."""


def run(model: ir.Model) -> int:
    """Rewrite every GatherND whose indices have one number each and whose data is a constant of floats. Exact.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < _SQUEEZES:
        return 0
    names = walk.Names(model)
    found = [node for graph in walk.all_graphs(model.graph) for node in graph if _is_gather(node)]
    for node in found:
        _rewrite(node, names)
    return len(found)


def _is_gather(node: ir.Node) -> bool:
    if node.op_type != "GatherND" or node.domain != "" or walk.attr_int(node, "batch_dims", 0):
        return False
    array, indices = walk.const_array(node.inputs[0]), walk.dims(node.inputs[1])
    return array is not None and array.ndim > 1 and array.dtype.kind in "fV" and bool(indices and indices[-1] == 1)


def _rewrite(node: ir.Node, names: walk.Names) -> None:
    graph, indices = node.graph, node.inputs[1]
    assert graph is not None and indices is not None
    dims = walk.dims(indices)
    assert dims is not None
    flat = edit.axes_node(
        graph, "Squeeze", indices, [len(dims) - 1], names, name=f"{node.name}_numbers", gives=f"{indices.name}_numbers"
    )
    graph.insert_before(node, flat)
    node.op_type, node.version = "Gather", None
    node.attributes.clear()
    node.attributes["axis"] = ir.AttrInt64("axis", 0)
    edit.set_input(node, 1, flat.outputs[0])
