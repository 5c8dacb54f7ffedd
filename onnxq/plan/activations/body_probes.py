"""Subgraphs of If, Loop and Scan: which of them calibration has to see, and which it never saw."""

from __future__ import annotations

from collections.abc import Iterator

from onnxq.graph import walk
from onnxq.graph.types import Graph, Model, Node
from onnxq.graph.views.inner import own_values
from onnxq.plan.decisions import INTEGER, Plan
from onnxq.stats.statistics import Statistics

NEVER_RUN = "lies in a subgraph that calibration never ran"


def probed_values(model: Model, plan: Plan) -> list[str]:
    """A value of each body with integer nodes whose own values the plan has no use for: was it run at all?

    A node can read nothing but values from outside its body, and write floats. Only a value of the body itself tells
    whether it ran.
    """
    wanted = set(plan.calibrated)
    return [
        nodes[0].outputs[0].name or ""
        for body, nodes in _with_integers(model, plan)
        if not any(value.name in wanted for value in own_values(body))
    ]


def never_run(model: Model, plan: Plan, statistics: Statistics) -> dict[str, str]:
    """The values of subgraphs with integer nodes that no sample ran, each with the reason in words."""
    found: dict[str, str] = {}
    for body, _ in _with_integers(model, plan):
        names = [value.name or "" for value in own_values(body)]
        seen = [statistics[name].count for name in names if name in statistics]
        if seen and not any(seen):
            found |= dict.fromkeys(names, NEVER_RUN)
    return found


def _with_integers(model: Model, plan: Plan) -> Iterator[tuple[Graph, list[Node]]]:
    for body in walk.all_graphs(model.graph):
        nodes = [node for node in body if (p := plan.nodes.get(node.name or "")) and p.action == INTEGER]
        if body is not model.graph and nodes:
            yield body, nodes
