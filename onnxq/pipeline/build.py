"""One quantized model, in memory: transform, plan, calibrate, solve and rewrite a copy of the prepared model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from onnxq.core.processors import LARGE, blas_threads
from onnxq.graph.edit import copy_of
from onnxq.graph.emit.apply import emit
from onnxq.graph.emit.blocks import store_once
from onnxq.graph.emit.booleans import copy_booleans
from onnxq.graph.emit.norms import keep_apart
from onnxq.graph.emit.rewrite import Style
from onnxq.graph.emit.wrapped import mark_rows
from onnxq.graph.prepare.neighbours.right_sides import turn_back
from onnxq.graph.prepare.operators.prelu import write_as_max
from onnxq.graph.prepare.whole import initializer_inputs
from onnxq.graph.prepare.whole.shapes import drop_inferred
from onnxq.graph.prepare.whole.widen import narrow
from onnxq.graph.spilled import spill_to
from onnxq.graph.trained.round_again import round_again
from onnxq.graph.types import Model
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.deliver.half_floats import to_halves, wide_nodes
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.compensating import compensated, compensates, with_rounded
from onnxq.pipeline.learned.learning import refine
from onnxq.pipeline.learned.minutes import block_minutes
from onnxq.pipeline.learned.module_link import weight_steps
from onnxq.pipeline.learned.reconstructing import (
    BY_LAYER,
    BY_USE,
    NEAREST,
    Start,
    check_learning,
    goes_first,
    reconstructed,
)
from onnxq.pipeline.learned.rotating import why_as_drawn
from onnxq.pipeline.learned.sequential import Sequential
from onnxq.pipeline.planning import non_finite, plan_and_calibrate, said_of_non_finite
from onnxq.pipeline.trained_model import rename
from onnxq.pipeline.transformation import Transformed, settle_levels, transform, uses_awq, why_unsmoothed
from onnxq.plan.activations.channel_grids import spread_channels
from onnxq.plan.decisions import DYNAMIC, INTEGER, WEIGHT
from onnxq.plan.given import unread
from onnxq.plan.solve import solve
from onnxq.plan.weight_wishes import float_biases
from onnxq.plan.weights.bit_budget import spend_bits
from onnxq.qat.computing_time import Allowance
from onnxq.runtime.engines.installed import newest_pairs
from onnxq.stats.statistics import Statistics
from onnxq.targets import MEASURED


def build(job: Job) -> Candidate:
    """Quantize a copy of a prepared model, which itself stays as it is: any number of recipes can be tried on it.

    Args:
        job: its recipe's preset must not be "auto".

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    with job.clock.around("rewrite"):
        built, done = _build(job)
    if job.data is None:
        return built
    smoothing = True
    if done.searched:
        with job.clock.around("rewrite"):
            plain, _ = _build(job, smoothing=False)
        built, smoothing = _chosen(built, plain, why_unsmoothed(built.quantized, plain.quantized, job))
    if done.learned:
        drawn = replace(job, recipe=job.recipe.override(learn_rotation=False))
        with job.clock.around("rewrite"):
            plain, _ = _build(drawn, smoothing=smoothing)
        built, _ = _chosen(built, plain, why_as_drawn(built.quantized, plain.quantized, job))
    return built


def _chosen(built: Candidate, plain: Candidate, reason: str | None) -> tuple[Candidate, bool]:
    """The first, or the plain one where there is a reason for it, which it then tells; and whether it is the first."""
    if reason is None:
        return built, True
    plain.warnings.insert(0, reason)
    return plain, False


def _build(job: Job, *, smoothing: bool = True) -> tuple[Candidate, Transformed]:
    """As `build`, with or without smoothing; and what rewriting the float model did."""
    recipe, target, clock = job.recipe, job.target, job.clock
    form = recipe.format or target.formats[0]
    model = copy_of(job.prepared.model)
    spill_to(model, job.spill)
    job = replace(job, prepared=replace(job.prepared, model=model))
    if target.coverage != MEASURED:
        mark_rows(model, target.runs)
    done = transform(job, smoothing=smoothing)
    model = job.prepared.model
    if target.coverage != MEASURED:
        mark_rows(model, target.runs)  # of the nodes that were added
    if job.statistics is not None and (recipe.rotate or uses_awq(recipe) or (recipe.smooths and smoothing)):
        job = replace(job, statistics=None)
    with clock.around("plan"):
        recipe, said = settle_levels(job)
    job = replace(job, recipe=recipe)
    done.notes += said
    with clock.around("plan"):
        plan, used, warnings = plan_and_calibrate(job)
    if recipe.target_bits is not None:
        with clock.step("plan"):
            recipe = spend_bits(model, plan, recipe, used, job.target.fewest_bits)
            plan, used, warnings = plan_and_calibrate(replace(job, recipe=recipe, statistics=used))
    with clock.step("rewrite"), blas_threads(_largest(used)), ExitStack() as stack:
        training = job.prepared.training
        given = training.given if training is not None else None
        way = Sequential.of(job, plan, stack) if recipe.sequential else job.spread
        solution = solve(model, plan, used, recipe.percentile, recipe.bias_correct, clock.report, given, way)
    rounded, biases = None, used if recipe.bias_correct else None
    allowance, plain, record = Allowance(), solution.rewrite, None
    if recipe.reconstructs:
        check_learning(job, "--reconstruct")
        allowance = Allowance(60.0 * block_minutes(recipe), until=job.learns_until)
    layers_first = recipe.reconstructs and goes_first(plan)
    if compensates(recipe) or (recipe.reconstructs and not layers_first):  # blocks go on from there
        rounded = job.rounded if job.rounded is not None else compensated(job, plan, solution.rewrite)
        with clock.step("rewrite"):
            solution = with_rounded(job, plan, solution, biases, rounded)
    keep = wide_nodes(job, used, warnings)
    if recipe.learns or layers_first:
        half = allowance.keeping(30.0 * block_minutes(recipe))
        solution, learned = refine(job, plan, solution, biases, allowance=half)
        warnings += learned
    with clock.step("rewrite"):
        rewrite = spread_channels(model, solution.rewrite, used, plan.widened) if target.steered else solution.rewrite
    if recipe.reconstructs:
        other = solution.rewrite is not plain
        nearest = spread_channels(model, plain, used, plan.widened) if target.steered else plain
        starts = [Start(NEAREST, nearest, learns=not (other and layers_first))]
        if other:
            starts.append(Start(BY_LAYER if layers_first else BY_USE, rewrite))
        rewrite, record = reconstructed(job, plan, starts, weight_steps(model, solution.rewrite), allowance)
        warnings += record.notes
    with clock.step("rewrite"):
        emit(model, rewrite, form, _style(job, model))
        if target.slow_norms and plan.counts(INTEGER, DYNAMIC, WEIGHT):
            keep_apart(model)
        again = round_again(model, unread(given, plan.values)) if given is not None else []
        if given is not None:
            rename(model, given)
        if recipe.half is None:
            narrow(model)
        else:
            model, plan = to_halves(model, job, plan, keep, warnings)
        finish(model)
        if not target.booleans_pass:
            copy_booleans(model)
        consumed = initializer_inputs.restore(model)
    found = non_finite(plan, used)
    warnings = [*done.notes, *warnings, *plan.notes, *solution.notes, *said_of_non_finite(found)]
    warnings += initializer_inputs.said_of_constants(consumed)
    name, weights = "cleaned" if recipe.only_cleans else recipe.preset, solution.weights
    built = Candidate(name, model, recipe, form, plan, used, found, warnings, weights, again, rounded)
    built.reconstructed = record
    return built, done


def _style(job: Job, model: Model) -> Style:
    """How the recipe and the target want Q and DQ written."""
    recipe, target = job.recipe, job.target
    return Style(
        steered=target.steered,
        float_bias=target.float_bias or recipe.float_bias,
        dedicated=recipe.dedicated_pairs,
        own_pairs=recipe.own_pairs,
        pairs_until=newest_pairs(),
        own_grids=recipe.own_grids,
        float_biases=float_biases(recipe, model.graph),
    )


def finish(model: Model) -> None:
    """The last steps on a model that will be written, quantized or not."""
    turn_back(model)
    write_as_max(model)
    drop_inferred(model)
    store_once(model)


def _largest(statistics: Statistics | None) -> int:
    """Side of the largest second moment; those that are still to come are large."""
    if statistics is None:
        return 0
    sides = [moment.channels or 0 for moment in statistics.moments.values()]
    return max(*sides, LARGE if statistics.later else 0, 0)
