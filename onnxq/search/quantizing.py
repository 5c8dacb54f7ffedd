"""The way of one quantization, from a recipe to a written and verified file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onnxq.core import scratch
from onnxq.core.processors import blas_threads
from onnxq.data.text.language_run import LanguageModel
from onnxq.data.text.text_samples import TextSamples
from onnxq.diagnosis.evidence import gather
from onnxq.errors import RecipeError, VerificationError
from onnxq.graph.files import io, saving
from onnxq.graph.types import Model, Proto
from onnxq.pipeline.caches.grouping import group_attention
from onnxq.pipeline.caches.storing import store_caches
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.deliver.asked_of_target import (
    NO_FASTER_4,
    SLOW_16,
    check_operators,
    check_recipe,
    check_shapes,
    default_preset,
)
from onnxq.pipeline.deliver.on_engine import check_python
from onnxq.pipeline.float_model import Prepared, Source, Wishes, is_path, load_and_prepare
from onnxq.pipeline.job import Job, find_calibration, open_data, with_tokens
from onnxq.pipeline.large.too_large import for_memory, is_large, leave_unconfirmed, spill_beside
from onnxq.pipeline.learned.finetuned import rounded_in_order
from onnxq.pipeline.planning import settle_preset, what_data_would_buy
from onnxq.pipeline.trained_model import check_training, kept_and_added, said_of, take_training, wants_training
from onnxq.pipeline.transformation import unused_statistics
from onnxq.plan.weights.weight_errors import bits_per_weight
from onnxq.plan.weights.weight_only import needed_opset
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import refuse_unused
from onnxq.report.growth import larger
from onnxq.report.html.page import require_drawing, result_page
from onnxq.report.results import QuantizeResult
from onnxq.runtime.engines.places import RAY, WASM, WEB, RunsOn, spread_over, start, web_is_here
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.machine import machine_facts, versions
from onnxq.runtime.session import open_session
from onnxq.search.choosing import choose
from onnxq.search.remedies import what_helps
from onnxq.search.report_of_run import command_of_run, place_of_report
from onnxq.search.run_options import Options
from onnxq.search.used_as import UsedAs, check_generate, generated, part_of, said_of_texts, texts_of, workload_of
from onnxq.search.within.score import search_metric
from onnxq.search.within.state import forget
from onnxq.search.within.within_limits import SearchOptions
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target, target_named
from onnxq.verify.language.generation import Generated


def quantize_by(
    given: Recipe, model: Source, output: str | os.PathLike[str] | None, options: Options
) -> QuantizeResult:
    """Quantize by a recipe; arguments and errors as of `onnxq.quantize`."""
    refuse_unused(given if options.generate is None else given.override(seed=Recipe().seed))
    check_generate(options.generate, options.calibration)
    scratch.sweep_once(Path(tempfile.gettempdir()))
    if options.report is not None:
        require_drawing()
    clock = Clock(options.progress)
    metric = search_metric(options.metric, given.max_drop, given.min_sqnr)
    with ExitStack() as stack, blas_threads(), clock.around("other"):
        with clock.around("load"):
            job, destination, used = open_job(given, model, output, options, clock, stack)
        state = _search_state(model, destination, options)
        page = place_of_report(model, destination, options)
        stack.enter_context(_learned_layers(job))
        with job.prepared.watched():
            chosen = choose(job, SearchOptions(metric, state, options.resume, options.cache), timed=options.benchmark)
            store_caches(job, chosen)
        if job.data is None and job.recipe.preset == "w8":
            chosen.warnings.insert(0, what_data_would_buy(model, chosen.plan))
        follows = _generated(job, chosen, used) if options.used is None else None
        failures = chosen.verdict.failures
        helps = what_helps(job, chosen.verdict) if job.recipe.preset != "auto" and not chosen.trail else None
        said = [] if helps is None else [helps]
        chosen.verdict.warnings += said
        evidence = None if page is None or chosen.verdict.refused else gather(job, chosen, model)
        if failures and not options.force:
            why = "; ".join([*failures, *said])
            if page is None:
                raise VerificationError(f"verification failed, nothing was written: {why}")
            refused = replace(result_of(chosen, job, None, chosen.size, None), refused=failures)
            _report(refused, page, evidence, job, model, command_of_run(model, output, given, options))
            raise VerificationError(f"verification failed, no model was written, {page} has the figures: {why}")
        job.prepared.check_unchanged()
        trained = _trained(chosen, job)
        chosen.warnings[:0] = said_of(trained) if trained is not None else []
        chosen.warnings = [*job.prepared.notes, *chosen.warnings, *(f"forced although: {line}" for line in failures)]
        written, size = _write(chosen, model, destination, clock, options.external_data)
        if chosen.trail and state is not None:
            forget(state)
        if job.learning_state is not None:
            job.learning_state.unlink(missing_ok=True)
        if size > job.prepared.size and chosen.model is not None:
            chosen.warnings.append(larger(job.prepared.size, size, job.prepared.model, written))
        proto = None if is_path(model) else io.to_proto(written)
    result = result_of(chosen, job, destination, size, proto)
    result.trained, result.generated = trained, follows
    result.finetuned = chosen.finetuned or None
    return _report(result, page, evidence, job, model, command_of_run(model, output, given, options))


@contextmanager
def _learned_layers(job: Job) -> Iterator[None]:
    """Layers that have learned are kept in files for a run that goes on after a kill, and for no other."""
    try:
        yield
    except VerificationError:  # the same run would come to the same
        _remove(job.layers)
        raise
    _remove(job.layers)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _report(
    result: QuantizeResult,
    page: Path | None,
    evidence: dict[str, Any] | None,
    job: Job,
    model: Source,
    command: dict[str, list[str]],
) -> QuantizeResult:
    """A result with what its page says beside its figures, and the page where one was asked for."""
    result.source = str(model) if is_path(model) else None
    result.command = command
    result.versions, result.machine = versions(), machine_facts(job.timed_threads)
    result.evidence, result.report = evidence, page
    if page is not None:
        saving.write_text(page, result_page(result.to_dict()))
    return result


def open_job(
    given: Recipe,
    model: Source,
    output: str | os.PathLike[str] | None,
    options: Options,
    clock: Clock,
    stack: ExitStack,
) -> tuple[Job, Path | None, UsedAs | None]:
    """Everything that is read before the work starts: the model, the samples, the statistics; and where it goes."""
    if given.fuse is not None and options.statistics is not None:
        raise RecipeError(
            "--fuse: saved statistics are of the model before fusion and do not go with it; pass --calibration, or "
            "fuse first (python -m onnxruntime.transformers.optimizer) and calibrate the result"
        )
    target, saved = target_named(given.target), options.statistics
    check_recipe(given, target)
    engine = _engine(options, given, target, stack)
    if isinstance(saved, str | os.PathLike):
        saved = Statistics.load(Path(saved))
    # Kernels that unpack few bits take float16; statistics are of float32.
    halves = saved is None and given.half is None and _packs_few_bits(given)
    wishes = Wishes(needed_opset(given), halves, given.dimensions, given.opset, given.drop_tail)
    prepared = load_and_prepare(model, target, clock, wishes)
    check_shapes(prepared.inputs, target)
    if not options.force:
        check_operators(prepared.model, target)
    source, found = _samples(model, prepared, given.seed, options, clock)
    if found is None and options.states:
        raise RecipeError("--state: there are no samples to carry states through; pass --calibration")
    data = None
    if found is not None:
        data = open_data(found, prepared, states=options.states, threads=options.threads)
    alone = saved is None and is_path(model) and engine is None
    if alone and data is not None:
        given, used_at_all = for_memory(given, target, prepared)
        data = data if used_at_all else None
    large = alone and is_large(given, target, prepared, samples=data is not None)
    if large:
        leave_unconfirmed(prepared)
    confirm(prepared, data.first if data is not None else None, clock, options.threads)
    if given.kv_cache is not None:
        with clock.step("caches"):
            group_attention(prepared, data, given.kv_cache, options.threads)
    if wants_training(given):
        take_training(prepared, target)
    prepared.notes += _said_of_versions(prepared, needed_opset(given), target)
    if saved is not None and data is not None:
        prepared.notes += unused_statistics(given)
    destination = _destination(model, output, given.preset, options.inputs(model, source))
    if given.preset == "auto" and not target.is_here and engine is None:
        given = given.override(preset=default_preset(target, data is not None or saved is not None))
    wide = any(16 in (rule.bits, rule.convert) for rule in given.values)
    if (wide or any(preset.activation_bits == 16 for preset in given.presets)) and not target.provider:
        prepared.notes.append(SLOW_16)
    if any(preset.activation_bits == 4 for preset in given.presets):
        prepared.notes.append(NO_FASTER_4)
    if prepared.training is not None:
        given = given.override(preset="w8a8") if given.preset == "auto" else given
        check_training(given)
    if given.preset != "auto" or not options.benchmark:
        has_moments = bool(saved.moments) if saved is not None else data is not None
        has_ranges = data is not None or saved is not None or prepared.training is not None
        settled = settle_preset(given, has_ranges, has_moments)
        given = rounded_in_order(settled, given) if data is not None and saved is None else settled
    python = None if options.engine_python is None else os.fspath(options.engine_python)
    job = Job(
        prepared, given, target, data, saved, clock, stack, options.threads, options.seconds, options.budget, python
    )
    job.engine = engine
    if options.runs_on is not None and options.runs_on.engine == RAY:
        job.tasks = spread_over(options.runs_on, stack)
    job.layers = None if destination is None else Path(f"{options.kept_as or destination}.layers")
    if given.finetune and destination is not None:
        job.learning_state = Path(f"{options.kept_as or destination}.finetune")
    rows = found.rows if isinstance(found, TextSamples) else ()
    used = options.used
    if large and destination is not None:
        job.spill = spill_beside(destination, stack)
    elif options.benchmark or options.workload is not None or rows:
        job.workload, used = workload_of(options.workload, used, prepared, rows, options.threads)
    return job, destination, used


def _samples(model: Source, prepared: Prepared, seed: int, options: Options, clock: Clock) -> tuple[object, object]:
    """Samples as they were given or found, and as they are opened: a text in tokens."""
    found = options.calibration
    if options.generate is None:
        found = find_calibration(model) if found is None else found
        return found, with_tokens(found, model, options.tokenizer)
    with_tokens(None, model, options.tokenizer)  # a tokenizer has nothing to read
    with clock.step("generate"):
        written = texts_of(prepared, options.generate, seed, options.threads)
    prepared.notes.append(said_of_texts(written))
    return None, TextSamples(written)


def _engine(options: Options, given: Recipe, target: Target, stack: ExitStack) -> ProcessEngine | None:
    """What the user wants models to be run and timed on; None where that is this process, or the target's own."""
    asked = options.runs_on
    if asked is None or asked == RunsOn() or asked.engine == RAY:
        check_python(target, options.engine_python)
        if target.provider != WASM or not web_is_here() or given.kv_cache is not None:
            return None
        asked = RunsOn(engine=WEB)
    elif options.engine_python is not None and asked.python is None:
        asked = replace(asked, python=options.engine_python)
    if given.kv_cache is not None:
        raise RecipeError("--kv-cache: a model with caches is judged in a loop here; leave the engine out")
    engine = start(asked, options.threads, target.provider if target.provider.endswith("ExecutionProvider") else "")
    stack.callback(engine.close)
    return engine


def _generated(job: Job, chosen: Candidate, used: UsedAs | None) -> Generated | None:
    """How the chosen model follows what the float model generates, where there are texts and a cache."""
    if used is None or chosen.model is None or chosen.verdict.failures:
        return None
    with job.clock.step("verify"):
        session = open_session(chosen.content, threads=job.threads, label="quantized model")
        return generated(used, LanguageModel(part_of(session, "quantized model")))


def _trained(chosen: Candidate, job: Job) -> dict[str, Any] | None:
    """What became of the grids that a model was trained with; None where it brought none, or float is given back."""
    training = job.prepared.training
    if training is None or chosen.model is None:
        return None
    return kept_and_added(training, chosen.plan, chosen.rounded)


def _write(
    chosen: Candidate, model: Source, destination: Path | None, clock: Clock, external: bool
) -> tuple[Model, int]:
    """The chosen model, written where there is a place for it, and its size in bytes."""
    result = chosen.model if chosen.model is not None else io.load(model)
    if destination is None:
        return result, chosen.size
    with clock.step("save"):
        if chosen.model is None and is_path(model) and not external:
            saving.copy(model, destination)
        else:
            source, threshold = model if is_path(model) else None, 0 if external else io.PROTOBUF_LIMIT
            return result, saving.save(result, destination, source=source, threshold=threshold)
    return result, io.size_bytes(destination)


def result_of(chosen: Candidate, job: Job, destination: Path | None, size: int, proto: Proto | None) -> QuantizeResult:
    """Figures, decisions and the place of the file."""
    verdict, is_float = chosen.verdict, chosen.model is None
    comparison = verdict.comparison
    plan = chosen.plan.as_run(verdict.dequantized)
    same = math.inf if is_float else None  # float itself, given back
    return QuantizeResult(
        output=destination,
        preset=chosen.preset,
        format=chosen.form if plan.values else None,
        target=job.target.name,
        size_before=job.prepared.size,
        size_after=size,
        sqnr_db=comparison.sqnr_db if comparison is not None else same,
        top1_agreement=comparison.top1_agreement if comparison is not None else None,
        latency_ratio=verdict.ratio,
        coverage=plan.coverage(),
        kept_float=plan.kept_float(),
        seconds=job.clock.seconds,
        warnings=[*chosen.warnings, *verdict.warnings],
        comparison=comparison,
        unoptimized=verdict.unoptimized,
        non_finite=chosen.non_finite,
        plan=plan,
        model=proto,
        latency_ms={timing.name: timing.median_ms for timing in verdict.timings},
        bits_per_weight=_bits(chosen),
        weights=[asdict(layer) for layer in chosen.weights],
        candidates=chosen.candidates,
        choices=chosen.choices,
        trail=chosen.trail,
        caches=chosen.caches,
        engine=verdict.engine.to_dict() if verdict.engine is not None else None,
        float_type=None if is_float else chosen.recipe.half,
        recipe=chosen.recipe.to_yaml() if chosen.trail else None,
        workload=None if job.workload is None or chosen.caches else job.workload.table(verdict.timings),
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


def _bits(chosen: Candidate) -> float | None:
    if chosen.model is None or chosen.plan.counts("integer", "dynamic"):
        return None
    return bits_per_weight(chosen.weights)


def _destination(
    model: Source, output: str | os.PathLike[str] | None, preset: str, inputs: Sequence[object]
) -> Path | None:
    """Where the result goes; said before the work starts if it cannot go there."""
    if output is None and not is_path(model):
        return None
    path = Path(str(model)).with_suffix(f".{preset}.onnx") if output is None else Path(output)
    saving.check_destination(path, inputs)
    return path


def _search_state(model: Source, destination: Path | None, options: Options) -> Path | None:
    """The file of a search; said before the work starts if it cannot be written, or is a file of the run."""
    if options.search_state is None:
        return None if destination is None else Path(f"{destination}.search.json")
    path = Path(options.search_state)
    saving.check_destination(path, options.inputs(model, find_calibration(model)))
    if destination is not None and os.path.realpath(path) == os.path.realpath(destination):
        raise RecipeError(f"--search-state {path}: is the output itself; name another file")
    return path
