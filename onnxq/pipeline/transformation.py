"""Float-equivalent rewrites between preparing and planning: those that need statistics, and fusion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import RecipeError
from onnxq.graph.attention.plain_attention import RunFacts
from onnxq.graph.edit import copy_of
from onnxq.graph.prepare import prepare
from onnxq.graph.types import Model
from onnxq.graph.walk import all_nodes
from onnxq.passes.awq_scales import scale_for_weights
from onnxq.passes.equalize import absorb_biases, equalize
from onnxq.passes.rotate import Rotated, rotate
from onnxq.passes.smooth import Smoothed, smooth, smoothable
from onnxq.passes.value_heads import value_heads
from onnxq.pipeline.channels.finer_sums import finer_sums
from onnxq.pipeline.collection import collect_statistics
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.held_out import compared
from onnxq.pipeline.learned.reconstructing import check_learning
from onnxq.pipeline.learned.rotating import OPTION, learned_turns
from onnxq.pipeline.planning import seen_by
from onnxq.plan.make_plan import Wanted, make_plan
from onnxq.plan.weights.levels import choose_levels, rounded_inputs
from onnxq.plan.weights.needed_moments import moments_of
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.fuse import NORM_OPSET, TOLERANCE, farthest_apart, fuse
from onnxq.runtime.minima import channel_minima
from onnxq.runtime.probe import probe
from onnxq.runtime.sampled_rows import sample_rows
from onnxq.runtime.session import session_of
from onnxq.runtime.synthetic import runnable_feed

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
        learned: the matrices of a rotation have learned.
    """

    notes: list[str] = field(default_factory=list)
    searched: bool = False
    learned: bool = False


def transform(job: Job, *, smoothing: bool = True) -> Transformed:
    """Rewrite the prepared model as the recipe asks, without changing what it computes in float.

    Args:
        job: its model is changed or replaced.
        smoothing: False leaves out smoothing, whatever the recipe says.

    Raises:
        RecipeError: what the recipe asks for needs samples and there are none.
    """
    done = Transformed()
    recipe, clock = job.recipe, job.clock
    if recipe.fuse is not None:
        with clock.step("fuse"):
            done.notes += _fuse(job, recipe.fuse)
    if recipe.rotate:
        with clock.step("rotate"):
            _rotate(job, done)
    if recipe.equalize:
        with clock.step("equalize"):
            done.notes += _equalize(job)
    if recipe.smooths and smoothing:
        _smooth(job, done)
    if uses_awq(recipe):
        done.notes += _awq(job)
    with clock.around("transform"):
        done.notes += finer_sums(job)
    return done


def _equalize(job: Job) -> list[str]:
    prepared, data = job.prepared, job.data
    done = equalize(prepared.model)
    if not done.pairs:
        return ["--equalize: no two layers have only Relu, MaxPool and the like between them, so nothing was equalized"]
    if data is None:
        return []
    samples = data.calibration

    def lowest(axes: dict[str, int]) -> dict[str, Array]:
        return channel_minima(prepared.model, axes, samples, threads=job.threads)

    absorb_biases(prepared.model, lowest)
    return []


def _fuse(job: Job, model_type: str) -> list[str]:
    prepared, target, threads = job.prepared, job.target, job.threads
    feed = job.data.first if job.data is not None else runnable_feed(session_of(prepared.model, threads=threads))
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


def _rotate(job: Job, made: Transformed) -> None:
    """Turn residual streams and heads; what would change the outputs is taken back."""
    prepared, threads, data = job.prepared, job.threads, job.data
    if job.statistics is not None and data is None:
        raise RecipeError(
            "--rotate: changes the float model that --stats belongs to, so it needs samples; pass --calibration"
        )
    if job.recipe.learn_rotation:
        check_learning(job, OPTION)
    model = prepared.model
    feed = data.first if data is not None else runnable_feed(session_of(model, threads=threads))
    turned, done, reasons = turned_copy(model, feed, threads, job.recipe.seed)
    left = [*done.reasons, *reasons]
    said = f" ({left[0]}{f'; and {len(left) - 1} more' if len(left) > 1 else ''})" if left else ""
    if not done.streams and not done.heads:
        made.notes.append(f"--rotate: nothing was turned{said}")
        return
    expected = session_of(model, threads=threads).run(feed)

    def apart(other: Model) -> float:
        return farthest_apart(expected, session_of(other, threads=threads).run(feed))

    changed = apart(turned)
    if not changed <= TOLERANCE:
        made.notes.append(
            f"--rotate: not used, the float outputs would change by {changed:.1e}, more than {TOLERANCE:.0e}"
        )
        return
    prepared.model = turned
    if left:
        made.notes.append(
            f"--rotate: turned {done.streams} residual stream(s) and the heads of {done.heads} layer(s), others "
            f"not{said}"
        )
    if job.recipe.learn_rotation:
        plan = make_plan(turned, job.recipe, job.target, seen_by(job))
        learned, note = learned_turns(job, turned, plan)
        made.notes.append(note)
        if learned is not turned and apart(learned) <= TOLERANCE:
            prepared.model, made.learned = learned, True


def turned_copy(model: Model, feed: Feed, threads: int | None, seed: int = 0) -> tuple[Model, Rotated, list[str]]:
    """A copy whose residual streams and heads are turned, what was turned, and why heads were not.

    Args:
        model: float; unchanged.
        feed: a sample that it runs on.
        threads: threads an operator may use.
        seed: of the matrices.
    """
    shapes = {name: info.shape for name, info in probe(model, feed, threads=threads).items()}
    turned = copy_of(model)
    heads, reasons = value_heads(turned, RunFacts(shapes))
    return turned, rotate(turned, heads, seed), reasons


def uses_awq(recipe: Recipe) -> bool:
    """Whether some weights are scaled by AWQ, so that saved statistics do not fit the model any more."""
    return "awq" in (recipe.algorithm, *(rule.algorithm for rule in recipe.rules))


def unused_statistics(recipe: Recipe) -> list[str]:
    """A line where a recipe changes the float model that saved statistics are of, so that samples are run anew."""
    what = "rotation" if recipe.rotate else "AWQ" if uses_awq(recipe) else "smoothing" if recipe.smooths else None
    return [] if what is None else [f"--stats: {what} changes the float model that it is of, so the samples are run"]


def _awq(job: Job) -> list[str]:
    prepared, data, clock = job.prepared, job.data, job.clock
    if data is None:
        raise RecipeError(
            "--algorithm awq: needs samples, for it changes the float model that --stats belongs to; pass --calibration"
        )
    notes: list[str] = []
    with clock.step("plan"):
        plan = make_plan(prepared.model, job.recipe, job.target, seen_by(job))
    read = moments_of(prepared.model, plan, "awq")
    wanted = Wanted((), second_moments=read, channel_peaks=tuple(read))
    # a copy is run: groups that come later see the model as it was
    copy = replace(job, prepared=replace(prepared, model=prepared.model.clone()))
    statistics = collect_statistics(copy, wanted, data.calibration, notes)
    with clock.step("transform"):
        scaled = scale_for_weights(prepared.model, plan, statistics)
    added = [name for name, where in scaled.items() if where.added is not None]
    if added:
        notes.append(
            f"AWQ: {len(added)} of {len(scaled)} scaled layer inputs have a Mul of their own (the first {added[0]!r}): "
            "what precedes them is read elsewhere too, or cannot take up scales"
        )
    return notes


def _smooth(job: Job, done: Transformed) -> None:
    prepared, recipe, data, clock = job.prepared, job.recipe, job.data, job.clock
    if data is None:
        raise RecipeError(
            "--smooth: needs samples, for it changes the float model that --stats belongs to; pass --calibration"
        )
    with clock.step("plan"):
        plan = make_plan(prepared.model, recipe, job.target, seen_by(job))
        alphas = {name: recipe.smooth_for(prepared.sources.get(name, (name,))) for name in plan.nodes}
        groups = smoothable(prepared.model, plan, {name: alpha for name, alpha in alphas.items() if alpha is not None})
    if not groups:
        done.notes.append(
            "--smooth: nothing was smoothed, for no MatMul or Gemm with a weight of its own rounds its input with "
            f"preset {recipe.preset}"
        )
        return
    wanted = Wanted((), channel_peaks=tuple(groups))
    statistics = collect_statistics(job, wanted, data.calibration, done.notes)
    searched = [name for name, group in groups.items() if group.alpha == "auto"]
    with clock.step("transform"):
        rows = sample_rows(prepared.model, searched, data.calibration, rows=_ROWS, threads=job.threads)
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


def settle_levels(job: Job) -> tuple[Recipe, list[str]]:
    """Choose the accuracy level of each layer with packed weights by what samples show, where the user did not.

    Returns:
        The recipe with rules for layers whose kernels must not round their inputs, and warnings.
    """
    recipe, data, clock, model = job.recipe, job.data, job.clock, job.prepared.model
    if (
        data is None
        or job.spill is not None
        or recipe.accuracy_level is not None
        or all(preset.weights != "blocks" for preset in recipe.presets)
    ):
        return recipe, []
    with clock.step("plan"):
        plan = make_plan(model, recipe, job.target, seen_by(job))
        layers = rounded_inputs(model, plan, recipe)
    if not layers:
        return recipe, []
    with clock.step("calibrate"):
        rows = sample_rows(model, list(layers), data.calibration, rows=_ROWS, feeds=_LEVEL_FEEDS, threads=job.threads)
    with clock.step("plan"):
        return choose_levels(model, plan, recipe, layers, rows)


def why_unsmoothed(smoothed: Model, plain: Model, job: Job) -> str | None:
    """A warning, if the model without smoothing has the smaller error on held-out samples.

    The search of the exponents sees one layer at a time. What scales do to values in between, which take them up on
    their way into the weights before, only shows in the whole model.

    Args:
        smoothed: quantized, with smoothing.
        plain: quantized, without.
        job: holds the float model and the samples.
    """
    found = compared([smoothed, plain], job)
    if found is None:
        return None
    with_it, without = found
    if with_it.sqnr_db is None or without.sqnr_db is None or with_it.sqnr_db >= without.sqnr_db:
        return None
    return (
        f"--smooth: nothing was smoothed, since held-out samples have an SQNR of {without.sqnr_db:.1f} dB without and "
        f"{with_it.sqnr_db:.1f} dB with it; name an exponent to insist, such as --smooth 0.5"
    )
