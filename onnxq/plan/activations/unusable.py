"""Values whose statistics, once they are there, show that 8 bits cannot stand for them."""

from __future__ import annotations

from onnxq.graph import walk
from onnxq.graph.types import Model
from onnxq.plan.activations.body_probes import never_run
from onnxq.plan.decisions import Calibrated, Plan, SharedWith
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

WIDEST_LOGITS = 128.0
"""Width of a logit above which half a step of an 8-bit grid changes a probability by a quarter and more."""

_OF_LOGITS = ("LogSoftmax", "Softmax", "Sigmoid")


def unusable_values(model: Model, plan: Plan, statistics: Statistics) -> dict[str, str]:
    """Find the values that the nodes which touch them have to stay float for.

    Those are values of which calibration saw no finite number, or nothing but zeros where nobody asked for a grid all
    the same: it would clip whatever comes later. All values of a body that never ran. And the input of a Softmax or
    Sigmoid where a mask was added to it (−10000, or −∞): beside that an 8-bit grid has no levels left for the numbers
    that matter.

    Args:
        model: the prepared model.
        plan: its plan.
        statistics: of the values that the plan calibrates.

    Returns:
        By name, what is wrong with the value.
    """
    found = never_run(model, plan, statistics)
    for name in plan.calibrated:
        decision = plan.values[name]
        zeros = isinstance(decision, Calibrated) and (decision.zeros or decision.least > 0)
        if name not in found and (reason := _nothing_seen(statistics.get(name), zeros)):
            found[name] = reason
    return {**wide_logits(model, plan, statistics), **found}


def wide_logits(model: Model, plan: Plan, statistics: Statistics) -> dict[str, str]:
    """The inputs of Softmax and Sigmoid that reach too far for 8 bits, with the values that share their grids."""
    found: dict[str, str] = {}
    for node in walk.all_nodes(model.graph):
        if node.op_type not in _OF_LOGITS or not node.inputs[0] or node.inputs[0].name not in plan.values:
            continue  # whether it computes on integers itself or reads what an integer node before it wrote
        chain = _shared(node.inputs[0].name or "", plan)
        if isinstance(plan.values[chain[-1]], Calibrated) and (reason := _masked(statistics.get(chain[-1]))):
            found |= {name: reason for name in chain if name not in found}
    return found


def never_finite(plan: Plan, statistics: Statistics) -> dict[str, str]:
    """The values of which no finite number was seen: all that stays float for engines of integers alone."""
    return {
        name: "had no finite number in calibration"
        for name in plan.calibrated
        if (found := statistics.get(name)) is None or found.low is None
    }


def _shared(name: str, plan: Plan) -> list[str]:
    """The value and those whose parameters it shares, up to the one that decides them."""
    chain = [name]
    while isinstance(decision := plan.values[chain[-1]], SharedWith):
        chain.append(decision.value)
    return chain


def _nothing_seen(statistic: ValueStatistic | None, zeros: bool) -> str:
    if statistic is None:
        return "has no statistics"
    if statistic.low is None:
        return "had no finite number in calibration"
    return "was zero in all of calibration" if statistic.low == statistic.high == 0.0 and not zeros else ""


def _masked(statistic: ValueStatistic | None) -> str:
    if statistic is None or statistic.low is None or statistic.high is None:
        return ""
    if statistic.inf_count:
        return "is masked with infinities, which no integer stands for"
    if statistic.high - statistic.low <= WIDEST_LOGITS:
        return ""
    return f"reaches from {statistic.low:.4g} to {statistic.high:.4g}: 8 bits are too few for its probabilities"
