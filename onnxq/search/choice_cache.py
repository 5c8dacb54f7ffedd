"""What ``auto`` chose, in the user's cache folder: the same model, samples and machine get the same answer again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.core import atomic
from onnxq.errors import OnnxqError
from onnxq.graph.files import io
from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import Compared, verify
from onnxq.pipeline.job import Job, contents
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.machine import cache_folder, machine_key
from onnxq.runtime.session import open_session
from onnxq.search.bases import cleaned
from onnxq.search.choice import CLEANED, FLOAT
from onnxq.search.comparing import Judge
from onnxq.verify.benchmark import Timing
from onnxq.verify.budget import Limits

REUSED = (
    "the choice is the one that an earlier run measured for this model, these samples and this machine; "
    "--no-cache measures anew"
)

_SLOWER = 0.9
"""Speed over float below which a choice is measured again."""


def place_of(job: Job) -> Path:
    """The file of a job's choice: named by all that the choice depends on."""
    data = f"{job.data.every.hash} {sorted((job.data.every.states or {}).items())}" if job.data is not None else ""
    known = io.model_hash(job.prepared.model)
    used = "" if job.workload is None else job.workload.key
    where = "" if job.engine is None else f"{job.engine.label} {job.engine.about()}"
    parts = (
        __version__,
        where,
        machine_key(job.timed_threads),
        known,
        data,
        job.recipe.to_yaml(),
        f"{job.budget:g}",
        used,
    )
    return cache_folder() / f"choice-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:24]}.json"


def remember(job: Job, chosen: Candidate) -> None:
    """Keep a choice that rests on whole measurements; where the folder cannot be written, nothing is kept.

    One that came out slower than float was measured on a machine that did something else meanwhile, or was insisted on.
    """
    timings = chosen.verdict.timings
    if chosen.model is None or job.statistics is not None or len(timings) != 2 or timings[1].ratio < _SLOWER:
        return
    known = {
        "preset": chosen.preset,
        "recipe": chosen.recipe.to_yaml(),
        "timings": [asdict(timing) for timing in timings],
        "candidates": chosen.candidates,
        "choices": chosen.choices,
        "trail": chosen.trail,
        "size": chosen.size,
    }
    place = place_of(job)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(place, json.dumps({"digest": _digest(known), **known}).encode())


def _digest(known: dict[str, Any]) -> str:
    """What tells a file that was damaged: its figures go into results as they stand there."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def recall(job: Job) -> Candidate | None:
    """The model of an earlier choice, built and verified anew; None where nothing is known or it does not hold."""
    if job.statistics is not None:
        return None
    try:
        known = json.loads(place_of(job).read_text("utf8"))
        if known.pop("digest") != _digest(known):
            return None
        recipe = Recipe.from_yaml(known["recipe"])
        timings = [Timing(**timing) for timing in known["timings"]]
        return _built(job, recipe, timings, known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OnnxqError):
        return None  # missing, damaged, or of a runtime that does not run it any more: measured anew


def compared_widely(content: bytes | Path, job: Job) -> Compared:
    """The comparison that what ``auto`` chooses rests on: over more samples than those that are held out."""
    assert job.data is not None
    threads = job.timed_threads
    judge = Judge(job, open_session(job.prepared.original, threads=threads), job.data.first, widely=True)
    (comparison,) = judge.compare([open_session(content, threads=threads)], math.inf)
    return Compared(comparison, judge.reference)


def _built(job: Job, recipe: Recipe, timings: list[Timing], known: dict[str, Any]) -> Candidate | None:
    until = time.monotonic() + 60.0 * recipe.minutes if recipe.reconstructs else math.inf
    built = build(replace(job, recipe=recipe, learns_until=until))
    if known["preset"] == CLEANED:
        built = cleaned(job, built.plan.nodes)
    content = built.content = contents(built.quantized, job.stack)
    if built.size != known["size"] or known["preset"] == FLOAT:
        return None
    limits = Limits.or_budget(job.recipe.max_drop, job.recipe.min_sqnr)
    if job.data is None:
        limits = Limits(job.recipe.max_drop, job.recipe.min_sqnr)
    verdict = verify(content, job, timed=False, compared=compared_widely(content, job) if limits.max_loss else None)
    missed = verdict.comparison is not None and limits != Limits() and limits.outside(verdict.comparison)
    if verdict.failures or missed or not all(math.isfinite(timing.ratio) for timing in timings):
        return None
    verdict.timings = timings
    built.name, built.verdict, built.warnings = known["preset"], verdict, [REUSED, *built.warnings]
    built.candidates, built.choices, built.trail = known["candidates"], known["choices"], known["trail"]
    return built
