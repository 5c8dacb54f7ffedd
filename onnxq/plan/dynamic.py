"""Plan nodes whose activations are quantized at inference."""

from __future__ import annotations

from onnxq.graph.emit.rewrite import DynamicRewrite
from onnxq.graph.types import Node
from onnxq.plan.constants import Weights
from onnxq.plan.decisions import NodePlan
from onnxq.plan.select import Choice
from onnxq.presets import Preset
from onnxq.recipe import Recipe
from onnxq.targets import Target


def plan_dynamic(node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice) -> NodePlan | str:
    """What becomes of a node whose preset quantizes activations at inference.

    Args:
        node: in the prepared model.
        preset: its preset; ``activations`` is "dynamic" or "token".
        recipe: the user's choices.
        target: what the runtime can do.
        choice: what the user said of this node.

    Returns:
        Its plan, with action `DYNAMIC`; or the reason why it stays float, whose weights may still be stored.
    """
    return "no integer kernel that quantizes activations at inference"


def dynamic_rewrite(node: Node, plan: NodePlan, weights: Weights) -> DynamicRewrite:
    """Quantize the constants of a node with a `DYNAMIC` plan."""
    return DynamicRewrite(plan.form, {i: weights.of(node, i, spec) for i, spec in plan.weights.items()})
