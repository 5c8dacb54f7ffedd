"""The public API: each function is one reading of the way in `onnxq.pipeline`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from onnxq.recipe.recipe import Recipe
from onnxq.report.results import CalibrateResult, QuantizeResult
from onnxq.request.quantizing import quantize_by
from onnxq.request.report_of_run import report
from onnxq.request.run_options import QuantizeOptions, split_options
from onnxq.runtime.custom_ops import Libraries, registered, with_custom_ops
from onnxq.runtime.engines.places import RAY, RunsOn, spread_over
from onnxq.runtime.session import CPU
from onnxq.search.within.score import Function
from onnxq.stats.statistics import Statistics
from onnxq.stats.tensorrt_cache import cache_of
from onnxq.targets import target_named
from onnxq.targets.listing import presets, targets

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    preset: str | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    target: str | None = None,
    exclude: Sequence[str] = (),
    statistics: Statistics | str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    metric: str | Function | None = None,
    threads: int | None = None,
    report: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Unpack[QuantizeOptions],
) -> QuantizeResult:
    """Quantize a float model, verify the result and write it.

    Args:
        model: path of an ONNX file, or an ``onnx.ModelProto``; never changed.
        output: file to write; None writes ``<stem>.<preset>.onnx`` beside a file, else gives ``result.model`` alone.
        calibration: ``.npz`` file, folder, ``module:callable``, iterable of dicts or an object with ``get_next()``; for
            language models also a text file; None looks for ``calibration_data/<stem>.npz``.
        preset: a name that `presets` lists; "auto" by default.
        recipe: a `Recipe` or a YAML file with all of these; arguments win over it.
        target: a name that `targets` lists.
        exclude: patterns; nodes that match stay float.
        statistics: a `Statistics` or a file that `calibrate` wrote; its ranges are used instead of a new calibration.
        min_sqnr: dB that the worst output has to keep; with samples, the fastest such model is searched for.
        max_drop: largest fall of ``metric``: in points (0.5 is half a percent), or in the units of a function.
        metric: what ``max_drop`` is about: "top1" (accuracy where the data has labels, else agreement with float),
            "accuracy", "perplexity", "divergence", "sqnr" (``min_sqnr`` alone), or a function, or ``module:function``,
            of a runner: a callable from a feed to the outputs by name. It gives a number, higher for a better model,
            and brings its own data.
        threads: threads an operator may use; None lets the runtime choose (latency is then measured with one).
        report: HTML file to write beside the model: one page with figures, pictures and outputs of both models. Needs
            the extra ``report``.
        force: write the model even if verification fails.
        progress: called with (step, done, total).
        options: all other options of a recipe or of the run, by name: `onnxq.QuantizeOptions` lists them.

    Returns:
        Figures, decisions and the place of the file.

    Raises:
        ModelError: the model cannot be used.
        RecipeError: options that make no sense for it, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
        VerificationError: the result failed verification; nothing was written.
    """
    if is_path(model) and Path(model).is_dir():
        raise ModelError(f"quantize: {model} is a folder; use onnxq.quantize_folder, or name the ONNX file in it")
    named = {
        "calibration": calibration,
        "preset": preset,
        "recipe": recipe,
        "target": target,
        "exclude": exclude,
        "statistics": statistics,
        "min_sqnr": min_sqnr,
        "max_drop": max_drop,
        "metric": metric,
        "threads": threads,
        "report": report,
        "force": force,
        "progress": progress,
    }
    given, run = split_options("quantize", {**named, **options})
    return quantize_by(given, model, output, run)


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
