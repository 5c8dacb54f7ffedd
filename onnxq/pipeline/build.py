"""One quantized model, in memory: transform, plan, calibrate, solve and rewrite a copy of the prepared model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnxq.errors import RecipeError
from onnxq.graph.emit.apply import emit
from onnxq.graph.emit.norms import keep_apart
from onnxq.graph.prepare.whole.widen import narrow
from onnxq.graph.types import Model
from onnxq.pipeline.learning import refine
from onnxq.pipeline.preparation import Clock, Data, Prepared, non_finite, plan_and_calibrate, said_of_non_finite
from onnxq.pipeline.transformation import settle_levels, transform, uses_awq
from onnxq.pipeline.unsmoothed import why_unsmoothed
from onnxq.plan.decisions import DYNAMIC, INTEGER, WEIGHT, Plan
from onnxq.plan.solve import solve
from onnxq.plan.weights.bit_budget import spend_bits
from onnxq.plan.weights.weight_errors import LayerWeight
from onnxq.recipe.recipe import Recipe
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target


@dataclass
class Built:
    """A quantized model that is neither verified nor written yet.

    Attributes:
        model: the quantized model.
        recipe: what it was made by; its preset is not "auto".
        form: "qdq" or "qoperator".
        plan: every decision.
        statistics: what the ranges came from; None where none were needed.
        non_finite: calibrated values with NaN or infinite elements, and how many.
        warnings: one line each.
        weights: bits and error of the weights of layers whose activations stay float.
    """

    model: Model
    recipe: Recipe
    form: str
    plan: Plan
    statistics: Statistics | None
    non_finite: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    weights: tuple[LayerWeight, ...] = ()


def build(
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data | None,
    statistics: Statistics | None,
    threads: int | None,
    clock: Clock,
) -> Built:
    """Quantize a copy of a prepared model, which itself stays as it is: any number of recipes can be tried on it.

    Args:
        prepared: the float model.
        recipe: how to quantize; its preset must not be "auto".
        target: what the runtime can do.
        data: samples; None where there are none.
        statistics: statistics of an earlier run of the prepared model, used instead of a new calibration.
        threads: threads an operator may use.
        clock: takes the time.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    built, searched = _build(prepared, recipe, target, data, statistics, threads, clock)
    if not searched or data is None:
        return built
    plain, _ = _build(prepared, recipe, target, data, statistics, threads, clock, smoothing=False)
    reason = why_unsmoothed(built.model, plain.model, prepared, data, threads, clock)
    if reason is None:
        return built
    plain.warnings.insert(0, reason)
    return plain


def _build(
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data | None,
    statistics: Statistics | None,
    threads: int | None,
    clock: Clock,
    *,
    smoothing: bool = True,
) -> tuple[Built, bool]:
    """As `build`, with or without smoothing; and whether there was smoothing by exponents that were searched."""
    form = recipe.format or target.formats[0]
    model = prepared.model.clone()
    model.meta.update(prepared.model.meta)
    copy = replace(prepared, model=model)
    done = transform(copy, recipe, target, data, threads, clock, smoothing=smoothing)
    model = copy.model
    if statistics is not None and (uses_awq(recipe) or (recipe.smooths and smoothing)):
        statistics = None
        what = "AWQ" if uses_awq(recipe) else "smoothing"
        done.notes.append(f"--stats: {what} changed the float model that it belongs to, so the samples were run")
    recipe, said = settle_levels(copy, recipe, target, data, threads, clock)
    done.notes += said
    plan, used, warnings = plan_and_calibrate(copy, recipe, target, data, statistics, threads, clock)
    if recipe.target_bits is not None:
        with clock.step("plan"):
            recipe = spend_bits(model, plan, recipe, used)
        plan, used, warnings = plan_and_calibrate(copy, recipe, target, data, used, threads, clock)
    with clock.step("rewrite"):
        solution = solve(model, plan, used, recipe.percentile, recipe.bias_correct, clock.report)
    if recipe.learns:
        if data is None:
            raise RecipeError("--adaround: needs samples to learn from; give --calibration")
        corrected = used if recipe.bias_correct else None
        solution, learned = refine(model, plan, solution, data, corrected, threads, clock)
        warnings += learned
    with clock.step("rewrite"):
        emit(model, solution.rewrite, form)
        if target.slow_norms and plan.counts(INTEGER, DYNAMIC, WEIGHT):
            keep_apart(model)
        narrow(model)
    found = non_finite(plan, used)
    warnings = [*done.notes, *warnings, *plan.notes, *solution.notes, *said_of_non_finite(found)]
    return Built(model, recipe, form, plan, used, found, warnings, solution.weights), done.searched
