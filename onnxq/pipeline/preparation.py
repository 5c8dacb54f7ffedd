"""The way from a float model to a verified quantized one, step by step; `onnxq.api` is thin on top of it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader, open_reader, split
from onnxq.errors import CalibrationError, ModelError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.graph.views.outputs import value_names
from onnxq.pipeline.clock import Clock, Progress
from onnxq.pipeline.float_model import Prepared, Source, is_path, load_and_prepare
from onnxq.pipeline.statistics_for_plan import check_statistics, gather
from onnxq.plan.activations.joint_grids import joint_values
from onnxq.plan.activations.low_sqnr import faint_values
from onnxq.plan.activations.unusable import unusable_values
from onnxq.plan.decisions import Plan
from onnxq.plan.make_plan import make_plan, wanted_by, wanted_by_any
from onnxq.plan.weights.outlier_channels import split_outliers
from onnxq.plan.weights.weight_only import FAST_LEVEL
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.rounding import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.runtime.probe import probe
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target

__all__ = [
    "Clock",
    "Data",
    "Prepared",
    "Progress",
    "Shapes",
    "Source",
    "contents",
    "find_calibration",
    "is_path",
    "load_and_prepare",
    "look",
    "non_finite",
    "open_data",
    "plan_and_calibrate",
    "refuse_empty",
    "said_of_non_finite",
    "settle_preset",
    "what_data_would_buy",
]

_PLAIN_BITS = 8
"""Bits from which on rounding to nearest is as good as anything."""

_NAMED = 3
"""Values with elements that are not finite that get a warning of their own."""


class NothingToQuantizeError(RecipeError):
    """The plan would leave the model as it is; for a caller that tries another, to the user it is a `RecipeError`."""


def find_calibration(source: Source) -> Path | None:
    """``calibration_data/<stem>.npz``, or a folder ``<stem>``, beside the model's folder or in the working folder."""
    if not is_path(source):
        return None
    path = Path(source)
    places = [path.resolve().parent.parent, path.resolve().parent, Path.cwd()]
    for place in places:
        for candidate in (place / "calibration_data" / f"{path.stem}.npz", place / "calibration_data" / path.stem):
            if candidate.is_file() or (candidate.is_dir() and any(candidate.glob("*.np[zy]"))):
                return candidate
    return None


@dataclass
class Data:
    """The samples of one quantization.

    Attributes:
        calibration: samples for ranges.
        held_out: samples for verification, others than those for ranges where there are at least two.
        first: the first sample.
        every: all samples.
        seen: what `look` found on the first sample, by the names of a model's values.
    """

    calibration: Reader
    held_out: Reader
    first: Feed
    every: Reader
    seen: dict[tuple[str, ...], Shapes] = field(default_factory=dict)


def open_data(calibration: object, prepared: Prepared, batch_size: int | None = None) -> Data:
    """Open calibration data and hold out the last fifth.

    Raises:
        CalibrationError: the data does not fit the model.
    """
    reader = open_reader(calibration, prepared.inputs, batch_size=batch_size)
    used, held_out = split(reader)
    return Data(used, held_out, next(iter(used)), reader)


@dataclass
class Shapes:
    """Shape and element type of each value in one sample."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def look(prepared: Prepared, data: Data | None, statistics: Statistics | None, threads: int | None) -> Shapes:
    """Shapes and types of all values: from a run on one sample, else from saved statistics."""
    if data is not None:
        names = tuple(value_names(prepared.model))
        if names not in data.seen:  # several recipes may be tried on one model
            found = probe(prepared.model, data.first, threads=threads)
            data.seen[names] = Shapes(
                {name: info.shape for name, info in found.items()},
                {name: str(info.dtype) for name, info in found.items()},
            )
        return data.seen[names]
    if statistics is not None:
        known = {name: statistic.shape for name, statistic in statistics.items() if statistic.shape is not None}
        return Shapes(known, dict.fromkeys(known, "float32"))
    return Shapes({}, {})


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
            f"--preset {recipe.preset}: needs calibration data and there is none; give --calibration or --stats, "
            "or use --preset w8, which needs none"
        )
    known = has_data if has_moments is None else has_moments
    asked = [*([recipe.algorithm] if recipe.algorithm else []), *(r.algorithm for r in recipe.rules if r.algorithm)]
    unfed = [name for name in asked if name in ALGORITHMS_WITH_DATA]
    if unfed and not known:
        raise RecipeError(
            f"--algorithm {unfed[0]}: needs calibration data and there is none; give --calibration (or --stats from "
            "onnxq calibrate --moments), or use kquant, hqq or rtn, which need none"
        )
    presets = [PRESETS[name] for name in (recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset))]
    packs = any(preset.weights == "blocks" for preset in presets)
    if asked and not packs and set(asked) != {"rtn"}:
        raise RecipeError(
            f"--algorithm {asked[0]}: preset {recipe.preset} rounds weights to nearest; use a preset that packs "
            f"weights: {', '.join(name for name, preset in PRESETS.items() if preset.weights == 'blocks')}"
        )
    if recipe.algorithm is None and packs:
        bits = [recipe.bits or preset.bits for preset in presets if preset.weights == "blocks"]
        low = min([*bits, *(rule.bits for rule in recipe.rules if rule.bits)]) < _PLAIN_BITS
        return recipe.override(algorithm=("gptq" if known else ALGORITHM_WITHOUT_DATA) if low else "rtn")
    return recipe


def plan_and_calibrate(
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data | None,
    statistics: Statistics | None,
    threads: int | None,
    clock: Clock,
) -> tuple[Plan, Statistics | None, list[str]]:
    """Decide what becomes of each node and gather the statistics that this needs.

    Returns:
        The plan, the statistics it was made with, and warnings.

    Raises:
        RecipeError: a pattern matches nothing, or the plan quantizes nothing.
        CalibrationError: the statistics are of another model, or lack a value.
    """
    warnings: list[str] = []
    with clock.step("plan"):
        seen = look(prepared, data, statistics, threads)

        def plan_without(unusable: dict[str, str], faint: dict[str, str]) -> Plan:
            return make_plan(
                prepared.model,
                recipe,
                target,
                seen.shapes,
                seen.dtypes,
                prepared.sources,
                unusable=unusable,
                op_types=prepared.op_types,
                faint=faint,
            )

        plan = plan_without({}, {})
        refuse_empty(plan, prepared, recipe)
    wanted = wanted_by(prepared.model, plan, means=recipe.bias_correct)
    if not wanted.values and not wanted.second_moments and not wanted.channel_peaks:
        return plan, statistics, warnings
    samples = data.calibration if data is not None and statistics is None else None
    if statistics is not None:
        check_statistics(statistics, prepared.model, wanted)
    elif samples is not None:
        statistics = gather(prepared.model, wanted, recipe, samples, threads, clock, warnings)
    else:
        raise CalibrationError("calibration: the plan needs ranges and there is no data; give --calibration")
    unusable: dict[str, str] = {}
    faint: dict[str, str] = {}
    while True:
        known = len(unusable), len(faint)
        unusable |= unusable_values(prepared.model, plan, statistics)
        faint |= faint_values(plan, statistics, recipe.percentile)
        faint |= joint_values(prepared.model, plan, statistics)
        if known == (len(unusable), len(faint)):
            break
        plan = plan_without(unusable, faint)
        refuse_empty(plan, prepared, recipe)
        # Where a node stays float after all, its neighbours can need values that were not wanted before.
        wanted = wanted_by(prepared.model, plan, means=recipe.bias_correct).without(statistics)
        if samples is not None and wanted.values:
            statistics.add(gather(prepared.model, wanted, recipe, samples, threads, clock, warnings))
    plan = split_outliers(prepared.model, plan, statistics)
    refuse_empty(plan, prepared, recipe)
    return plan, statistics, warnings


def complete(
    statistics: Statistics,
    prepared: Prepared,
    recipe: Recipe,
    target: Target,
    data: Data,
    threads: int | None,
    clock: Clock,
) -> None:
    """Add what any plan could need to the statistics of one plan, in one further run; not to those of another model."""
    dtypes = look(prepared, data, None, threads).dtypes
    wanted = wanted_by_any(prepared.model, target, dtypes, prepared.sources).without(statistics)
    if wanted.values and statistics.model_hash == io.model_hash(prepared.model):
        statistics.add(gather(prepared.model, wanted, recipe, data.calibration, threads, clock, []))


def refuse_empty(plan: Plan, prepared: Prepared, recipe: Recipe) -> None:
    """A plan that quantizes nothing is an error.

    Raises:
        RecipeError: nothing would change; the message has the commonest reason.
    """
    if plan.counts("integer", "storage", "dynamic", "weight") or prepared.folded_weights:
        return
    if plan.counts("present"):
        raise RecipeError(
            f"the model is quantized already ({plan.counts('present')} nodes) and the rest stays float; "
            "give the float model, or onnxq inspect to see what is in this one"
        )
    reasons: dict[str, int] = {}
    for _, op_type, reason in plan.kept_float():
        reasons[f"{op_type}: {reason}"] = reasons.get(f"{op_type}: {reason}", 0) + 1
    common = sorted(reasons, key=lambda r: (-reasons[r], r))[:3]
    detail = "; ".join(common) if common else "it has no node that computes with real numbers"
    if recipe.exclude or recipe.include or recipe.op_types or any(rule.quantize is False for rule in recipe.rules):
        remedy = "ask for less with --exclude, or for more with --include and --op-type"
    elif recipe.preset == "w8":
        remedy = "use --preset w8a8 with data"
    else:
        remedy = "name nodes with --include or --op-type to insist"
    raise NothingToQuantizeError(
        f"--preset {recipe.preset}: nothing in this model would be quantized ({detail}); {remedy}"
    )


def contents(model: Model, stack: ExitStack) -> bytes | Path:
    """The model as the runtime is given it: its bytes, or above 2 GB a temporary file."""
    try:
        return io.to_bytes(model)
    except ModelError:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-"))) / "model.onnx"
        io.save(model, path)
        return path


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
