"""Which second moments a plan needs: those of the inputs of layers whose weights are rounded by how they are used."""

from __future__ import annotations

from onnxq.graph import walk
from onnxq.graph.types import Model, Node
from onnxq.plan.decisions import FLOAT, PRESENT, Plan
from onnxq.recipe.rounding import ALGORITHMS_WITH_DATA


def layer_input(node: Node) -> tuple[str, int] | None:
    """The value that a layer multiplies its constant weight with, and how many channels it has.

    Returns:
        (name, channels); None for anything but a MatMul or Gemm that multiplies the last axis of an activation with a
        constant matrix on the right.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    source, weight = walk.input_at(node, 0), walk.const_array(walk.input_at(node, 1))
    if weight is None or weight.ndim != 2 or source is None or not source.name or walk.is_constant(source):
        return None
    if node.op_type == "MatMul":
        return source.name, weight.shape[0]
    if walk.attr_int(node, "transA"):
        return None
    return source.name, weight.shape[1 if walk.outputs_first(node) else 0]


def moments_of(model: Model, plan: Plan, *algorithms: str) -> dict[str, int]:
    """The values whose second moments a plan needs, each once, in the order of the layers that read them first.

    Args:
        model: the prepared model.
        plan: its plan.
        algorithms: count only layers with these; none given: with any that needs data.

    Returns:
        Channels by name. Layers in subgraphs of If, Loop and Scan are left out: their inputs have no statistics.
    """
    wanted = algorithms or ALGORITHMS_WITH_DATA
    found: dict[str, int] = {}
    for node in model.graph:
        planned = plan.nodes.get(node.name or "")
        if planned is None or planned.action in (FLOAT, PRESENT) or planned.algorithm not in wanted:
            continue
        read = layer_input(node)
        if read is not None:
            found.setdefault(*read)
    return found
