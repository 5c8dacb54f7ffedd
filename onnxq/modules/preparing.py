"""``onnxq.qat.prepare``: a PyTorch module that computes what ``onnxq.quantize`` would write, and learns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.core.processors import blas_threads
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.views.exported_module import ExportedGraph, randomized, with_constants
from onnxq.graph.views.plain_graph import plain_graph
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.channels.evening import even_channels
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.finetuned import narrow_ranges
from onnxq.pipeline.making import make
from onnxq.pipeline.planning import settle_preset
from onnxq.qat import need_torch
from onnxq.recipe.arguments import checked
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import refuse_unused
from onnxq.request.opening import open_job
from onnxq.request.run_options import Options

if TYPE_CHECKING:
    from onnxq.qat.trainable.exporting import Exported
    from onnxq.qat.trainable.quantized_module import QuantizedModule

_MOST_FEEDS = 512
"""Samples of the example that ranges are measured on, at most."""


@dataclass(frozen=True)
class ModuleOrigin:
    """What a prepared module was made of: plain data, so that the module can be copied and pickled.

    Attributes:
        exported: the float model.
        recipe: how it is quantized.
        calibration: samples, as they were given.
        chosen: the quantized model and its plan, without its graph.
    """

    exported: ExportedGraph
    recipe: Recipe
    calibration: Any
    chosen: Candidate


@checked
def prepare(
    module: Any,
    example_inputs: Any,
    *,
    target: str | None = None,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    calibration: object = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> QuantizedModule:
    """A trainable module whose fake quantization is what `onnxq.quantize` would write.

    The module is exported by torch.export and quantized; what is returned computes the quantized graph, and is called
    and trained as the module was. It trains the module's own parameters.

    Args:
        module: any float32 module that torch.export takes.
        example_inputs: a tensor, a tuple of arguments, or a dict of them by name. Ranges of activations are measured on
            them where there is no ``calibration``, so let them be real samples.
        target: a name that `onnxq.targets` lists.
        recipe: a `Recipe`, a dict of its keys such as ``{"preset": "w8a8", "bits": 4}``, or a YAML file; by default
            w8a8.
        calibration: samples for ranges, as for `onnxq.quantize`, by the names of the model's inputs.
        dynamic_shapes: as of ``torch.export.export``; by default the first axis of every tensor may vary.
        input_names: of the model that is exported; by default those of ``forward``.
        output_names: the same of outputs.

    Returns:
        The module, in the mode that the one given is in.

    Raises:
        MissingExtraError: PyTorch or onnxscript is not installed.
        ModelError: the module cannot be exported.
        CalibrationError: it does not run on the example, or the samples do not fit it.
        RecipeError: options that make no sense for it, or there is nothing to train.
        TargetError: there is no such target.
    """
    need_torch("onnxq.qat.prepare")
    from onnxq.qat.trainable.exporting import export_module
    from onnxq.qat.trainable.quantized_module import Knitting, QuantizedModule
    from onnxq.qat.trainable.ties import find_ties, with_factors

    given = _checked(recipe, target)
    exported = export_module(module, example_inputs, dynamic_shapes, (input_names, output_names))
    samples = calibration if calibration is not None else _samples(exported)
    with ExitStack() as stack, blas_threads():
        options = Options(calibration=samples, benchmark=False)
        job = open_job(given, exported.graph.model, None, options, Clock(None), stack).job
        first, random = plain_graph(job.prepared.model), randomized(exported.graph)
        other = load_and_prepare(
            with_constants(exported.graph.model, random), job.target, Clock(None), job.prepared.wishes
        )
        pair = exported.graph.constants, {**exported.graph.constants, **random}
        ties = find_ties(first, plain_graph(other.model), pair, exported.graph.norms)
        even_channels(job)
        ties = with_factors(ties, plain_graph(job.prepared.model))
        chosen = _made(job)
        content = io.to_bytes(chosen.quantized)
        ranges = narrow_ranges(plain_graph(io.load(content)), chosen.plan)
    parts = Knitting(exported.graph, exported.arguments, content, ties, ranges, job.prepared.sources)
    found = QuantizedModule(module, parts)
    found.notes += [*exported.notes, *job.prepared.notes]
    bare = replace(chosen, model=None, content=b"", statistics=None)
    found.origin = ModuleOrigin(exported.graph, job.recipe, samples, bare)
    return found


_OTHERWISE = {
    "adaround": "--adaround", "reconstruct": "--reconstruct", "equalize": "--equalize", "smooth": "--smooth",
    "rotate": "--rotate", "learn_rotation": "--learn-rotation", "fuse": "--fuse", "kv_cache": "--kv-cache",
    "float_type": "--float-type", "target_bits": "--target-bits", "max_drop": "--max-drop", "min_sqnr": "--min-sqnr",
    "sequential": "--sequential", "drop_tail": "--drop-tail",
}  # fmt: skip
"""Options that change the float model first, or search for a model, or learn in another way."""


def _checked(recipe: object, target: str | None) -> Recipe:
    """The recipe, and that it leaves the weights to the module.

    Raises:
        RecipeError: it does not.
    """
    given = Recipe.given(recipe).override(target=target)
    default = Recipe()
    given = given.override(preset="w8a8") if given.preset == "auto" else given
    for name, option in _OTHERWISE.items():
        if getattr(given, name) != getattr(default, name):
            raise RecipeError(
                f"prepare: {option} changes weights before they are trained, or looks for another model; leave it out"
            )
    if given.smooths or given.learns or given.reconstructs or given.half is not None:
        raise RecipeError(
            f"prepare: preset {given.preset} changes weights before they are trained; use w8a8, w4a4, w8a16 or w4"
        )
    if any(preset.weights == "blocks" for preset in given.presets) and given.algorithm is None:
        given = given.override(algorithm="rtn")  # weights are rounded to nearest in training
    refuse_unused(given.override(finetune=True))
    return given


def _samples(exported: Exported) -> list[Feed]:
    """The example, sample by sample where it is a batch."""
    feed, batch = exported.feed, exported.arguments.batch
    lengths = {array.shape[0] for array in feed.values() if array.ndim}
    if batch is not None or len(lengths) != 1 or any(not array.ndim for array in feed.values()):
        return [feed]
    count = min(lengths.pop(), _MOST_FEEDS)
    return [{name: np.ascontiguousarray(array[i : i + 1]) for name, array in feed.items()} for i in range(count)]


def _made(job: Job) -> Candidate:
    """The quantized model as ``onnxq.quantize`` makes it; its accuracy does not matter yet."""
    job.recipe = settle_preset(job.recipe, job.data is not None)
    chosen = make(job, timed=False)
    if chosen.verdict.refused or chosen.model is None:
        raise ModelError(f"prepare: the quantized module cannot be run: {'; '.join(chosen.verdict.failures)}")
    return chosen
