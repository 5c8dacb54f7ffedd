"""The plan of a job, and the statistics that it needs: a plan may change once calibration has seen the values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxq.errors import CalibrationError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.files.io import Source
from onnxq.pipeline.collection import check_statistics, collect_statistics
from onnxq.pipeline.float_model import Prepared, is_path
from onnxq.pipeline.job import Job, probe_shapes
from onnxq.plan.activations.activation_grids import activation_spec
from onnxq.plan.activations.joint_grids import joint_values
from onnxq.plan.activations.low_sqnr import low_sqnr_values
from onnxq.plan.activations.unusable import never_finite, unusable_values, wide_logits
from onnxq.plan.decisions import Plan
from onnxq.plan.given import from_sums, spread
from onnxq.plan.make_plan import ModelFacts, make_plan, wanted_by, wanted_by_any
from onnxq.plan.weights.outlier_channels import split_outliers
from onnxq.plan.weights.weight_only import FAST_LEVEL
from onnxq.plan.whole_graph import widens
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.rounding import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.stats.statistics import Statistics
from onnxq.targets import MEASURED

_PLAIN_BITS = 8
"""Bits from which on rounding to nearest is as good as anything."""

_LEARNED_BITS = 3
"""Bits up to which finetuning starts from roundings that were learned: GPTQ is as good with more, and quicker."""

_NAMED = 3
"""Values with elements that are not finite that get a warning of their own."""


_NO_SCALE = "has no scale from training, and there is no calibration data to find one"


class NothingToQuantizeError(RecipeError):
    """The plan would leave the model as it is; for a caller that tries another, to the user it is a `RecipeError`."""


def settle_preset(recipe: Recipe, has_data: bool, has_moments: bool | None = None) -> Recipe:
    """Replace "auto" by what it stands for, and choose how weights in blocks are rounded where the user did not.

    With data that is GPTQ, which is nowhere worse than what needs none; at 8 bits rounding to nearest is as good.

    Args:
        recipe: the user's choices.
        has_data: there are samples, or statistics.
        has_moments: there are samples, or statistics with second moments; None: as ``has_data``.

    Raises:
        RecipeError: the preset or the algorithm needs data and there is none.
    """
    if recipe.preset == "auto":
        recipe = recipe.override(preset="w8a8" if has_data else "w8")
    if PRESETS[recipe.preset].needs_data and not has_data:
        raise RecipeError(
            f"--preset {recipe.preset}: needs calibration data and there is none; pass --calibration or --stats, "
            "or use --preset w8, which needs none"
        )
    known = has_data if has_moments is None else has_moments
    asked = [*([recipe.algorithm] if recipe.algorithm else []), *(r.algorithm for r in recipe.rules if r.algorithm)]
    unfed = [name for name in asked if name in ALGORITHMS_WITH_DATA]
    if unfed and not known:
        raise RecipeError(
            f"--algorithm {unfed[0]}: needs calibration data and there is none; pass --calibration (or --stats from "
            "onnxq calibrate --moments), or use kquant, hqq or rtn, which need none"
        )
    presets = [PRESETS[name] for name in (recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset))]
    packs = any(preset.weights == "blocks" for preset in presets)
    others = [name for name in asked if name not in ("rtn", "gptq")]
    if others and not packs:
        raise RecipeError(
            f"--algorithm {others[0]}: preset {recipe.preset} rounds weights to nearest or with gptq; use a preset "
            f"that packs weights: {', '.join(name for name, preset in PRESETS.items() if preset.weights == 'blocks')}"
        )
    if not packs and recipe.algorithm == "gptq":
        _check_compensating(recipe)
    if recipe.algorithm is None and packs:
        bits = [recipe.bits or preset.bits for preset in presets if preset.weights == "blocks"]
        fewest = min([*bits, *(rule.bits for rule in recipe.rules if rule.bits)])
        low = fewest < _PLAIN_BITS or recipe.sequential
        exact = "autoround" if recipe.finetune and fewest <= _LEARNED_BITS else "gptq"
        return recipe.override(algorithm=(exact if known else ALGORITHM_WITHOUT_DATA) if low else "rtn")
    return recipe


def _check_compensating(recipe: Recipe) -> None:
    """Refuse what leaves GPTQ nothing to round.

    Raises:
        RecipeError: no preset has integers that are multiplied or dequantized, or their rounding is learned anyway.
    """
    if not any(preset.weights in ("integer", "storage") for preset in recipe.presets):
        raise RecipeError(f"--algorithm gptq: preset {recipe.preset} has no weights that it rounds; leave it out")
    if recipe.learns or recipe.reconstructs:
        raise RecipeError("--algorithm gptq: the rounding of weights is learned here; leave one of the two out")


def plan_and_calibrate(job: Job) -> tuple[Plan, Statistics | None, list[str]]:
    """Decide what becomes of each node and gather the statistics that this needs.

    Returns:
        The plan, the statistics it was made with, and warnings.

    Raises:
        RecipeError: a pattern matches nothing, or the plan quantizes nothing.
        CalibrationError: the statistics are of another model, or lack a value; or samples hold nothing but NaN.
    """
    prepared, recipe, statistics = job.prepared, job.recipe, job.statistics
    warnings: list[str] = []
    with job.clock.step("plan"):
        seen = seen_by(job)
        if job.data is None and statistics is None and seen.given is not None:
            plan, seen = _without_data(job, seen)
        else:
            plan = make_plan(prepared.model, recipe, job.target, seen)
        refuse_empty(plan, prepared, recipe)
    measured = recipe.bias_correct and (seen.given is None or job.data is not None or statistics is not None)
    wanted = wanted_by(prepared.model, plan, means=measured)
    if recipe.sequential and recipe.target_bits is None:  # second moments are those of a model that is not there yet
        wanted = replace(wanted, second_moments={}, channel_peaks=())
    means = () if seen.given is None else (*wanted.image_means, *wanted.row_means)
    if not (wanted.values or wanted.second_moments or wanted.channel_peaks or means):
        return plan, statistics, warnings
    samples = job.data.calibration if job.data is not None and statistics is None else None
    if statistics is not None:
        check_statistics(statistics, prepared.model, wanted)
    elif samples is not None:
        statistics = collect_statistics(job, wanted, samples, warnings)
        if wanted.values and len(never_finite(plan, statistics)) == len(plan.calibrated) > 0:
            raise CalibrationError(
                "calibration: no value of the model had a finite number on any sample; look for NaN in them"
            )
    else:
        raise CalibrationError("calibration: the plan needs ranges and there is no data; pass --calibration")
    unusable: dict[str, str] = {}
    low_sqnr: dict[str, str] = {}
    while True:
        known = len(unusable), len(low_sqnr)
        if job.target.coverage == MEASURED:
            unusable |= unusable_values(prepared.model, plan, statistics)
            low_sqnr |= low_sqnr_values(plan, statistics, recipe.percentile)
            low_sqnr |= joint_values(prepared.model, plan, statistics)
        else:
            unusable |= never_finite(plan, statistics)
            if widens(recipe, job.target):
                low_sqnr |= low_sqnr_values(plan, statistics, recipe.percentile)
                low_sqnr |= joint_values(prepared.model, plan, statistics, layers=True)
                low_sqnr |= wide_logits(prepared.model, plan, statistics)
        if known == (len(unusable), len(low_sqnr)):
            break
        plan = make_plan(prepared.model, recipe, job.target, replace(seen, unusable=unusable, low_sqnr=low_sqnr))
        refuse_empty(plan, prepared, recipe)
        # Where a node stays float after all, its neighbours can need values that were not wanted before.
        wanted = wanted_by(prepared.model, plan, means=recipe.bias_correct).without(statistics)
        if samples is not None and wanted.values:
            statistics.add(collect_statistics(job, wanted, samples, warnings))
    plan = split_outliers(prepared.model, plan, statistics)
    refuse_empty(plan, prepared, recipe)
    return plan, statistics, warnings


def _without_data(job: Job, seen: ModelFacts) -> tuple[Plan, ModelFacts]:
    """The plan of a trained model for which there are no samples: what has no scale from training stays float."""
    assert seen.given is not None
    model, spec = job.prepared.model, activation_spec(job.recipe, job.target)
    values = dict(seen.given.values)
    values |= from_sums(model.graph, spread(model.graph, values), spec)
    seen = replace(seen, given=replace(seen.given, values=values))
    plan = make_plan(model, job.recipe, job.target, seen)
    unusable: dict[str, str] = {}
    while missing := plan.calibrated:
        unusable |= dict.fromkeys(missing, _NO_SCALE)
        seen = replace(seen, unusable=unusable)
        plan = make_plan(model, job.recipe, job.target, seen)
    return plan, seen


def seen_by(job: Job) -> ModelFacts:
    """What is known of the job's model before anything is calibrated."""
    shapes = probe_shapes(job, job.prepared.model, job.statistics)
    training = job.prepared.training
    given = training.given if training is not None else None
    return ModelFacts(shapes.shapes, shapes.dtypes, job.prepared.sources, job.prepared.op_types, given=given)


def complete(statistics: Statistics, job: Job) -> None:
    """Add what any plan could need to the statistics of one plan, in one further run; not to those of another model."""
    assert job.data is not None
    prepared = job.prepared
    dtypes = probe_shapes(job, prepared.model).dtypes
    wanted = wanted_by_any(prepared.model, job.target, dtypes, prepared.sources).without(statistics)
    if wanted.values and statistics.model_hash == io.model_hash(prepared.model):
        statistics.add(collect_statistics(job, wanted, job.data.calibration, []))


def refuse_empty(plan: Plan, prepared: Prepared, recipe: Recipe, *, halved: bool = False) -> None:
    """A plan that quantizes nothing is an error.

    Args:
        plan: every decision.
        prepared: the float model.
        recipe: what was asked for.
        halved: what computes in 16-bit floats is decided too.

    Raises:
        RecipeError: nothing would change; the message has the commonest reason.
    """
    if plan.counts("integer", "storage", "dynamic", "weight", "half") or prepared.folded_weights:
        return
    if recipe.preset == "float":
        return  # something else is asked for
    if recipe.half is not None and not halved:
        return  # what becomes of it shows when the rest is written
    if plan.counts("present"):
        raise RecipeError(
            f"the model is quantized already ({plan.counts('present')} nodes) and the rest stays float; "
            "pass the float model, or give it its floats back with onnxq dequantize and quantize the result"
        )
    reasons: dict[str, int] = {}
    for _, op_type, reason in plan.kept_float():
        reasons[f"{op_type}: {reason}"] = reasons.get(f"{op_type}: {reason}", 0) + 1
    common = sorted(reasons, key=lambda r: (-reasons[r], r))[:3]
    detail = "; ".join(common) if common else "it has no node that computes with real numbers"
    if recipe.exclude or recipe.include or recipe.op_types or any(rule.quantize is False for rule in recipe.rules):
        remedy = "relax --exclude, or add --include or --op-type"
    elif recipe.preset == "w8":
        remedy = "use --preset w8a8 with data"
    else:
        remedy = "name nodes with --include or --op-type to insist"
    raise NothingToQuantizeError(
        f"--preset {recipe.preset}: nothing in this model would be quantized ({detail}); {remedy}"
    )


def what_data_would_buy(model: Source, plan: Plan) -> str:
    """What to tell a user who gave no calibration data.

    Args:
        model: as the user gave it.
        plan: what becomes of it.
    """
    name = Path(model).stem if is_path(model) else "<model>"
    rounded = any(node.accuracy_level == FAST_LEVEL for node in plan.nodes.values())
    inside = " (MatMulNBits rounds them to int8 inside, which --accuracy-level 0 prevents)" if rounded else ""
    return (
        f"no calibration data: weights have 8 bits and activations stay float32{inside}; with samples "
        f"(--calibration, or calibration_data/{name}.npz) activations become 8 bits too and integer kernels run"
    )


def non_finite(plan: Plan, statistics: Statistics | None) -> dict[str, int]:
    """Calibrated values that had elements that are not finite, and how many."""
    if statistics is None:
        return {}
    counts = {name: statistics[name] for name in plan.calibrated if name in statistics}
    return {n: s.nan_count + s.inf_count for n, s in counts.items() if s.nan_count + s.inf_count}


def said_of_non_finite(found: dict[str, int]) -> list[str]:
    """A line for each of the first values with elements that are not finite, and one for the rest."""
    lines = [
        f"value {name!r}: {count} NaN or infinite elements in calibration were left out of its range"
        for name, count in list(found.items())[:_NAMED]
    ]
    if len(found) > _NAMED:
        total = sum(list(found.values())[_NAMED:])
        lines.append(f"{len(found) - _NAMED} more values had NaN or infinite elements ({total}); --json names them")
    return lines
