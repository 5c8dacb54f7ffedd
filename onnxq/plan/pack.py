"""Quantize all weights that kernels read packed, in the order in which the statistics of their inputs come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxq.errors import CalibrationError
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Node
from onnxq.plan.constants import Weights
from onnxq.plan.decisions import WEIGHT, NodePlan, Plan
from onnxq.plan.moments import layer_input
from onnxq.plan.weight_only import weight_rewrite
from onnxq.recipe import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.stats.base import InputStatistics, Statistics


def pack_weights(
    nodes: Mapping[str, Node], plan: Plan, weights: Weights, statistics: Statistics | None, notes: list[str]
) -> dict[str, WeightRewrite]:
    """Quantize the weights of every node with a `WEIGHT` plan.

    Layers with a common input are taken together, in the order of the first: statistics that do not fit in memory all
    at once come group by group (`Statistics.of_input`), each group once.

    Args:
        nodes: the nodes of the prepared model.
        plan: the decisions.
        weights: what is quantized already.
        statistics: with second moments, where the plan needs them.
        notes: lines for the user are appended.

    Raises:
        CalibrationError: statistics that do not fit a weight; the message names the layer.
    """
    packed: dict[str, WeightRewrite] = {}
    unseen: list[str] = []
    scarce: list[tuple[str, int, int]] = []
    for name in _by_input(nodes, plan):
        node_plan, known = plan.nodes[name], None
        if node_plan.algorithm in ALGORITHMS_WITH_DATA:
            known = _known(nodes[name], statistics)
            if known is None:
                node_plan = replace(node_plan, algorithm=ALGORITHM_WITHOUT_DATA)
                unseen.append(name)
            elif known.moment.channels is not None and known.moment.rows < known.moment.channels:
                scarce.append((name, known.moment.rows, known.moment.channels))
        try:
            packed[name] = weight_rewrite(nodes[name], node_plan, weights, known)
        except CalibrationError as error:
            raise CalibrationError(f"{node_plan.op_type} {name!r}: {error}") from None
    if unseen:
        notes.append(
            f"layer {unseen[0]!r}{_more(unseen)}: calibration saw none of its input (is it in a body of If, Loop or "
            f"Scan?), so its weight was rounded by {ALGORITHM_WITHOUT_DATA}"
        )
    if scarce:
        name, rows, channels = max(scarce, key=lambda entry: entry[2] / entry[1])
        notes.append(
            f"layer {name!r}{_more(scarce)}: calibration saw {rows} rows of its input of {channels} channels; "
            "with more samples than channels its weight can be rounded better"
        )
    return packed


def _more(names: list[str] | list[tuple[str, int, int]]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _by_input(nodes: Mapping[str, Node], plan: Plan) -> list[str]:
    """Names of the nodes with packed weights: those without second moments first, then by input."""
    by_input: dict[str, list[str]] = {"": []}
    for name, node_plan in plan.nodes.items():
        if node_plan.action == WEIGHT:
            read = layer_input(nodes[name]) if _needs_data(node_plan) else None
            by_input.setdefault(read[0] if read else "", []).append(name)
    return [name for names in by_input.values() for name in names]


def _needs_data(plan: NodePlan) -> bool:
    return plan.algorithm in ALGORITHMS_WITH_DATA


def _known(node: Node, statistics: Statistics | None) -> InputStatistics | None:
    read = layer_input(node)
    return statistics.of_input(read[0]) if statistics is not None and read is not None else None
