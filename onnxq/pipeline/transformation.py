"""Float-equivalent rewrites between preparing and planning: those that need statistics, and fusion."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError
from onnxq.graph.prepare import prepare
from onnxq.graph.walk import all_nodes
from onnxq.passes.awq_scales import scale_for_weights
from onnxq.passes.equalize import absorb_biases, equalize
from onnxq.passes.smooth import Smoothed, smooth, smoothable
from onnxq.pipeline.preparation import Clock, Data, Prepared, look
from onnxq.pipeline.statistics_for_plan import gather
from onnxq.plan.decisions import Plan
from onnxq.plan.make_plan import Wanted, make_plan
from onnxq.plan.weights.levels import choose_levels, rounded_inputs
from onnxq.plan.weights.needed_moments import moments_of
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.fuse import NORM_OPSET, fuse
from onnxq.runtime.minima import channel_minima
from onnxq.runtime.sampled_rows import sample_rows
from onnxq.runtime.session import session_of
from onnxq.runtime.synthetic import runnable_feed
from onnxq.targets import Target

_ROWS = 512
"""Rows of a layer's input that exponents are tried on, about."""

_LEVEL_FEEDS = 8
"""Samples that are run for accuracy levels: massive activations stand in the same channels of all of them."""


@dataclass
class Transformed:
    """What rewriting did.

    Attributes:
        notes: warnings, one line each.
        searched: some input was smoothed by an exponent that was searched.
    """

    notes: list[str] = field(default_factory=list)
    searched: bool = False


def transform(
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data | None,
    threads: int | None,
    clock: Clock,
    *,
    smoothing: bool = True,
) -> Transformed:
    """Rewrite the prepared model as the recipe asks, without changing what it computes in float.

    Args:
        prepared: its model is changed or replaced.
        recipe: what is asked for.
        target: what the runtime is good at.
        data: samples; None where there are none.
        threads: threads an operator may use.
        clock: takes the time.
        smoothing: False leaves out smoothing, whatever the recipe says.

    Raises:
        RecipeError: what the recipe asks for needs samples and there are none.
    """
    done = Transformed()
    notes = done.notes
    if recipe.fuse is not None:
        with clock.step("fuse"):
            notes += _fuse(prepared, recipe.fuse, target, data, threads)
    if recipe.equalize:
        with clock.step("equalize"):
            notes += _equalize(prepared, data, threads)
    if recipe.smooths and smoothing:
        _smooth(prepared, recipe, target, data, threads, clock, done)
    if uses_awq(recipe):
        notes += _awq(prepared, recipe, target, data, threads, clock)
    return done


def _equalize(prepared: Prepared, data: Data | None, threads: int | None) -> list[str]:
    done = equalize(prepared.model)
    if not done.pairs:
        return ["--equalize: no two layers have only Relu, MaxPool and the like between them, so nothing was equalized"]
    if data is None:
        return []
    samples = data.calibration

    def lowest(axes: dict[str, int]) -> dict[str, Array]:
        return channel_minima(prepared.model, axes, samples, threads=threads)

    absorb_biases(prepared.model, lowest)
    return []


def _fuse(prepared: Prepared, model_type: str, target: Target, data: Data | None, threads: int | None) -> list[str]:
    feed = data.first if data is not None else runnable_feed(session_of(prepared.model, threads=threads))
    # The library writes LayerNormalization, which ONNX has from operator set 17 on.
    prepare(prepared.model, min_opset=max(target.min_opset, NORM_OPSET))
    # Residual sums stay apart where the kernel that joins them with a normalization is the slower one.
    fused = fuse(prepared.model, model_type, feed, skip_norms=not target.slow_norms, threads=threads)
    if fused.model is None:
        return [fused.note]
    prepared.model = fused.model
    names = [node.name or "" for node in all_nodes(fused.model.graph)]
    prepared.sources = {name: prepared.sources.get(name, (name,)) for name in names}
    return []


def uses_awq(recipe: Recipe) -> bool:
    """Whether some weights are scaled by AWQ, so that saved statistics do not fit the model any more."""
    return "awq" in (recipe.algorithm, *(rule.algorithm for rule in recipe.rules))


def _awq(
    prepared: Prepared, recipe: Recipe, target: Target, data: Data | None, threads: int | None, clock: Clock
) -> list[str]:
    if data is None:
        raise RecipeError(
            "--algorithm awq: needs samples, for it changes the float model that --stats belongs to; give --calibration"
        )
    notes: list[str] = []
    with clock.step("plan"):
        plan = _plan(prepared, recipe, target, data, threads)
    read = moments_of(prepared.model, plan, "awq")
    wanted = Wanted((), second_moments=read, channel_peaks=tuple(read))
    # a copy is run: groups that come later see the model as it was
    statistics = gather(prepared.model.clone(), wanted, recipe, data.calibration, threads, clock, notes)
    with clock.step("transform"):
        scaled = scale_for_weights(prepared.model, plan, statistics)
    added = [name for name, where in scaled.items() if where.added is not None]
    if added:
        notes.append(
            f"AWQ: {len(added)} of {len(scaled)} scaled layer inputs have a Mul of their own (the first {added[0]!r}): "
            "what precedes them is read elsewhere too, or cannot take up scales"
        )
    return notes


def _plan(prepared: Prepared, recipe: Recipe, target: Target, data: Data, threads: int | None) -> Plan:
    """What would become of the model as it is."""
    seen = look(prepared, data, None, threads)
    return make_plan(
        prepared.model, recipe, target, seen.shapes, seen.dtypes, prepared.sources, op_types=prepared.op_types
    )


def _smooth(
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data | None,
    threads: int | None,
    clock: Clock,
    done: Transformed,
) -> None:
    if data is None:
        raise RecipeError(
            "--smooth: needs samples, for it changes the float model that --stats belongs to; give --calibration"
        )
    with clock.step("plan"):
        plan = _plan(prepared, recipe, target, data, threads)
        alphas = {name: recipe.smooth_for(prepared.sources.get(name, (name,))) for name in plan.nodes}
        groups = smoothable(prepared.model, plan, {name: alpha for name, alpha in alphas.items() if alpha is not None})
    if not groups:
        done.notes.append(
            "--smooth: nothing was smoothed, for no MatMul or Gemm with a weight of its own rounds its input with "
            f"preset {recipe.preset}"
        )
        return
    wanted = Wanted((), channel_peaks=tuple(groups))
    statistics = gather(prepared.model, wanted, recipe, data.calibration, threads, clock, done.notes)
    searched = [name for name, group in groups.items() if group.alpha == "auto"]
    with clock.step("transform"):
        rows = sample_rows(prepared.model, searched, data.calibration, rows=_ROWS, threads=threads)
        found = smooth(prepared.model, plan, groups, statistics, rows)
    done.searched = any(found[name].scaled is not None for name in searched if name in found)
    done.notes += _said_of_smoothing(found)


def _said_of_smoothing(found: dict[str, Smoothed]) -> list[str]:
    changed = {name: each.scaled for name, each in found.items() if each.scaled is not None}
    if not changed:
        return [
            f"--smooth: nothing was smoothed; leaving the inputs of all {sum(len(s.layers) for s in found.values())} "
            "layers as they are has the smallest error"
        ]
    added = [name for name, scaled in changed.items() if scaled.added is not None]
    if not added:
        return []
    return [
        f"--smooth: {len(added)} of {len(changed)} smoothed layer inputs have a Mul of their own (the first "
        f"{added[0]!r}): what precedes them is read elsewhere too, or cannot take up scales"
    ]


def settle_levels(
    prepared: Prepared, recipe: Recipe, target: Target, data: Data | None, threads: int | None, clock: Clock
) -> tuple[Recipe, list[str]]:
    """Choose the accuracy level of each layer with packed weights by what samples show, where the user did not.

    Returns:
        The recipe with rules for layers whose kernels must not round their inputs, and warnings.
    """
    if (
        data is None
        or recipe.accuracy_level is not None
        or all(preset.weights != "blocks" for preset in recipe.presets)
    ):
        return recipe, []
    with clock.step("plan"):
        plan = _plan(prepared, recipe, target, data, threads)
        layers = rounded_inputs(prepared.model, plan, recipe)
    if not layers:
        return recipe, []
    with clock.step("calibrate"):
        rows = sample_rows(
            prepared.model, list(layers), data.calibration, rows=_ROWS, feeds=_LEVEL_FEEDS, threads=threads
        )
    with clock.step("plan"):
        return choose_levels(prepared.model, plan, recipe, layers, rows)
