"""The model that a recipe stands for: of a named preset, what ``auto`` finds, or a search within limits."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from onnxq.errors import EngineError, OnnxqError, RecipeError
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.channels.evening import even_channels
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.finetuned import finetuned, with_learned_start
from onnxq.pipeline.learned.reconstructing import check_learning
from onnxq.pipeline.making import make
from onnxq.pipeline.planning import settle_preset
from onnxq.recipe.recipe import Recipe
from onnxq.search import auto
from onnxq.search.choice import FLOAT, SMALL
from onnxq.search.choice_cache import compared_widely, recall, remember
from onnxq.search.frontier import candidate_row, how_to_get, mark_frontier, shown
from onnxq.search.within.within_limits import SearchOptions, with_limits
from onnxq.verify.budget import Limits

_LEAST_SHARE = 0.2
"""Share of the budget that has to be left for a search after ``auto``, where the user set no limits."""

_SEARCH_SHARE = 0.25
"""Share of the budget that such a search may take."""

_WORTH_IT = 1.05
"""Times faster than float from which a model is worth a search where ``auto`` gave float back."""


def choose(job: Job, options: SearchOptions, *, timed: bool) -> Candidate:
    """Make the model that the recipe stands for, and search for another one if it is outside the recipe's limits.

    Args:
        job: what is to be quantized, and how.
        options: of the search.
        timed: measure latency.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    limits = Limits(job.recipe.max_drop, job.recipe.min_sqnr)
    if options.resume and (limits == Limits() or options.state is None):
        missing = "pass --max-drop or --min-sqnr" if limits == Limits() else "name its file with --search-state"
        raise RecipeError(f"--resume: there is no search to go on with; {missing}")
    even_channels(job)
    own = not options.metric.is_default
    if job.recipe.finetune:
        settled = settle_preset(job.recipe, job.data is not None or job.statistics is not None)
        job = replace(job, recipe=with_learned_start(settled, job))
        check_learning(job, "--finetune")
        return finetuned(job, make(job, timed=False), timed=timed)
    asked = job.recipe.reconstruct  # auto lets blocks learn where it has to: who names it wants it anyway
    if job.recipe.preset == "auto" and not own and not asked:
        return _beyond_auto(job, options, limits, timed=timed)
    if job.recipe.preset == "auto":
        has_ranges = job.data is not None or job.statistics is not None
        job = replace(job, recipe=settle_preset(job.recipe, has_ranges))
    return with_limits(job, options, limits, timed=timed)


def _beyond_auto(job: Job, options: SearchOptions, limits: Limits, *, timed: bool) -> Candidate:
    """What ``auto`` chooses; a search from static integers, where float came back although a refused one is faster."""
    started = time.monotonic()
    known = recall(job) if options.cache else None
    if known is not None:
        return known
    first = auto.choose(job)
    if job.data is None or not _too_rough(first, job.prepared.size):
        if options.cache:
            remember(job, first)
        return first
    left = job.budget - (time.monotonic() - started)
    if left < _LEAST_SHARE * job.budget and limits == Limits():
        return first
    left = max(left, 0.0) if limits != Limits() else min(left, _SEARCH_SHARE * job.budget)
    static = replace(job, recipe=job.recipe.override(preset="w8a8"), budget=left)
    asked = limits if limits != Limits() else Limits.or_budget(None, None)
    ours = options if limits != Limits() else SearchOptions(options.metric)  # no file is left that nothing reads
    try:
        found = with_limits(static, ours, asked, timed=timed, known=first.statistics)
    except EngineError:
        raise  # what measures has gone
    except OnnxqError as error:
        first.warnings.append(f"no search from static integers: {error}")
        return first
    found.trail = [*first.trail, *found.trail]
    if found.verdict.failures or (found.verdict.ratio or 0.0) < _WORTH_IT:
        return replace(first, trail=_not_chosen(found.trail))
    if limits == Limits() and found.content:
        # the search saw the held-out samples alone, which may be too few to know how much the outputs vary
        found.verdict.comparison = compared_widely(found.content, job).comparison
        if missed := asked.outside(found.verdict.comparison):
            first.warnings.append(f"what a search from static integers found is outside on more samples: {missed}")
            return replace(first, trail=_not_chosen(found.trail))
    timings = found.verdict.timings
    found.verdict.timings = [own for timing in timings if (own := shown(timings[0], timing)) is not None]
    return replace(found, candidates=_with_row(first, found, job.recipe))


def _not_chosen(trail: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trail of a search from whose models none was taken."""
    return [row | {"verdict": str(row["verdict"]).removesuffix(", chosen")} for row in trail]


def _too_rough(first: Candidate, size: int) -> bool:
    """Whether ``auto`` gave float back, or what is hardly better, although a model that missed the limits is faster."""
    if first.model is not None and ((first.verdict.ratio or 0.0) >= _WORTH_IT or first.size < SMALL * size):
        return False
    refused = [row for row in first.candidates if row["verdict"] not in ("chosen", "not the best")]
    return any((row["latency_ratio"] or 0.0) >= _WORTH_IT for row in refused)


def _with_row(first: Candidate, found: Candidate, given: Recipe) -> list[dict[str, Any]]:
    """The candidates of ``auto``, and in front of them the model that a search found, which is the one chosen."""
    others = [
        row | {"verdict": "not the best"} if row["verdict"] == "chosen" else dict(row) for row in first.candidates
    ]
    timings = found.verdict.timings
    for row in others if timings else ():
        if row["name"] == FLOAT:  # as it was beside the one chosen
            row["latency_ms"] = timings[0].median_ms
    row = candidate_row(
        f"{found.preset} (searched)",
        timings[1] if len(timings) > 1 else None,
        found.verdict.comparison,
        found.size,
        "chosen",
        how_to_get(found, given),
    )
    rows = [row, *others]
    mark_frontier(rows)
    return rows
