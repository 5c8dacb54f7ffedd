"""Values that a Concat puts on one grid although they are of very different size.

Embeddings beside sums, or features beside coordinates: on a grid that reaches as far as the largest of them, the small
ones are rounded to next to nothing. Where arithmetic behind the Concat brings them to one size again, as a
normalization does, the Concat and that arithmetic in float lose nothing; a layer right behind it reads one grid
whatever the Concat runs on, and nothing would be gained.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxq.core.affine import params_from_range
from onnxq.core.error_measures import decibels
from onnxq.graph import walk
from onnxq.graph.reading.ops import Kind, row_of
from onnxq.graph.types import Model, Node, Value
from onnxq.plan.activations.low_sqnr import LEAST_SQNR_DB
from onnxq.plan.decisions import INTEGER, Calibrated, Plan, SharedWith
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

_TYPICAL = 0.5
"""The sample that stands for a value: half of the others are quieter."""


def joint_values(model: Model, plan: Plan, statistics: Statistics, *, layers: bool = False) -> dict[str, str]:
    """Find outputs of integer Concats on whose grid an input would have less than `LEAST_SQNR_DB`.

    Args:
        model: the prepared model.
        plan: its plan.
        statistics: of the values that the plan calibrates.
        layers: also find those that a layer reads, directly or moved, which can have more bits but not be float.

    Returns:
        By name of the output, what is wrong with it.
    """
    found = {}
    for node in walk.all_nodes(model.graph):
        decided = plan.nodes.get(node.name or "")
        if node.op_type != "Concat" or decided is None or decided.action != INTEGER:
            continue
        worst = _worst_input(node, plan, statistics)
        if worst is None or worst[0] >= LEAST_SQNR_DB:
            continue
        if layers or not any(map(_is_layer, _readers(node.outputs[0]))):
            found[node.outputs[0].name or ""] = (
                f"joins values of very different size: on one grid {worst[1]!r} has {max(worst[0], 0.0):.0f} dB, "
                f"and {LEAST_SQNR_DB:.0f} are needed"
            )
    return found


def _worst_input(node: Node, plan: Plan, statistics: Statistics) -> tuple[float, str] | None:
    """(SQNR in dB, name) of the input that fares worst on the grid of all; None where too little is known."""
    seen: dict[str, ValueStatistic] = {}
    spec = None
    for value in node.inputs:
        name = _decided_by(value, plan)
        decision, statistic = plan.values.get(name), statistics.get(name)
        if isinstance(decision, Calibrated) and statistic is not None and statistic.low is not None:
            spec = decision.spec
            seen[value.name or "" if value is not None else ""] = statistic
    if spec is None or len(seen) < 2:
        return None
    low = min(statistic.low for statistic in seen.values() if statistic.low is not None)
    high = max(statistic.high for statistic in seen.values() if statistic.high is not None)
    step = float(params_from_range(low, high, spec).scale.reshape(()))
    powers = {name: statistic.powers.quantile(_TYPICAL) for name, statistic in seen.items()}
    sqnr = {name: decibels(power, step**2 / 12.0) for name, power in powers.items() if power}
    return min(((db, name) for name, db in sqnr.items()), default=None)


def _decided_by(value: Value | None, plan: Plan) -> str:
    """Name of the value whose statistics decide the parameters of this one."""
    name = value.name or "" if value is not None else ""
    while isinstance(decision := plan.values.get(name), SharedWith):
        name = decision.value
    return name


def _readers(value: Value) -> Iterator[Node]:
    """The nodes that compute with a value, past those that only move it."""
    for user in value.consumers():
        row = row_of(user)
        if row is not None and row.kind is Kind.PASSING:
            for output in user.outputs:
                yield from _readers(output)
        else:
            yield user


def _is_layer(node: Node) -> bool:
    row = row_of(node)
    return row is not None and row.kind is Kind.WEIGHTED
