"""The public API: each function is one reading of the way in `onnxq.pipeline`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

from onnxq.diagnosis.dequantizing import dequantize
from onnxq.diagnosis.examine import diagnose
from onnxq.diagnosis.inspecting import diff, inspect
from onnxq.diagnosis.measuring import benchmark, compare
from onnxq.errors import ModelError, RecipeError
from onnxq.graph.files.saving import check_destination, write_text
from onnxq.pipeline.calibration import CalibrationOptions, calibrate_model
from onnxq.pipeline.clock import Clock, Progress
from onnxq.pipeline.deliver.linting import lint
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import find_calibration, with_tokens
from onnxq.recipe.arguments import checked
from onnxq.recipe.foreign import ForeignRecipe, convert
from onnxq.recipe.recipe import RECIPE_OPTIONS, Recipe
from onnxq.report.results import CalibrateResult, QuantizeResult
from onnxq.runtime.custom_ops import Libraries, registered, with_custom_ops
from onnxq.runtime.engines.places import RAY, RunsOn, spread_over
from onnxq.runtime.session import CPU
from onnxq.search.quantizing import Options, quantize_by
from onnxq.search.report_of_run import report
from onnxq.search.within.score import Function
from onnxq.stats.statistics import Statistics
from onnxq.stats.tensorrt_cache import cache_of
from onnxq.targets import target_named
from onnxq.targets.listing import presets, targets

__all__ = [
    "benchmark", "calibrate", "compare", "dequantize", "diagnose", "diff", "inspect", "lint", "presets", "quantize",
    "report", "targets",
]  # fmt: skip


@checked
@with_custom_ops
def quantize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: object = None,
    tokenizer: str | os.PathLike[str] | None = None,
    generate: int | None = None,
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
    reconstruct: bool | None = None,
    finetune: bool | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    target: str | None = None,
    fuse: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    op_types: Sequence[str] = (),
    bits: int | None = None,
    block_size: int | None = None,
    algorithm: str | None = None,
    sequential: bool | None = None,
    accuracy_level: int | None = None,
    target_bits: float | None = None,
    float_type: str | None = None,
    store_only: bool | None = None,
    keep_io: bool | None = None,
    fix_dims: Sequence[str] = (),
    float_outputs: Sequence[str] = (),
    engine_python: str | os.PathLike[str] | None = None,
    runs_on: RunsOn | None = None,
    drop_tail: bool | None = None,
    opset: int | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    statistics: Statistics | str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    max_memory: float | None = None,
    kv_cache: str | None = None,
    rotate: bool | None = None,
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
    external_data: bool = False,
    progress: Progress | None = None,
    custom_ops: Libraries = (),
) -> QuantizeResult:
    """Quantize a float model, verify the result and write it.

    Args:
        model: path of an ONNX file, or an ``onnx.ModelProto``; never changed.
        output: file to write; None writes ``<stem>.<preset>.onnx`` beside a file, else gives ``result.model`` alone.
        calibration: ``.npz`` file, folder, ``module:callable``, iterable of dicts or an object with ``get_next()``; for
            language models also a text file; None looks for ``calibration_data/<stem>.npz``.
        tokenizer: the ``tokenizer.json`` that a text is read with; None takes the one beside the model.
        generate: texts that a language model writes itself as its samples, instead of ``calibration``.
        states: outputs and the inputs that they go back into at the next sample, ``{"hn": "h"}``, if names do not say.
        preset: a name that `presets` lists; "auto" by default.
        format: "qdq" or "qoperator".
        range: "minmax", "percentile", "entropy", "mse" or "average".
        percentile: share of the values in percent that the range "percentile" keeps.
        per_channel: weight scales by output channel.
        symmetric: activations, and packed weights, with zero in the middle of the grid.
        bias_correct: take what rounding the weights adds to a layer's mean from its bias; done by default.
        equalize: even out the weights of neighbouring layers channel by channel before they are quantized.
        smooth: SmoothQuant's α in 0…1, or "auto" for the best of a few by output error; needs samples.
        outliers: magnitude from which a layer's input channels are float, where activations have a scale a row.
        adaround: learn for each weight whether to round it up or down; needs samples and time.
        reconstruct: let blocks learn weights' rounding, activations' grids and biases; needs samples and PyTorch.
        finetune: let the quantized model learn end to end from the float model; needs samples and PyTorch.
        minutes: time that either learning may take; 4 by default.
        epochs: passes of finetuning over the samples; by their number by default.
        learning_rate: of finetuning, as a share of scales and grids; 0.002 by default.
        seed: of the order of the samples in finetuning, and of what ``generate`` draws.
        device: that finetuning runs on, "cpu" or "cuda".
        target: a name that `targets` lists.
        fuse: model type (bert, gpt2, …) that `onnxruntime.transformers` fuses before planning, or "auto".
        include: patterns; only nodes that match are quantized.
        exclude: patterns; nodes that match stay float.
        op_types: only these operators are quantized.
        bits: bits of a packed weight: 2, 3, 4 or 8.
        block_size: elements of a packed weight that share a scale; 0 for one scale a column.
        algorithm: how packed weights are rounded.
        sequential: round them in the order of the graph, each by what the quantized layers before it give.
        accuracy_level: of MatMulNBits: 0 computes in float32, 4 rounds activations to int8 inside the kernel.
        target_bits: average bits a weight that packed weights may take, scales and zero points included.
        float_type: "float16" or "bfloat16" for what computes in float, with the presets w8, w4, w2.
        store_only: store weights in that type and compute in float32.
        keep_io: inputs and outputs keep their types; done by default.
        fix_dims: ``"name=number"`` for each symbolic dimension that gets a fixed size everywhere.
        runs_on: the provider, the device behind a shell, or onnxruntime-web in Node that runs and times models;
            "fastest" then means there. With target "web" this is Node where ``ONNXQ_NODE_MODULES`` names it. Engine
            "ray" spreads the work instead.
        drop_tail: take post-processing off (non-maximum suppression, TopK and what depends on them); the model gives
            what that read, and a warning says what.
        opset: operator set of the model that is written.
        float_outputs: operator types whose results stay float where they are outputs, for targets that quantize those.
        engine_python: the Python that has the engine of the target, such as one with onnxruntime-openvino.
        recipe: a `Recipe` or a YAML file with all of these; arguments win over it.
        statistics: a `Statistics` or a file that `calibrate` wrote; its ranges are used instead of a new calibration.
        min_sqnr: dB that the worst output has to keep; with samples, the fastest such model is searched for.
        max_drop: largest fall of ``metric``: in points (0.5 is half a percent), or in the units of a function.
        max_memory: GiB for second moments; without samples, a model above a quarter of it is quantized by layers.
        kv_cache: what a decoder's caches of keys and values hold: "float", "int8" or "int4"; missing ones are added.
        rotate: turn the residual stream and heads of values by orthogonal matrices folded into the weights (QuaRot).
        force: write the model even if verification fails.
        threads: threads an operator may use; None lets the runtime choose (latency is then measured with one).
        benchmark: measure latency.
        seconds: time to spend on measuring each model.
        workload: what the latency of a language model with a cache is of: "prefill", "decode", or "chat" by default.
        budget: seconds that the preset "auto", and a search for ``max_drop`` or ``min_sqnr``, may take.
        metric: what ``max_drop`` is about: "top1" (accuracy where the data has labels, else agreement with float),
            "accuracy", "perplexity", "divergence", "sqnr" (``min_sqnr`` alone), or a function, or ``module:function``,
            of a runner: a callable from a feed to the outputs by name. It gives a number, higher for a better model,
            and brings its own data.
        search_state: file that keeps what a search has measured; None takes ``<output>.search.json``.
        resume: go on from that file where an earlier search was interrupted.
        cache: "auto" takes again what it chose for the same model, samples, options, versions and machine.
        report: HTML file to write beside the model: one page with figures, pictures and outputs of both models. Needs
            the extra ``report``.
        external_data: weights go into a file beside the model whatever its size, not only above 2 GB.
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
    to: str | os.PathLike[str] | None = None,
    custom_ops: Libraries = (),
    engine: str = "local",
    ray_address: str | None = None,
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
        to: also write the ranges as a calibration cache of TensorRT there; the target is then "tensorrt".
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.
        engine: "local", or "ray" to run the samples on the machines of a Ray cluster; the result is the same.
        ray_address: ``host:port`` of its head; None starts one on this machine.

    Raises:
        ModelError: the model cannot be used.
        CalibrationError: data that does not fit it, or nothing to calibrate.
        EngineError: the cluster cannot be used.
    """
    if engine not in ("local", RAY):
        raise RecipeError(f"--engine: there is no {engine!r}; it is 'local' or {RAY!r}")
    if engine == RAY and resume:
        raise RecipeError("--resume: goes on in this process alone; leave it or --engine ray out")
    spread = RunsOn(engine=None if engine == "local" else engine, address=ray_address)
    target = target if to is None else "tensorrt"
    options = CalibrationOptions(target_named(target), threads, provider, resume=resume, moments=moments, states=states)
    path = Path(output)
    found = calibration if calibration is not None else find_calibration(model)
    check_destination(path, (model, found, *registered()))
    if to is not None:
        check_destination(Path(to), (model, found, path, *registered()))
    with ExitStack() as stack:
        if spread.engine == RAY:
            options = replace(options, tasks=spread_over(spread, stack))
        result = calibrate_model(model, path, with_tokens(found, model), options, Clock(progress))
    if to is not None:
        write_text(Path(to), cache_of(dict(result.statistics.items())))
    return result


def convert_config(config: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> ForeignRecipe:
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
