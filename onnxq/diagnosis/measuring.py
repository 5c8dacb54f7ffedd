"""Two models on the same samples, and models side by side in time: here, or on the engine that will run them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from onnxq.data.carried_states import Recurrence
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader, open_reader
from onnxq.errors import ModelError, RecipeError, VerificationError
from onnxq.graph.files import io
from onnxq.graph.reading.optimized import has_float8
from onnxq.graph.reading.output_facts import OutputFact, facts_of_file
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import find_calibration, with_tokens
from onnxq.recipe.arguments import checked
from onnxq.report.results import BenchmarkResult
from onnxq.runtime.custom_ops import Libraries, with_custom_ops
from onnxq.runtime.engines.engine import left_to_the_cpu
from onnxq.runtime.engines.engine_session import EngineSession
from onnxq.runtime.engines.places import RunsOn, start
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.session import Session, open_session
from onnxq.runtime.synthetic import described, runnable_feed
from onnxq.verify.benchmark import benchmark as run_benchmark
from onnxq.verify.benchmark import drifting
from onnxq.verify.compare import Comparison, matched_outputs
from onnxq.verify.compare import compare as run_comparison
from onnxq.verify.free_running import free_running
from onnxq.verify.metrics import metric_of


@checked
@with_custom_ops
def compare(
    float_model: Source,
    quantized_model: Source,
    *,
    data: object = None,
    states: Mapping[str, str] | None = None,
    metric: str | None = None,
    threads: int | None = None,
    custom_ops: Libraries = (),
    runs_on: RunsOn | None = None,
) -> Comparison:
    """Compare the outputs of a quantized model with those of its float original.

    Args:
        float_model: path or ``onnx.ModelProto``.
        quantized_model: path or ``onnx.ModelProto``.
        data: samples, as for `quantize`; with an array ``labels`` the accuracy of both is given, with token ids
            that an output predicts their perplexity.
        states: as for `quantize`. Both models get the states of the float model; ``result.free_running_loss`` is what
            becomes of the quantized one on its own.
        metric: a figure that must be known, and is then ``result.metric``: "sqnr", "cosine", "top1", "accuracy",
            "perplexity" or "divergence".
        threads: threads an operator may use.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.
        runs_on: what runs the quantized model; the float model is run here in any case.

    Raises:
        CalibrationError: data that does not fit.
        EngineError: the engine is not there, or does not run the model.
        ModelError: a model cannot be loaded, or the outputs are not those of one model.
        RecipeError: there is no data, no such metric, or it cannot be had from these models and data.
    """
    (reference, _), (actual, optimize) = _runnable(float_model), _runnable(quantized_model)
    found = data if data is not None else find_calibration(float_model)
    if found is None:
        raise RecipeError("compare: no data was given and no calibration_data/<model stem>.npz was found")
    found = with_tokens(found, float_model)
    before = open_session(reference, threads=threads, label=_called(float_model, "float model"))
    after = open_session(actual, optimize=optimize, threads=threads, label=_called(quantized_model, "quantized model"))
    names, others = ([spec.name for spec in session.input_specs] for session in (before, after))
    if set(names) != set(others):
        raise ModelError(
            f"{after.label}: its inputs {others} are not those of {before.label}, {names}; "
            "compare a model with its own quantized form"
        )
    recurrence = Recurrence(before.output_specs, before.run, states or {})
    reader = open_reader(found, before.input_specs, recurrence=recurrence)
    left: list[str] = []
    with ExitStack() as stack:
        engine = _engine(runs_on, threads, stack)
        if engine is not None:
            after = EngineSession(after, engine)
            left = left_to_the_cpu(engine, {after.label: actual})
        result = _compared(before, after, reader, facts_of_file(reference, reader.states))
    result.warnings.extend([*reader.notes, *left])
    if not optimize:
        result.warnings.append(
            "float8: compared with the optimizations of onnxruntime's CPU provider off, which take it for integers"
        )
    return result if metric is None else replace(result, metric=metric_of(result, metric))


def _compared(before: Session, after: Session, reader: Reader, facts: Mapping[str, OutputFact]) -> Comparison:
    try:
        result = run_comparison(before, after, reader, labels=reader.labels, facts=facts)
        if reader.states:
            pairs = matched_outputs(before, after)
            drift, warning = free_running((before, after), reader, reader.count_feeds(), pairs, reader.states, facts)
            result = replace(result, free_running_loss=drift)
            result.warnings.extend([warning] if warning else [])
    except VerificationError as error:
        raise ModelError(str(error)) from error
    return result


def _engine(runs_on: RunsOn | None, threads: int | None, stack: ExitStack) -> ProcessEngine | None:
    """The engine that was asked for, which the stack closes; None for this process."""
    if runs_on is None or runs_on == RunsOn():
        return None
    engine = start(runs_on, threads)
    stack.callback(engine.close)
    return engine


def _called(source: Source, otherwise: str) -> str:
    return os.fspath(source) if is_path(source) else otherwise


def _runnable(source: Source) -> tuple[Path | bytes, bool]:
    """What a session opens, and whether it may be optimized."""
    model = io.load(source)
    return Path(source) if is_path(source) else io.to_bytes(model), not has_float8(model)


@checked
@with_custom_ops
def benchmark(
    models: Sequence[str | os.PathLike[str]],
    *,
    data: object = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    memory: bool = True,
    custom_ops: Libraries = (),
    runs_on: RunsOn | None = None,
) -> BenchmarkResult:
    """Time models in alternation.

    Args:
        models: paths; ratios are to the first.
        data: samples, as for `quantize`; None makes one up.
        states: outputs and the inputs that they go back into at the next sample, as for `quantize`.
        threads: threads an operator may use; None means one.
        seconds: time to spend on each model.
        memory: measure peak memory, in a process for each model.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.
        runs_on: what runs and times the models; None is this process.

    Raises:
        ModelError: a model cannot be loaded.
        EngineError: the engine is not there, or does not run a model.
        CalibrationError: data that does not fit.
        RecipeError: no model was given, or states that it does not have or without samples.
    """
    if not models:
        raise RecipeError("benchmark: no model was given; name one or more")
    if states and data is None:
        raise RecipeError("--state: says what goes from one sample to the next, and there are none; pass --calibration")
    paths = [Path(model) for model in models]
    for path in paths:
        io.load(path)
    session = open_session(paths[0], threads=threads)
    warnings: list[str] = []
    feeds: Iterable[Feed]
    if data is None:
        feeds = [runnable_feed(session)]
        warnings.append(
            f"measured on one synthetic sample, {described(feeds[0])}; pass --calibration for the real shapes"
        )
    else:
        recurrence = Recurrence(session.output_specs, session.run, states or {})
        feeds = open_reader(with_tokens(data, paths[0]), session.input_specs, recurrence=recurrence)
        warnings += feeds.notes
    names = _distinct(paths)
    with ExitStack() as stack:
        engine = _engine(runs_on, threads, stack)
        if engine is not None:
            warnings.append(f"measured on {engine.about()}")
            warnings += left_to_the_cpu(engine, dict(zip(names, paths, strict=True)))
        rows = run_benchmark(
            dict(zip(names, paths, strict=True)),
            feeds,
            seconds=seconds,
            threads=threads or 1,
            memory=memory,
            engine=engine,
        )
        if said := drifting(rows, () if engine is None else engine.celsius):
            warnings.append(said)
    return BenchmarkResult(rows, warnings)


def _distinct(paths: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for path in paths:
        name, n = str(path), 1
        while name in names:
            n += 1
            name = f"{path} ({n})"
        names.append(name)
    return names
