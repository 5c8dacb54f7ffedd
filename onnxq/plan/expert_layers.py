"""Plan nodes whose weights are packed; a mixture of experts in one node has a form of its own."""

from __future__ import annotations

from onnxq.core.spec import TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.experts import holds_experts, stacks_of
from onnxq.graph.types import Node
from onnxq.plan.activations.dynamic import plan_dynamic
from onnxq.plan.decisions import WEIGHT, NodePlan
from onnxq.plan.placement.select import Choice
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.weight_only import (
    EXPERTS,
    FAST_LEVEL,
    block_sizes,
    block_spec,
    grid,
    packed_tensor,
    plan_weight,
    table_algorithm,
    weight_rewrite,
)
from onnxq.recipe.presets import Preset
from onnxq.recipe.recipe import Recipe
from onnxq.stats.statistics import InputStatistics
from onnxq.targets import Target


def plan_packed(
    node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice, opset: int, *, inside: bool = False
) -> NodePlan | str:
    """As `plan_weight`, experts too; a table that no kernel unpacks along its axis is scaled once gathered."""
    if not holds_experts(node):
        planned = plan_weight(node, preset, recipe, target, choice, opset, inside=inside)
        if isinstance(planned, str) and node.op_type == "Gather" and walk.attr_int(node, "axis"):
            return plan_dynamic(node, preset, recipe, target, choice)
        return planned
    if preset.weights != "blocks":
        return "experts in one node are packed in blocks alone: with w8, w4 or w2"
    if not target.expert_levels:
        return "the installed onnxruntime packs experts in one node in another way; it takes 1.25 or later"
    stacks = stacks_of(node)
    if isinstance(stacks, str):
        return stacks
    bits = choice.rule.bits or recipe.bits or preset.bits
    widths = {stack.shape[1] for stack in stacks.values()}
    if any(width * bits % 8 for width in widths):
        return f"rows of {min(widths)} weights of {bits} bits are no whole bytes, and QMoE reads such rows"
    spec, notes = _spec(node, bits, widths, recipe, choice)
    asked = recipe.accuracy_level if choice.rule.accuracy_level is None else choice.rule.accuracy_level
    level = FAST_LEVEL if asked is None else asked
    if not max(target.expert_levels):
        level = 0
    if asked and not level:
        notes.append(f"accuracy level {asked} is left out: the installed onnxruntime has no levels for experts")
    if bits == 8 and level != FAST_LEVEL and spec != grid(bits, 0, recipe):
        spec = grid(bits, 0, recipe)
        notes.append(f"one scale a column: in blocks of 8 bits QMoE has no kernel at accuracy level {level}")
    if (choice.rule.algorithm or recipe.algorithm or "rtn") != table_algorithm(recipe, choice):
        notes.append(f"rounded by {table_algorithm(recipe, choice)}: which tokens an expert sees is not calibrated")
    return NodePlan(
        node.name or "",
        node.op_type,
        WEIGHT,
        "; ".join(notes),
        weights=dict.fromkeys(stacks, spec),
        form=EXPERTS,
        algorithm=table_algorithm(recipe, choice),
        accuracy_level=level,
    )


def _spec(node: Node, bits: int, widths: set[int], recipe: Recipe, choice: Choice) -> tuple[TensorSpec, list[str]]:
    """The grid that all stacks of a node have: its blocks divide their rows.

    Raises:
        RecipeError: the user asks for blocks that do not.
    """
    spec = block_spec(node, (0, max(widths)), bits, recipe, choice)
    sizes = [size for size in block_sizes(bits) if not any(width % size for width in widths)]
    size = getattr(spec.granularity, "size", 0)
    if not size or size in sizes:
        return spec, []
    if recipe.block_size or choice.rule.block_size:
        allowed = ", ".join(map(str, sizes)) + " or " if sizes else ""
        raise RecipeError(
            f"{node.op_type} {node.name!r}: blocks of {size} do not divide its rows of "
            f"{' and '.join(map(str, sorted(widths)))}; use {allowed}0 for one scale a column"
        )
    smaller = max([each for each in sizes if each < size], default=0)
    what = f"blocks of {smaller}" if smaller else "one scale a column"
    return grid(bits, smaller, recipe), [f"{what}: blocks of {size} do not divide its rows"]


def packed_rewrite(node: Node, plan: NodePlan, weights: Weights, statistics: InputStatistics | None) -> WeightRewrite:
    """As `weight_rewrite`, experts too."""
    if plan.form != EXPERTS:
        return weight_rewrite(node, plan, weights, statistics)
    stacks = stacks_of(node)
    assert not isinstance(stacks, str)
    tensors = {
        position: packed_tensor(stacks[position], spec, plan.algorithm, weights, None)
        for position, spec in plan.weights.items()
    }
    return WeightRewrite(plan.form, tensors, plan.accuracy_level, algorithm=plan.algorithm)
