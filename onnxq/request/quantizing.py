"""The way of one quantization, from a recipe to a written and verified file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxq.core import scratch
from onnxq.core.processors import blas_threads
from onnxq.data.text.language_run import LanguageModel
from onnxq.diagnosis.evidence import gather
from onnxq.errors import VerificationError
from onnxq.graph.files import io, saving
from onnxq.graph.types import Model
from onnxq.pipeline.caches.storing import store_caches
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import Job
from onnxq.pipeline.planning import what_data_would_buy
from onnxq.pipeline.trained_model import kept_and_added, said_of
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import refuse_unused
from onnxq.report.growth import larger
from onnxq.report.html.page import require_drawing, result_page
from onnxq.report.results import QuantizeResult
from onnxq.request.opening import Opened, open_job, search_state
from onnxq.request.report_of_run import command_of_run, place_of_report
from onnxq.request.result_of_run import result_of
from onnxq.request.run_options import Options
from onnxq.request.used_as import UsedAs, check_generate, generated, part_of
from onnxq.runtime.machine import machine_facts, versions
from onnxq.runtime.session import open_session
from onnxq.search.choosing import choose
from onnxq.search.remedies import what_helps
from onnxq.search.within.score import search_metric
from onnxq.search.within.state import forget
from onnxq.search.within.within_limits import SearchOptions
from onnxq.verify.language.generation import Generated


@dataclass(frozen=True)
class _Asked:
    """What the user asked for, as the report repeats it.

    Attributes:
        given: the recipe.
        model: the float model.
        output: file of the result; None stands for one beside a model that is a file.
        options: the options of the run.
        page: file of the report; None where none was asked for.
    """

    given: Recipe
    model: Source
    output: str | os.PathLike[str] | None
    options: Options
    page: Path | None


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
            opened = open_job(given, model, output, options, clock, stack)
        job, state = opened.job, search_state(model, opened.destination, options)
        asked = _Asked(given, model, output, options, place_of_report(model, opened.destination, options))
        stack.enter_context(_learned_layers(job))
        with job.prepared.watched():
            chosen = choose(job, SearchOptions(metric, state, options.resume, options.cache), timed=options.benchmark)
            store_caches(job, chosen)
        if job.data is None and job.recipe.preset == "w8":
            chosen.warnings.insert(0, what_data_would_buy(model, chosen.plan))
        follows = _generated(job, chosen, opened.used) if options.used is None else None
        evidence = _accepted(job, chosen, asked)
        result = _delivered(opened, chosen, asked)
        if chosen.trail and state is not None:
            forget(state)
        result.generated = follows
    return _reported(result, evidence, job, asked)


def _accepted(job: Job, chosen: Candidate, asked: _Asked) -> dict[str, Any] | None:
    """What the report shows beside the figures, if there is to be one.

    Raises:
        VerificationError: the best model that was found is not good enough, and the user does not insist.
    """
    verdict, page = chosen.verdict, asked.page
    helps = what_helps(job, verdict) if job.recipe.preset != "auto" and not chosen.trail else None
    said = [] if helps is None else [helps]
    verdict.warnings += said
    evidence = None if page is None or verdict.refused else gather(job, chosen, asked.model)
    if verdict.failures and not asked.options.force:
        why = "; ".join([*verdict.failures, *said])
        if page is None:
            raise VerificationError(f"verification failed, nothing was written: {why}")
        refused = replace(result_of(chosen, job, None, chosen.size, None), refused=verdict.failures)
        _reported(refused, evidence, job, asked)
        raise VerificationError(f"verification failed, no model was written, {page} has the figures: {why}")
    return evidence


def _delivered(opened: Opened, chosen: Candidate, asked: _Asked) -> QuantizeResult:
    """Write the model that was chosen, with everything that its user has to know."""
    job = opened.job
    job.prepared.check_unchanged()
    trained = _trained(chosen, job)
    chosen.warnings = [
        *job.prepared.notes,
        *(said_of(trained) if trained is not None else []),
        *chosen.warnings,
        *(f"forced although: {line}" for line in chosen.verdict.failures),
    ]
    written, size = _write(chosen, asked.model, opened.destination, job.clock, asked.options.external_data)
    if job.learning_state is not None:
        job.learning_state.unlink(missing_ok=True)
    if size > job.prepared.size and chosen.model is not None:
        chosen.warnings.append(larger(job.prepared.size, size, job.prepared.model, written))
    proto = None if is_path(asked.model) else io.to_proto(written)
    result = result_of(chosen, job, opened.destination, size, proto)
    result.trained, result.finetuned = trained, chosen.finetuned or None
    return result


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


def _reported(result: QuantizeResult, evidence: dict[str, Any] | None, job: Job, asked: _Asked) -> QuantizeResult:
    """A result with what its page says beside its figures, and the page where one was asked for."""
    result.source = str(asked.model) if is_path(asked.model) else None
    result.command = command_of_run(asked.model, asked.output, asked.given, asked.options)
    result.versions, result.machine = versions(), machine_facts(job.timed_threads)
    result.evidence, result.report = evidence, asked.page
    if asked.page is not None:
        saving.write_text(asked.page, result_page(result.to_dict()))
    return result


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
