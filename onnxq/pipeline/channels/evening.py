"""Even out the channels of activations before anything is quantized, where the whole model gains by it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from onnxq.errors import ModelError, OnnxqError
from onnxq.graph.edit import copy_of
from onnxq.graph.types import Model
from onnxq.passes.channel_factors import channel_factors
from onnxq.passes.even_out import even_out, rounded
from onnxq.pipeline.build import build
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.job import Data, Job, contents
from onnxq.pipeline.planning import seen_by
from onnxq.plan.decisions import INTEGER
from onnxq.plan.make_plan import make_plan
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.sampled_rows import sample_channels
from onnxq.runtime.session import open_session
from onnxq.verify.compare import Comparison, Patience, compare_all

_FEEDS, _ROWS = 12, 384
"""Samples, and places of a value, that factors of channels are tried on: one that is twice what it should be costs a
channel one bit of many."""

_RANGES_FROM, _COMPARED, _SECONDS = 32, 64, 2.0
"""Samples that make ranges of both forms, held-out ones that they are compared on, and the time that each may take.
From eight samples the ranges of a text recognizer were such that the worse form looked better by 1.6 dB."""


def even_channels(job: Job) -> None:
    """Scale channels of activations that share a grid, in the weights around them; what the model computes stays.

    Done once, before anything is calibrated, so that all that is built of the model has it. Left out where nothing
    gets a calibrated 8-bit grid, weights have one scale for all channels, ranges or integers were given, or the user
    asked for channels to be scaled in another way. Factors are chosen layer by layer; then the quantized model is
    compared with and without them, and if it is closer to float without, a note says so.

    Args:
        job: its prepared model is replaced.
    """
    recipe, data, prepared = job.recipe, job.data, job.prepared
    static = any(preset.activations == "static" and preset.activation_bits == 8 for preset in recipe.presets)
    other = recipe.equalize or recipe.rotate or recipe.smooths or recipe.fuse is not None or not recipe.per_channel
    ranges = any(rule.range or rule.scale or rule.min_range for rule in recipe.values)  # in the user's own units
    given = job.statistics is not None or prepared.training is not None or ranges
    if data is None or given or other or not (static or recipe.preset == "auto"):
        return
    as_static = recipe if static else recipe.override(preset="w8a8")
    with job.clock.step("equalize"):
        evened = _evened(job, as_static, data)
        if evened is None:
            return
        plain = _compared(job, as_static, data, (prepared.model, evened))
        if plain:
            prepared.notes.append(plain)
        else:
            prepared.model, prepared.evened = evened, True


def _evened(job: Job, recipe: Recipe, data: Data) -> Model | None:
    """A copy with channels evened out by what single layers gain; None where nothing changes."""
    model = copy_of(job.prepared.model)
    factors = channel_factors(model.graph)
    if not factors.read:
        return None
    plan = make_plan(job.prepared.model, recipe, job.target, seen_by(job))
    factors = rounded(factors, {name for name, node in plan.nodes.items() if node.action == INTEGER})
    axes = {value.name or "": factors.axes[value.name or ""] for _, value, _ in factors.rounding}
    if not axes:
        return None
    try:
        seen = sample_channels(model, axes, data.calibration, rows=_ROWS, feeds=_FEEDS, threads=job.threads)
    except ModelError:
        return None  # calibration says what is wrong
    return model if even_out(model, factors, seen) else None


def _compared(job: Job, recipe: Recipe, data: Data, models: tuple[Model, Model]) -> str:
    """What to say where the model is closer to float without factors; empty where it is not.

    The estimate sees one layer's noise at a time: not what errors do to each other, nor to the model's outputs.
    """
    learned = PRESETS[recipe.preset].distill or PRESETS[recipe.preset].reconstruct
    recipe = replace(
        recipe, preset="w8a8" if learned else recipe.preset,
        adaround=False, reconstruct=False, finetune=False, target_bits=None, min_sqnr=None, max_drop=None,
    )  # fmt: skip
    few = replace(data, calibration=data.calibration.part(0, min(_RANGES_FROM, data.calibration.count_feeds())))
    count = min(_COMPARED, data.held_out.count_feeds())
    with ExitStack() as stack:
        quick = replace(job, recipe=recipe, data=few, clock=Clock(None), stack=stack)
        try:
            sessions = []
            for model in models:
                made = build(replace(quick, prepared=replace(job.prepared, model=model)))
                sessions.append(open_session(contents(made.quantized, stack), threads=job.threads))
            reference = open_session(job.prepared.original, threads=job.threads, label="float model")
            patience = [Patience(_SECONDS)] * len(sessions)
            found = compare_all(
                reference, sessions, data.held_out.part(0, count), patience=patience, facts=job.output_facts()
            )
        except OnnxqError:
            return ""  # whoever builds and verifies the model says what is wrong
    return _said(*found)


def _said(plain: Comparison, evened: Comparison) -> str:
    before, after = plain.sqnr_db, evened.sqnr_db
    if before is None or after is None:
        worse = plain.loss is not None and evened.loss is not None and plain.loss < evened.loss
        return "channels of activations were not evened out: held-out samples lose more with it" if worse else ""
    if before <= after:
        return ""
    return (
        f"channels of activations were not evened out: held-out samples have an SQNR of {before:.1f} dB without and "
        f"{after:.1f} dB with it"
    )
