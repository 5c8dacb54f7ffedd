"""If nodes whose condition is a constant, replaced by the branch that is taken.

Exporters ask for sizes that are known once shapes are fixed. What such a branch holds can be placed, fused and
quantized with what is around it. ONNX Runtime takes these branches in too, and its optimizer then ends the process
where a branch reads a DequantizeLinear from outside.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk


def run(model: ir.Model) -> int:
    """Put the branch that is always taken in the place of its If. Exact.

    Names of nodes and values have to be unique in the whole model (see `onnxq.graph.names.make_unique`).

    Returns:
        How many nodes were replaced.
    """
    done = 0
    for node in walk.nodes_to_rewrite(model, "If"):
        branch = _taken(node)
        if branch is not None and len(branch.outputs) == len(node.outputs):
            _take_in(node, branch)
            done += 1
    return done


def _taken(node: ir.Node) -> ir.Graph | None:
    condition = walk.const_array(walk.input_at(node, 0))
    if condition is None or condition.size != 1:
        return None
    return dict(walk.subgraphs(node)).get("then_branch" if condition.item() else "else_branch")


def _take_in(node: ir.Node, branch: ir.Graph) -> None:
    graph = node.graph
    assert graph is not None
    given = list(branch.outputs)
    branch.outputs.clear()
    for name in list(branch.initializers):
        graph.register_initializer(branch.initializers.pop(name))
    inner = list(branch)
    branch.remove(inner)
    graph.insert_before(node, inner)
    for old, new in zip(list(node.outputs), given, strict=True):
        handed_on = ir.node("Identity", [new], name=f"{node.name}_{old.name}" if old.name else None)
        graph.insert_before(node, handed_on)
        edit.take_over(old, handed_on.outputs[0])
    edit.remove_node(node)
