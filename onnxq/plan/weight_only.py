"""Plan nodes whose weights are packed and whose activations stay float."""

from __future__ import annotations

from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Node
from onnxq.plan.constants import Weights
from onnxq.plan.decisions import NodePlan
from onnxq.plan.select import Choice
from onnxq.presets import Preset
from onnxq.recipe import Recipe
from onnxq.stats.base import Statistics
from onnxq.targets import Target


def plan_weight(node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice) -> NodePlan | str:
    """What becomes of a node whose preset packs weights.

    Args:
        node: in the prepared model.
        preset: its preset; ``weights`` is "blocks" or "codebook".
        recipe: the user's choices.
        target: what the runtime can do.
        choice: what the user said of this node.

    Returns:
        Its plan, with action `WEIGHT`; or the reason why it does not have packed weights, which may still be stored.
    """
    return "no kernel that reads packed weights"


def weight_rewrite(node: Node, plan: NodePlan, weights: Weights, statistics: Statistics | None) -> WeightRewrite:
    """Quantize the constants of a node with a `WEIGHT` plan."""
    return WeightRewrite(
        plan.form, {i: weights.of(node, i, spec) for i, spec in plan.weights.items()}, plan.accuracy_level
    )
