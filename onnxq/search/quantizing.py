"""The way of one quantization, from a recipe to a written and verified file."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from onnxq.errors import OnnxqError, RecipeError, VerificationError
from onnxq.graph.files import io
from onnxq.pipeline import preparation
from onnxq.pipeline.build import Built
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.preparation import Clock, Progress, Source, is_path
from onnxq.plan.weights.weight_errors import bits_per_weight
from onnxq.plan.weights.weight_only import needed_opset
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.report.results import QuantizeResult
from onnxq.search import within_limits
from onnxq.search.remedies import what_helps
from onnxq.search.score import Function, search_metric
from onnxq.search.state import forget
from onnxq.search.trials import Job
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target, target_named


def quantize_by(
    given: Recipe,
    model: Source,
    output: str | os.PathLike[str] | None,
    *,
    calibration: object,
    statistics: Statistics | str | os.PathLike[str] | None,
    force: bool,
    threads: int | None,
    benchmark: bool,
    seconds: float,
    budget: float,
    metric: str | Function | None,
    search_state: str | os.PathLike[str] | None,
    resume: bool,
    progress: Progress | None,
) -> QuantizeResult:
    """Quantize by a recipe; arguments and errors as of `onnxq.quantize`."""
    clock = Clock(progress)
    measured_by = search_metric(metric, given.max_drop, given.min_sqnr)
    if given.fuse is not None and statistics is not None:
        raise RecipeError(
            "--fuse: saved statistics are of the model before fusion and do not go with it; give --calibration, or "
            "fuse first (python -m onnxruntime.transformers.optimizer) and calibrate what that gives"
        )
    chosen_target = target_named(given.target)
    saved = Statistics.load(Path(statistics)) if isinstance(statistics, str | os.PathLike) else statistics
    halves = saved is None and _packs_few_bits(given)  # those kernels take float16, and statistics are of float32
    prepared = preparation.load_and_prepare(model, chosen_target, clock, needed_opset(given), keep_halves=halves)
    found = calibration if calibration is not None else preparation.find_calibration(model)
    data = preparation.open_data(found, prepared) if found is not None else None
    confirm(prepared, data.first if data is not None else None, clock, threads)
    prepared.notes += _said_of_versions(prepared, needed_opset(given), chosen_target)
    destination = _destination(model, output, given.preset, found, statistics)
    has_ranges = data is not None or saved is not None
    has_moments = bool(saved.moments) if saved is not None else data is not None
    settled = given
    if given.preset != "auto" or not benchmark:
        settled = preparation.settle_preset(given, has_ranges, has_moments)
    with ExitStack() as stack:
        job = Job(prepared, settled, chosen_target, data, saved, clock, stack, threads, seconds, budget)
        wish = within_limits.Wish(measured_by, _search_state(search_state, destination), resume)
        chosen = within_limits.choose(job, wish, timed=benchmark)
        if data is None and settled.preset == "w8":
            chosen.warnings.insert(0, preparation.what_data_would_buy(model, chosen.plan))
        built, verdict = chosen.built, chosen.verdict
        warnings = [*prepared.notes, *chosen.warnings]
        helps = what_helps(job, verdict) if settled.preset != "auto" and not chosen.trail else None
        verdict.warnings += [helps] if helps is not None else []
        if verdict.failures and not force:
            said = [*verdict.failures, *([helps] if helps is not None else [])]
            raise VerificationError(f"verification failed, nothing was written: {'; '.join(said)}")
        warnings += [f"forced although: {line}" for line in verdict.failures]
        result_model = built.model if built is not None else io.load(model)
        size = len(chosen.content) if isinstance(chosen.content, bytes) else io.size_bytes(chosen.content)
        if destination is not None:
            with clock.step("save"):
                if built is None and is_path(model):
                    io.copy(model, destination)
                else:
                    io.save(result_model, destination, source=model if is_path(model) else None)
            size = io.size_bytes(destination)
    if chosen.trail and wish.state is not None:
        forget(wish.state)
    if size > prepared.size and built is not None:
        costs = "scales cost more than they save here"
        warnings.append(f"larger than float: {size} bytes against {prepared.size}; {costs}")
    comparison = verdict.comparison
    same = math.inf if built is None else None  # float itself, given back
    return QuantizeResult(
        output=destination,
        preset=chosen.preset,
        format=built.form if built is not None and chosen.plan.values else None,
        target=chosen_target.name,
        size_before=prepared.size,
        size_after=size,
        sqnr_db=comparison.sqnr_db if comparison is not None else same,
        top1_agreement=comparison.top1_agreement if comparison is not None else None,
        latency_ratio=verdict.ratio,
        coverage=chosen.plan.coverage(),
        kept_float=chosen.plan.kept_float(),
        seconds=clock.seconds,
        warnings=[*warnings, *verdict.warnings],
        comparison=comparison,
        unoptimized=verdict.unoptimized,
        non_finite=built.non_finite if built is not None else {},
        plan=chosen.plan,
        model=io.to_proto(result_model) if not is_path(model) else None,
        latency_ms={timing.name: timing.median_ms for timing in verdict.timings},
        bits_per_weight=_bits(built),
        weights=[asdict(layer) for layer in built.weights] if built is not None else [],
        candidates=chosen.candidates,
        choices=chosen.choices,
        trail=chosen.trail,
        recipe=built.recipe.to_yaml() if built is not None and chosen.trail else None,
    )


def _said_of_versions(prepared: Prepared, needed: int, target: Target) -> list[str]:
    """That the file needs a newer runtime than the user's did, for the form of weights that was chosen."""
    (opset_before, ir_before), (opset, ir_version) = prepared.versions
    if needed <= target.min_opset or opset_before >= opset:
        return []
    also = f", and from IR version {ir_before} to {ir_version}" if ir_version > ir_before else ""
    return [
        f"this form of weights needs operator set {needed}: the model was raised from {opset_before} to {opset}{also}; "
        "--preset w4 without --format qdq needs neither"
    ]


def _packs_few_bits(recipe: Recipe) -> bool:
    """Whether weights of fewer than 8 bits are packed and nothing else is done."""
    presets = [PRESETS[name] for name in (recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset))]
    return all(preset.weights == "blocks" and (recipe.bits or preset.bits) < 8 for preset in presets)


def _bits(built: Built | None) -> float | None:
    if built is None or built.plan.counts("integer", "dynamic"):
        return None
    return bits_per_weight(built.weights)


def _destination(model: Source, output: str | os.PathLike[str] | None, preset: str, *inputs: object) -> Path | None:
    """Where the result goes; said before the work starts if it cannot go there."""
    if output is None and not is_path(model):
        return None
    path = Path(str(model)).with_suffix(f".{preset}.onnx") if output is None else Path(output)
    check_output(path, model, *inputs)
    return path


def _search_state(given: str | os.PathLike[str] | None, destination: Path | None) -> Path | None:
    """The file of a search."""
    if given is not None:
        return Path(given)
    return None if destination is None else Path(f"{destination}.search.json")


def check_output(path: Path, model: Source, *inputs: object) -> None:
    """Say before the work starts if the result cannot be written, or would replace something that is read."""
    io.check_destination(path, source=model if is_path(model) else None)
    for used in inputs:
        if isinstance(used, str | os.PathLike) and path.exists() and Path(used).exists() and path.samefile(used):
            raise OnnxqError(f"{path}: is an input of this very run; name another file")
