"""Even out the channels of the prepared model's activations, where static integers may come of it."""

from __future__ import annotations

from onnxq.errors import ModelError
from onnxq.passes.channel_factors import channel_factors
from onnxq.passes.even_out import even_out, rounded
from onnxq.pipeline.job import Job
from onnxq.pipeline.planning import seen_by
from onnxq.plan.decisions import INTEGER
from onnxq.plan.make_plan import make_plan
from onnxq.runtime.sampled_channels import sample_channels

_FEEDS = 12
"""Samples that are run: a factor that is twice what it should be costs a channel one bit of many."""

_ROWS = 384
"""Places that exponents are tried on, about."""


def even_channels(job: Job) -> None:
    """Scale channels of activations that share a grid, in the weights around them; what the model computes stays.

    Done once, before anything is calibrated, so that all that is built of the model has it. Left out where nothing
    gets a calibrated 8-bit grid, weights have one scale for all channels, ranges or integers were given, or the user
    asked for channels to be scaled in another way.

    Args:
        job: its prepared model is changed in place.
    """
    recipe, data, prepared = job.recipe, job.data, job.prepared
    static = any(preset.activations == "static" and preset.activation_bits == 8 for preset in recipe.presets)
    other = recipe.equalize or recipe.smooths or recipe.fuse is not None or not recipe.per_channel
    given = job.statistics is not None or prepared.training is not None
    if data is None or given or other or not (static or recipe.preset == "auto"):
        return
    with job.clock.step("equalize"):
        factors = channel_factors(prepared.model.graph)
        if not factors.read:
            return
        as_static = recipe if static else recipe.override(preset="w8a8")
        plan = make_plan(prepared.model, as_static, job.target, seen_by(job))
        factors = rounded(factors, {name for name, node in plan.nodes.items() if node.action == INTEGER})
        axes = {value.name or "": factors.axes[value.name or ""] for _, value, _ in factors.rounding}
        if not axes:
            return
        try:
            seen = sample_channels(
                prepared.model, axes, data.calibration, rows=_ROWS, feeds=_FEEDS, threads=job.threads
            )
        except ModelError:
            return  # calibration says what is wrong
        even_out(prepared.model, factors, seen)
