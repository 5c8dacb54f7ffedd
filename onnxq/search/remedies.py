"""What would help a model that came out badly: a few other ways, tried within some seconds, with their figures."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from onnxq.errors import OnnxqError
from onnxq.pipeline.build import build
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.gate import HIGH_LOSS, LOW_SQNR_DB, Verdict
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.learned.held_out import in_time
from onnxq.pipeline.planning import settle_preset
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import open_session
from onnxq.targets import Target
from onnxq.verify.compare import compare

_SECONDS = 15.0
"""For all attempts; none is begun that would take longer than what is left."""

_BETTER_DB = 3.0
"""How much better an attempt has to be to be named."""

_NAMED = 2

_OTHERS = {
    "w8a8": ("w8a8-smooth", "llm-int8", "w8a8-token", "w8"),
    "w8a8-learned": ("w8a8-smooth", "llm-int8", "w8a8-token", "w8"),
    "w4a4": ("w8a8", "w4a16", "w8"),
    "fp8": ("w8a8", "w8"),
    "w8a16": ("w8",),
    "w4a16": ("w8a16", "w8"),
    "w8a8-smooth": ("llm-int8", "w8a8-token", "w8"),
    "w8a8-dynamic": ("llm-int8", "w8a8-smooth", "w8a8-token", "w8"),
    "w8a8-token": ("llm-int8", "w8a8-smooth", "w8"),
    "zeroquant": ("llm-int8", "w8a8-smooth", "w8"),
    "llm-int8": ("w8a8-smooth", "w8"),
    "w2": ("w4", "w8"),
    "w4": ("w8",),
    "nf4": ("w8",),
    "fp4": ("nf4", "w8"),
    "lut4": ("lut8", "w8"),
    "lut8": ("w8",),
}
"""Presets worth a try where another is too rough, the fastest first."""


_TO_NEAREST = ("w8", "w8a8", "w8a8-dynamic", "w8a8-token")
"""Presets whose weights can be rounded by their use at no cost in time or size."""


def what_helps(job: Job, verdict: Verdict) -> str | None:
    """What was tried and is better, in words; None where the model is good enough, or nothing was found in time.

    Args:
        job: how the model was made; its recipe names a preset.
        verdict: what verification said of it.
    """
    found, recipe = verdict.comparison, job.recipe
    if found is None or found.sqnr_db is None or job.data is None:
        return None
    low = bool(verdict.failures) or found.sqnr_db < LOW_SQNR_DB or bool(found.outside(HIGH_LOSS))
    if not low:
        return None
    cost = sum(job.clock.seconds.get(step, 0.0) for step in ("plan", "calibrate", "transform", "rewrite"))
    end = time.monotonic() + _SECONDS
    better: list[tuple[float, str]] = []
    for name, other in _attempts(recipe, job.target):
        if time.monotonic() + cost > end:
            break
        started = time.monotonic()
        decibels = _tried(job, other, end)
        cost = max(cost, time.monotonic() - started)
        if decibels is not None and decibels > found.sqnr_db + _BETTER_DB:
            better.append((decibels, name))
    if not better:
        return None
    better.sort(reverse=True)
    return "tried on the held-out samples: " + ", ".join(f"{name} gives {db:.1f} dB" for db, name in better[:_NAMED])


def _attempts(recipe: Recipe, target: Target) -> list[tuple[str, Recipe]]:
    """Other recipes, by the options that ask for them."""
    preset = PRESETS[recipe.preset]
    found = []
    if preset.weights == "blocks" and recipe.accuracy_level not in (0, None):
        found.append(("--accuracy-level 0", recipe.override(accuracy_level=0)))
    learns = recipe.adaround or recipe.reconstruct or recipe.finetune
    if recipe.preset in _TO_NEAREST and recipe.algorithm in (None, "rtn") and not learns:
        found.append(("--algorithm gptq", recipe.override(algorithm="gptq")))
    others = _OTHERS.get(recipe.preset, ())
    if target.presets:  # all that it runs
        wider = () if preset.activation_bits == 16 else ("w8a16",)
        others = tuple(name for name in (*others, *wider) if name in target.presets)
    for name in others:
        # what was asked of the weights belongs to the preset that it was asked with
        other = Recipe(
            preset=name,
            range=recipe.range,
            target=recipe.target,
            include=recipe.include,
            exclude=recipe.exclude,
            op_types=recipe.op_types,
            rules=recipe.rules,
            equalize=recipe.equalize,
            fuse=recipe.fuse,
        )
        found.append((f"-p {name}", other))
    return found


def _tried(job: Job, recipe: Recipe, end: float) -> float | None:
    """SQNR of the model that a recipe makes, on held-out samples, in dB; None where it makes none."""
    assert job.data is not None
    try:
        with job.clock.step("verify"), ExitStack() as stack:
            settled = settle_preset(recipe, has_data=True)
            built = build(replace(job, recipe=settled, statistics=None, clock=Clock(None)))
            session = open_session(contents(built.quantized, stack), threads=job.threads)
            feeds = in_time(job.data.held_out, max(end - time.monotonic(), 0.0))
            return compare(job.prepared.original, session, feeds, threads=job.threads).sqnr_db
    except OnnxqError:
        return None
