"""Models that were trained with fake quantization: their grids are kept, and what they lack is planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.prepare import STEPS, prepare
from onnxq.graph.reading import origin
from onnxq.graph.trained.folded_grids import on_grids
from onnxq.graph.trained.lift import comes_trained, lift
from onnxq.graph.trained.weights_again import find_again
from onnxq.graph.types import Model
from onnxq.pipeline.float_model import Prepared
from onnxq.plan.decisions import INTEGER, Fixed, Plan, SharedWith
from onnxq.plan.given import Given, Training
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.targets import Target

_STILL = frozenset(
    {"functions", "opset", "hoist", "ahead", "pool_order", "stacks", "focus", "axes_pairs", "softmax_axis"}
)
"""Steps of preparing that move or scale activations, whose grids would then be those of other numbers, or channels of
weights, whose integers are looked for in their old places."""


def wants_training(recipe: Recipe) -> bool:
    """Whether a recipe puts activations on fixed grids, so that those of training can be kept."""
    names = (recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset))
    return any(name == "auto" or PRESETS[name].activations == "static" for name in names)


def take_training(prepared: Prepared, target: Target) -> None:
    """Take the fake quantization out of a model that was trained with it; of other models nothing changes.

    Args:
        prepared: its model is changed in place and ``training`` set.
        target: what will run it.
    """
    model = prepared.model
    if not prepared.has_qdq:
        return
    folded = on_grids(model)
    if not folded and not comes_trained(model, prepared.folded_weights):
        return
    before, known = origin.remember(model), prepared.sources
    lifted = lift(model, target.activation, target.weight)
    if not lifted.values:
        return
    lifted.weights.update(folded)
    prepare(model, min_opset=walk.opset(model), without=_STILL & STEPS.keys())
    prepared.sources = {
        name: tuple(dict.fromkeys([name, *(given for old in names for given in known.get(old, (old,)))]))
        for name, names in origin.sources(before, model).items()
    }
    found = find_again(model, lifted.weights, target.activation, target.weight)
    there = {value.name for value in walk.all_values(model.graph)}
    fixed: dict[str, Fixed] = {}
    for name, grid in lifted.values.items():
        params = grid.params()
        whole = (grid.low, grid.high) == (params.spec.qmin, params.spec.qmax)
        if name in there:
            fixed[name] = Fixed(params, None if whole else (grid.low, grid.high))
    nodes = {name: names for name, names in lifted.nodes.items() if name in fixed}
    prepared.training = Training(Given(fixed, found, nodes), len(lifted.values), len(lifted.weights), lifted.refused)


def check_training(recipe: Recipe) -> None:
    """Refuse what would change the float model under the grids that it was trained on.

    Raises:
        RecipeError: the recipe asks for such a thing.
    """
    asked = {
        "--equalize": recipe.equalize,
        "--smooth": recipe.smooths,
        "--fuse": recipe.fuse is not None,
        "--adaround": recipe.learns,
        "--reconstruct": recipe.reconstructs,
    }
    for option, given in asked.items():
        if given:
            raise RecipeError(
                f"{option}: the model brings the scales and weights that it was trained with, and they would fit no "
                "longer; leave the option out, or pass the float model"
            )


def rename(model: Model, given: Given) -> None:
    """Give the Q and DQ of values that were trained with them the names that they had."""
    taken = {node.name for node in walk.all_nodes(model.graph)}
    for node in walk.all_nodes(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or source.name is None:
            continue
        readers = list(node.outputs[0].consumers())
        behind = readers[0] if len(readers) == 1 else None
        if behind is not None and behind.op_type == "Clip":
            behind = walk.only_use(behind.outputs[0])
        output = behind.outputs[0].name if behind is not None and behind.op_type == "DequantizeLinear" else None
        names = given.nodes.get(source.name) or given.nodes.get(output or "")
        for each, name in zip((node, behind), names or (), strict=False):
            if each is not None and name and name not in taken:
                each.name = name
                taken.add(name)


def kept_and_added(training: Training, plan: Plan, rounded: Sequence[str]) -> dict[str, Any]:
    """What became of a model's training, as plain data.

    Args:
        training: what the model brought.
        plan: what became of its nodes and values.
        rounded: values that are rounded as in training although nothing on integers reads them.

    Returns:
        ``kept`` and ``given``: scales of activations and weights that the model brought and that were used; ``added``:
        names of the activations that got a scale, and how many biases became int32; ``refused``: reasons and counts.
    """
    used = {id(decision.params) for decision in plan.values.values() if isinstance(decision, Fixed)}
    own = {id(fixed.params) for fixed in training.given.values.values()}
    trained = sum(node.trained for node in plan.nodes.values())
    added = [
        name
        for name, decision in plan.values.items()
        if not isinstance(decision, SharedWith) and not (isinstance(decision, Fixed) and id(decision.params) in own)
    ]
    layers = [node for node in plan.nodes.values() if node.action == INTEGER and node.op_type in ("Conv", "Gemm")]
    return {
        "kept": {"activations": len(used & own) + len(rounded), "weights": trained},
        "given": {"activations": training.values, "weights": training.weights},
        "added": {"activations": added, "biases": len(layers)},
        "refused": dict(training.refused),
    }


def said_of(facts: dict[str, Any]) -> list[str]:
    """A sentence for each reason for which something of the training was not kept."""
    return [f"trained grids, {count} not kept: {reason}" for reason, count in facts["refused"].items()]
