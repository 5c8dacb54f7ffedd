"""When a search lets blocks of the network learn: where integers everywhere miss the limits and there is time left."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.qat import has_torch
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.search.within.history import StepOutcome

_SHARE = 0.5
"""Share of the time that is left which learning may take; the rest is for what comes after it."""

_LEAST = 20.0
"""Seconds with less than which no block learns anything."""

LEAST_SECONDS = _LEAST / _SHARE
"""Seconds that have to be left for learning to be tried."""


def unlearned(recipe: Recipe) -> Recipe:
    """The recipe without what takes minutes: a search makes many models of it, and lets one of them learn."""
    preset = "w8a8" if PRESETS[recipe.preset].reconstruct else recipe.preset
    return replace(recipe, preset=preset, reconstruct=False)


def learned(recipe: Recipe, seconds: float) -> Recipe | None:
    """The recipe with blocks that learn; None where its activations are not static, or there is too little time.

    Args:
        recipe: what would be tried without.
        seconds: that are left.
    """
    share = seconds * _SHARE
    if PRESETS[recipe.preset].activations != "static" or recipe.reconstructs or share < _LEAST:
        return None
    return replace(recipe, reconstruct=True, algorithm=None, minutes=min(recipe.minutes, share / 60.0))


def learns_until(recipe: Recipe, seconds: float) -> float | None:
    """When learning has to be over, as `time.monotonic`, with so many seconds left; None where that is too early.

    Minutes of a recipe are of computing, which takes longer on a busy machine: a search promised a time on the clock.
    """
    if not recipe.reconstructs:
        return math.inf
    share = seconds * _SHARE
    return None if share < _LEAST else time.monotonic() + min(60.0 * recipe.minutes, share)


def noted(outcome: StepOutcome, built: Candidate) -> StepOutcome:
    """The outcome of a model with what is to be said of its blocks, where they learned."""
    return outcome if built.reconstructed is None else replace(outcome, note=built.reconstructed.words())


def can_learn(job: Job) -> bool:
    """Whether there are samples to learn from, and PyTorch; a model that came trained keeps what it has."""
    return job.data is not None and job.prepared.training is None and has_torch()


def lacks_torch(job: Job) -> bool:
    """Whether PyTorch alone is missing for blocks to learn."""
    return job.data is not None and job.prepared.training is None and not has_torch()
