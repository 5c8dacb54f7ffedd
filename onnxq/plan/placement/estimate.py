"""Estimated time of a whole plan: kernels and conversions, from the target's measured rates."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.core.dtypes import QType
from onnxq.graph import walk
from onnxq.graph.reading.ops import row_of
from onnxq.graph.types import Model, Node
from onnxq.plan.decisions import DYNAMIC, FOLDED, INTEGER, Calibrated, Fixed, Keep, NodePlan, Plan, SharedWith
from onnxq.plan.placement.cost import Shapes, elements, layout_us, node_costs
from onnxq.targets import Target


def estimated_us(model: Model, plan: Plan, target: Target, shapes: Shapes) -> float:
    """Microseconds of one inference, for telling plans of one model apart.

    Nodes without a row in the operator table cost the same in every plan and are left out.

    Args:
        model: the prepared model.
        plan: decisions on it.
        target: its rates.
        shapes: shape of each value in one sample.
    """
    costs, nodes = target.costs, plan.nodes
    total = 0.0
    for node in walk.all_nodes(model.graph):
        decided, row = nodes.get(node.name or ""), row_of(node)
        if decided is None or row is None or decided.action == FOLDED:
            continue
        as_float, as_int = node_costs(node, row, shapes, costs)
        if decided.action == DYNAMIC:
            total += as_int + costs.quantize.us(elements(node.inputs[0], shapes) or 0)
        else:
            wide = target.wide_costs if _is_wide(node, plan) else 1.0
            total += wide * as_int if decided.action == INTEGER else as_float
        for value in node.inputs:
            # An operator on images is slower behind a Q than behind another integer operator.
            if value is not None and _is_integer(value.name, plan) and decided.action == INTEGER:
                producer = value.producer()
                if producer is None or not _gives_integers(producer.name, nodes):
                    total += layout_us(node, shapes, costs.behind_quantize)
    values = [*model.graph.inputs, *(value for node in walk.all_nodes(model.graph) for value in node.outputs)]
    for value in values:
        if not _is_integer(value.name, plan):
            continue
        size = elements(value, shapes) or 0
        producer = value.producer()
        if producer is None or not _gives_integers(producer.name, nodes):
            total += costs.quantize.us(size)
            if producer is not None:  # the runtime moves the Q across some operators, which are slower then
                total += layout_us(producer, shapes, costs.before_quantize)
        total += costs.quantize.us(size) + costs.dequantize.us(size) if value.name in plan.conversions else 0.0
        if value.is_graph_output() or any(not _takes_integers(user.name, nodes) for user in value.consumers()):
            total += costs.dequantize.us(size)
    return total


def _is_wide(node: Node, plan: Plan) -> bool:
    """Whether what a node writes, or reads where it writes nothing on integers, has 16 bits."""
    for value in (*node.outputs, *node.inputs):
        decision = plan.values.get(value.name or "") if value is not None else None
        while isinstance(decision, SharedWith):
            decision = plan.values.get(decision.value)
        spec = decision.spec if isinstance(decision, Calibrated) else None
        spec = decision.params.spec if isinstance(decision, Fixed) else spec
        if spec is not None:
            return spec.bits == QType.UINT16.bits
    return False


def _is_integer(name: str | None, plan: Plan) -> bool:
    decision = plan.values.get(name or "")
    return decision is not None and not isinstance(decision, Keep)


def _takes_integers(name: str | None, nodes: Mapping[str, NodePlan]) -> bool:
    decided = nodes.get(name or "")
    return decided is not None and decided.action in (INTEGER, FOLDED)


def _gives_integers(name: str | None, nodes: Mapping[str, NodePlan]) -> bool:
    return _takes_integers(name, nodes) and not nodes[name or ""].float_output
