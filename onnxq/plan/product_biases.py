"""Biases that the kernel of a product of matrices adds, behind products that are scaled back to float at once."""

from __future__ import annotations

from dataclasses import replace

from onnxq.graph import walk
from onnxq.graph.reading.ops import bias_behind
from onnxq.graph.types import Node
from onnxq.plan.decisions import FLOAT, FOLDED, INTEGER, NodePlan, Plan
from onnxq.plan.placement.candidates import Survey
from onnxq.plan.placement.select import Selection


def with_biases(plan: Plan, found: Survey, selection: Selection) -> Plan:
    """Let a MatMul whose products go straight to float add the bias behind it; the kernel that does so reads bytes.

    Args:
        plan: with all grids.
        found: the candidates.
        selection: what the user wants float.
    """
    result = dict(plan.nodes)
    for name, planned in plan.nodes.items():
        candidate = found.candidates.get(name)
        if planned.action != INTEGER or not planned.float_output or candidate is None:
            continue
        added = bias_behind(candidate.node)
        if added is None or selection.of(added.name or "", added.op_type).excluded:
            continue
        if result[added.name or ""].action == FLOAT and _reads_bytes(plan, planned, candidate.node):
            result[name] = replace(planned, adds=added.name)
            result[added.name or ""] = NodePlan(
                added.name or "", added.op_type, FOLDED, f"its constant is added by the kernel of {name!r}"
            )
    return replace(plan, nodes=result)


def _reads_bytes(plan: Plan, planned: NodePlan, node: Node) -> bool:
    """Whether both operands are stored in 8 bits."""
    for position in (0, 1):
        value = walk.input_at(node, position)
        spec = planned.weights.get(position) or plan.grid_read(value.name or "" if value else "", planned.name)
        if spec is not None and spec.dtype.bits != 8:
            return False
    return True
