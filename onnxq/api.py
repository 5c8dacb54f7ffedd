"""The public API: each function is one reading of the way in `onnxq.pipeline`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from onnxq.data.carried_states import Recurrence
from onnxq.data.feeds import Feed
from onnxq.data.readers import open_reader
from onnxq.diagnosis.dequantizing import dequantize
from onnxq.diagnosis.examine import diagnose
from onnxq.diagnosis.inspecting import diff, inspect
from onnxq.errors import ModelError, RecipeError, VerificationError
from onnxq.graph.files import io
from onnxq.graph.files.saving import check_destination, write_text
from onnxq.graph.reading.output_facts import facts_of_file
from onnxq.pipeline.calibration import CalibrationOptions, calibrate_model
from onnxq.pipeline.clock import Clock, Progress
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import find_calibration, with_tokens
from onnxq.recipe.arguments import checked
from onnxq.recipe.foreign import Converted, convert
from onnxq.recipe.recipe import RECIPE_OPTIONS, Recipe
from onnxq.report.results import BenchmarkResult, CalibrateResult, QuantizeResult
from onnxq.runtime.custom_ops import Libraries, registered, with_custom_ops
from onnxq.runtime.session import CPU, open_session
from onnxq.runtime.synthetic import described, runnable_feed
from onnxq.search.quantizing import Options, quantize_by
from onnxq.search.report_of_run import report
from onnxq.search.within.score import Function
from onnxq.stats.statistics import Statistics
from onnxq.targets import target_named
from onnxq.targets.listing import presets, targets
from onnxq.verify.benchmark import benchmark as run_benchmark
from onnxq.verify.compare import Comparison, matched_outputs
from onnxq.verify.compare import compare as run_comparison
from onnxq.verify.free_running import free_running
from onnxq.verify.metrics import metric_of

__all__ = [
    "benchmark", "calibrate", "compare", "dequantize", "diagnose", "diff", "inspect", "presets", "quantize", "report",
    "targets",
]  # fmt: skip


@checked
@with_custom_ops
def quantize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: object = None,
    tokenizer: str | os.PathLike[str] | None = None,
    states: Mapping[str, str] | None = None,
    preset: str | None = None,
    format: str | None = None,
    range: str | None = None,
    percentile: float | None = None,
    per_channel: bool | None = None,
    symmetric: bool | None = None,
    bias_correct: bool | None = None,
    equalize: bool | None = None,
    smooth: float | str | None = None,
    outliers: float | None = None,
    adaround: bool | None = None,
    target: str | None = None,
    fuse: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    op_types: Sequence[str] = (),
    bits: int | None = None,
    block_size: int | None = None,
    algorithm: str | None = None,
    accuracy_level: int | None = None,
    target_bits: float | None = None,
    float_type: str | None = None,
    store_only: bool | None = None,
    keep_io: bool | None = None,
    fix_dims: Sequence[str] = (),
    float_outputs: Sequence[str] = (),
    engine_python: str | os.PathLike[str] | None = None,
    opset: int | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    statistics: Statistics | str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    max_memory: float | None = None,
    kv_cache: str | None = None,
    force: bool = False,
    threads: int | None = None,
    benchmark: bool = True,
    seconds: float = 0.4,
    workload: str | None = None,
    budget: float = 120.0,
    metric: str | Function | None = None,
    search_state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    cache: bool = True,
    report: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    custom_ops: Libraries = (),
) -> QuantizeResult:
    """Quantize a float model, verify the result and write it.

    Args:
        model: path of an ONNX file, or an ``onnx.ModelProto``; never changed.
        output: file to write; None writes ``<stem>.<preset>.onnx`` beside a file (``<stem>.auto.onnx`` whatever "auto"
            chooses), and nothing for a ModelProto, whose quantized form is then in ``result.model``.
        calibration: ``.npz`` file, folder of feeds, ``module:callable``, iterable of dicts or an object with
            ``get_next()``; for language models also a text file, a line or a paragraph a sample; None looks for
            ``calibration_data/<stem>.npz``. Inputs that are states of a recurrent model may be missing.
        tokenizer: the ``tokenizer.json`` that a text is read with; None takes the one beside the model.
        states: outputs and the inputs that they go back into at the next sample, ``{"hn": "h"}``, where names and
            shapes do not say so; these are carried over also where every sample holds them.
        preset: a name that `presets` lists; "auto" by default.
        format: "qdq" or "qoperator".
        range: "minmax", "percentile", "entropy" or "mse".
        percentile: share of the values in percent that the range "percentile" keeps.
        per_channel: weight scales by output channel.
        symmetric: activations, and packed weights, with zero in the middle of the grid.
        bias_correct: take what rounding the weights adds to a layer's mean from its bias; done by default.
        equalize: even out the weights of neighbouring layers channel by channel before they are quantized.
        smooth: SmoothQuant's α in 0…1, or "auto" for the best of a few by output error; needs samples.
        outliers: magnitude from which input channels of a layer are computed in float, with presets whose activations
            have a scale a row.
        adaround: learn for each weight whether to round it up or down; needs samples and time.
        target: a name that `targets` lists.
        fuse: model type (bert, gpt2, …) that `onnxruntime.transformers` fuses before planning, or "auto".
        include: patterns; only nodes that match are quantized.
        exclude: patterns; nodes that match stay float.
        op_types: only these operators are quantized.
        bits: bits of a packed weight: 2, 3, 4 or 8.
        block_size: elements of a packed weight that share a scale; 0 for one scale a column.
        algorithm: how packed weights are rounded.
        accuracy_level: of MatMulNBits: 0 computes in float32, 4 rounds activations to int8 inside the kernel; None
            takes 4, and with samples 0 for layers of which that would leave too little.
        target_bits: average bits a weight that packed weights may take, scales and zero points included.
        float_type: "float16" or "bfloat16" for what computes in float, with the presets w8, w4, w2; fp16 and bf16 say
            it themselves.
        store_only: store weights in that type and compute in float32.
        keep_io: inputs and outputs keep their types; done by default.
        fix_dims: ``"name=number"`` for each symbolic dimension that gets a fixed size everywhere.
        opset: operator set of the model that is written.
        float_outputs: operator types whose results stay float where they are outputs, for targets that quantize those.
        engine_python: the Python that has the engine of the target, such as one with onnxruntime-openvino.
        recipe: a `Recipe` or a YAML file with all of these; arguments win over it.
        statistics: a `Statistics` or a file that `calibrate` wrote; its ranges are used instead of a new calibration.
        min_sqnr: dB that the worst output has to keep. With samples, the fastest model that keeps this and ``max_drop``
            is searched for; verification fails where there is none.
        max_drop: largest fall of ``metric``: in points of accuracy or top-1 agreement (0.5 is half a percent), or in
            the units of a function.
        max_memory: GiB that second moments may take at a time; without samples, a model of more than a quarter of it is
            quantized a layer at a time.
        kv_cache: what a decoder's caches of keys and values hold: "float", "int8" or "int4"; the model's inputs and
            outputs for them change type. Attention in plain operators becomes GroupQueryAttention, which has such
            caches, and a decoder without any gets some.
        force: write the model even if verification fails.
        threads: threads an operator may use; None lets the runtime choose (latency is then measured with one).
        benchmark: measure latency.
        seconds: time to spend on measuring each model.
        workload: what the latency of a language model with a cache is of: "prefill" (a prompt of 128 tokens), "decode"
            (one token behind 192), or "chat", 128 tokens in and 128 out, by default.
        budget: seconds that the preset "auto", and a search for ``max_drop`` or ``min_sqnr``, may take; then the best
            candidate so far is returned.
        metric: what ``max_drop`` is about: "top1" (accuracy where the data has labels, else agreement with float),
            "accuracy", "perplexity", "divergence", "sqnr" (``min_sqnr`` alone), or a function, or ``module:function``,
            of a runner: a callable from a feed to the outputs by name. It gives a number, higher for a better model,
            and brings its own data.
        search_state: file that keeps what a search has measured, removed at success; None takes
            ``<output>.search.json``, or none where no file is written.
        resume: go on from that file where an earlier search was interrupted.
        cache: "auto" takes again what it chose for the same model, samples, options, versions and machine.
        report: HTML file to write beside the model: one page with figures, pictures and outputs of both models. Needs
            the extra ``report``.
        progress: called with (step, done, total).
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.

    Returns:
        Figures, decisions and the place of the file.

    Raises:
        ModelError: the model cannot be used.
        RecipeError: options that make no sense for it, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
        VerificationError: the result failed verification; nothing was written.
    """
    named = dict(locals())  # the options, by the names that a recipe and a run have for them
    if is_path(model) and Path(model).is_dir():
        raise ModelError(f"quantize: {model} is a folder; use onnxq.quantize_folder, or name the ONNX file in it")
    given = Recipe.given(recipe).override(**{name: named[name] for name in RECIPE_OPTIONS})
    run = {field.name: named[field.name] for field in fields(Options) if field.name in named}
    options = Options(**run, recipe_file=None if isinstance(recipe, Recipe) else recipe)
    return quantize_by(given, model, output, options)


@checked
@with_custom_ops
def calibrate(
    model: Source,
    output: str | os.PathLike[str],
    *,
    calibration: object = None,
    states: Mapping[str, str] | None = None,
    target: str = "cpu",
    threads: int | None = None,
    provider: str = CPU,
    progress: Progress | None = None,
    resume: bool = False,
    moments: bool = False,
    custom_ops: Libraries = (),
) -> CalibrateResult:
    """Run samples through a model and save the statistics that any recipe for the target could need.

    Args:
        model: path of an ONNX file, or an ``onnx.ModelProto``.
        output: the ``.npz`` file to write.
        calibration: as for `quantize`.
        states: as for `quantize`.
        target: a name that `targets` lists.
        threads: threads an operator may use; None lets the runtime choose.
        provider: execution provider that runs the float model.
        progress: called with (step, done, total).
        resume: go on from ``output`` where an earlier run was interrupted; it is saved now and then on the way.
        moments: also gather the second moments of layer inputs, which the algorithms GPTQ and AWQ need: for an input of
            n channels 8·n² bytes of memory, and as much in the file.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.

    Raises:
        ModelError: the model cannot be used.
        CalibrationError: data that does not fit it, or nothing to calibrate.
    """
    options = CalibrationOptions(target_named(target), threads, provider, resume=resume, moments=moments, states=states)
    path = Path(output)
    found = calibration if calibration is not None else find_calibration(model)
    check_destination(path, (model, found, *registered()))
    return calibrate_model(model, path, with_tokens(found, model), options, Clock(progress))


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

    Raises:
        CalibrationError: data that does not fit.
        ModelError: a model cannot be loaded, or the outputs are not those of one model.
        RecipeError: there is no data, no such metric, or it cannot be had from these models and data.
    """
    reference, actual = _runnable(float_model), _runnable(quantized_model)
    found = data if data is not None else find_calibration(float_model)
    if found is None:
        raise RecipeError("compare: no data was given and no calibration_data/<model stem>.npz was found")
    found = with_tokens(found, float_model)
    before = open_session(reference, threads=threads, label=_called(float_model, "float model"))
    after = open_session(actual, threads=threads, label=_called(quantized_model, "quantized model"))
    names, others = ([spec.name for spec in session.input_specs] for session in (before, after))
    if set(names) != set(others):
        raise ModelError(
            f"{after.label}: its inputs {others} are not those of {before.label}, {names}; "
            "compare a model with its own quantized form"
        )
    recurrence = Recurrence(before.output_specs, before.run, states or {})
    reader = open_reader(found, before.input_specs, recurrence=recurrence)
    try:
        facts = facts_of_file(reference, reader.states)
        result = run_comparison(before, after, reader, labels=reader.labels, facts=facts)
        if reader.states:
            pairs = matched_outputs(before, after)
            drift, warning = free_running((before, after), reader, reader.count_feeds(), pairs, reader.states, facts)
            result = replace(result, free_running_loss=drift)
            result.warnings.extend([warning] if warning else [])
    except VerificationError as error:
        raise ModelError(str(error)) from error
    result.warnings.extend(reader.notes)
    return result if metric is None else replace(result, metric=metric_of(result, metric))


def _called(source: Source, otherwise: str) -> str:
    return os.fspath(source) if is_path(source) else otherwise


def _runnable(source: Source) -> Path | bytes:
    model = io.load(source)
    return Path(source) if is_path(source) else io.to_bytes(model)


@checked
@with_custom_ops
def benchmark(
    models: Sequence[str | os.PathLike[str]],
    *,
    data: object = None,
    threads: int | None = None,
    seconds: float = 3.0,
    memory: bool = True,
    custom_ops: Libraries = (),
) -> BenchmarkResult:
    """Time models in alternation.

    Args:
        models: paths; ratios are to the first.
        data: samples, as for `quantize`; None makes one up.
        threads: threads an operator may use; None means one.
        seconds: time to spend on each model.
        memory: measure peak memory, in a process for each model.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.

    Raises:
        ModelError: a model cannot be loaded.
        CalibrationError: data that does not fit.
    """
    if not models:
        raise RecipeError("benchmark: no model was given; name one or more")
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
        recurrence = Recurrence(session.output_specs, session.run)
        feeds = open_reader(with_tokens(data, paths[0]), session.input_specs, recurrence=recurrence)
        warnings += feeds.notes
    names = _distinct(paths)
    rows = run_benchmark(
        dict(zip(names, paths, strict=True)), feeds, seconds=seconds, threads=threads or 1, memory=memory
    )
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


def convert_config(config: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Converted:
    """Turn another tool's configuration into a recipe.

    Args:
        config: JSON file of Olive, optimum, transformers.js or Quark.
        output: YAML file to write; None writes nothing.

    Returns:
        The recipe, whose configuration it was, and notes of what was not taken over.

    Raises:
        RecipeError: the file cannot be read, or is none of these.
    """
    found = convert(Path(config))
    if output is not None:
        check_destination(Path(output), (config,))
        write_text(output, found.recipe.to_yaml())
    return found
