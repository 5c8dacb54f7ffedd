"""The step that lets a rewritten model compute in float16 or bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.edit import copy_of
from onnxq.graph.emit.half.halving import Halved, Halving, halve
from onnxq.graph.types import Model
from onnxq.graph.views.isolate import float_values
from onnxq.graph.views.outputs import with_outputs
from onnxq.graph.walk import all_nodes
from onnxq.pipeline.collection import collect_statistics
from onnxq.pipeline.job import Job, probe_shapes
from onnxq.pipeline.planning import refuse_empty
from onnxq.plan.decisions import Plan
from onnxq.plan.make_plan import Wanted
from onnxq.plan.placement.halves import Kept, divide, kept_wide, values_to_see, with_halves
from onnxq.plan.placement.select import Selection
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.session import session_of
from onnxq.runtime.synthetic import runnable_feed
from onnxq.stats.statistics import Statistics
from onnxq.targets import Ops


def wide_nodes(job: Job, known: Statistics | None, warnings: list[str]) -> Kept:
    """Which nodes of the job's model have to stay float32, and why.

    Args:
        job: its model is not rewritten yet.
        known: statistics that were gathered already.
        warnings: lines are appended.
    """
    recipe, model = job.recipe, job.prepared.model
    if recipe.half is None or recipe.store_only:
        return Kept()
    dtypes = probe_shapes(job, model, job.statistics).dtypes
    op_types = {node.op_type for node in all_nodes(model.graph)}
    selection = Selection(recipe, job.prepared.sources, op_types, job.prepared.op_types)
    statistics = _ranges(job, known, dtypes, warnings)
    return kept_wide(model, job.target, selection, recipe.half, statistics, dtypes)


def _ranges(job: Job, known: Statistics | None, dtypes: dict[str, str], warnings: list[str]) -> Statistics | None:
    """Ranges of all float values: of the samples, else of what saved statistics hold, else of one synthetic sample."""
    model = job.prepared.model
    wanted = Wanted(tuple(values_to_see(model, dtypes)))
    if known is not None:
        wanted = wanted.without(known)
    if not wanted.values or job.statistics is not None:
        return known
    if job.data is not None:
        found = collect_statistics(job, wanted, job.data.calibration, warnings)
    else:
        try:
            feed = runnable_feed(session_of(model, threads=job.threads))
        except ModelError:
            return known
        with job.clock.step("calibrate"):
            found = calibrate(model, wanted.values, [feed], Run(threads=job.threads, warn=warnings.append))
    if known is not None:
        found.add(known)
    return found


EQUAL_DB = 50.0
"""From here on a float16 model is as good as its original: outputs differ by a three-hundredth of their amplitude."""

_TRIES = (1, 2, 4, 8, 16, 32)
"""Nodes that are kept float32, with those before them, until that is reached."""

_MOST = 0.2
"""Share of the nodes that may stay float32 for that: where more would have to, halving is not worth it."""

_WORTH = 3.0
"""Decibels that have to be won where `EQUAL_DB` is not reached."""

_FEEDS = 3
"""Samples on which the outputs of both are compared meanwhile."""


def to_halves(model: Model, job: Job, plan: Plan, keep: Kept, warnings: list[str]) -> tuple[Model, Plan]:
    """Halve a rewritten model, and say in its plan what became of each node.

    With samples, nodes where rounding adds most to the error stay float32 until the outputs are near enough, or until
    that does not help.

    Args:
        model: the rewritten model; unchanged.
        job: what it was made from.
        plan: its plan.
        keep: those of `wide_nodes`.
        warnings: lines are appended.

    Raises:
        RecipeError: nothing of the model would have 16 bits.
    """
    recipe = job.recipe
    assert recipe.half is not None
    kernels = job.target.halves.get(recipe.half, Ops())
    asked = Halving(recipe.half, kernels, keep.reasons, recipe.keep_io, recipe.store_only, keep.exact)
    dtypes = probe_shapes(job, job.prepared.model, job.statistics).dtypes
    result = copy_of(model)
    done = halve(result, asked, divide, dtypes)
    if job.data is not None and recipe.half == "float16" and done.half:
        result, done = _near_enough(model, result, done, job, asked, dtypes, warnings)
    plan = with_halves(plan, done, recipe.half)
    if not done.stored:
        refuse_empty(plan, job.prepared, recipe, halved=True)
    return result, plan


def _near_enough(
    model: Model,
    first: Model,
    done: Halved,
    job: Job,
    asked: Halving,
    dtypes: dict[str, str],
    warnings: list[str],
) -> tuple[Model, Halved]:
    assert job.data is not None
    feeds = list(islice(job.data.calibration, _FEEDS))
    session = session_of(model, threads=job.threads)
    expected = [session.run(feed) for feed in feeds]
    best = first, done
    reached = _worst(first, feeds, expected, job.threads)
    if not reached < EQUAL_DB:
        return best
    try:
        ranked = _noisiest(model, first, feeds[0], job.threads)
    except ModelError:
        ranked = []
    if not ranked:
        return best
    plain = reached
    for count in _TRIES:
        exact = _with_producers(model, ranked[:count])
        if len(exact) > _MOST * len(done.half):
            break
        why = {name: _NOISE.format(plain) for name in exact}
        tried = copy_of(model)
        found = halve(tried, replace(asked, keep={**why, **asked.keep}, exact=asked.exact | exact), divide, dtypes)
        if not found.half:
            break
        ratio = _worst(tried, feeds, expected, job.threads)
        if ratio > reached:
            best, reached = (tried, found), ratio
        if reached >= EQUAL_DB:
            break
    if reached < min(EQUAL_DB, plain + _WORTH):
        best, reached = (first, done), plain
    if reached < EQUAL_DB:
        warnings.append(
            f"float16: on the samples the outputs are at {reached:.0f} dB; rounding at {ranked[0]!r} adds most to it, "
            "and keeping it and its like in float32 did not help; --store-only computes everything in float32"
        )
    return best


_NOISE = "rounding to float16 here, or right before, adds most to the error of the outputs, which were at {:.0f} dB"


def _worst(model: Model, feeds: Sequence[Feed], expected: Sequence[Sequence[Any]], threads: int | None) -> float:
    """SQNR of the worst real-valued output, in dB."""
    session = session_of(model, threads=threads)
    signal: dict[int, float] = {}
    noise: dict[int, float] = {}
    for feed, outputs in zip(feeds, expected, strict=True):
        for i, (left, right) in enumerate(zip(outputs, session.run(feed), strict=True)):
            if isinstance(left, np.ndarray) and left.dtype.kind == "f" and np.shape(left) == np.shape(right):
                powers = _powers(left, np.asarray(right))
                signal[i] = signal.get(i, 0.0) + powers[0]
                noise[i] = noise.get(i, 0.0) + powers[1]
    return min((decibels(signal[i], noise[i]) for i in signal), default=math.inf)


def _powers(left: Array, right: Array) -> tuple[float, float]:
    """Of a signal and of what another array differs from it by, where it is finite."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    seen = np.isfinite(left)
    return float(np.square(left[seen]).sum()), float(np.square(right[seen] - left[seen]).sum())


def _noisiest(model: Model, halved: Model, feed: Feed, threads: int | None) -> list[str]:
    """Names of the nodes of the main graph, that first which adds most to the relative error of what it reads."""
    ours, theirs = float_values(model), float_values(halved)
    names = [name for name in ours if name in theirs and ours[name] is not None]
    runs = []
    for each in (model, halved):
        augmented = with_outputs(each, names)
        session = session_of(augmented.model, threads=threads, optimize=False, packed=False)
        runs.append(dict(zip(augmented.outputs, session.run(feed, augmented.outputs), strict=True)))
    share: dict[str, float] = {}
    for name, left in runs[0].items():
        right = runs[1].get(name)
        if isinstance(left, np.ndarray) and left.dtype.kind == "f" and right is not None and left.shape == right.shape:
            signal, noise = _powers(left, right)
            share[name] = noise / signal if signal else 0.0
    added: dict[str, float] = {}
    for name, part in share.items():
        node = ours[name]
        assert node is not None
        read = max((share.get(value.name or "", 0.0) for value in node.inputs if value is not None), default=0.0)
        added[node.name or ""] = part - read
    return sorted((name for name in added if added[name] > 0.0), key=lambda name: -added[name])


def _with_producers(model: Model, names: Sequence[str]) -> set[str]:
    """The nodes, and those that write what they read."""
    chosen = set(names)
    nodes = [node for node in all_nodes(model.graph) if node.name in chosen]
    before = [value.producer() for node in nodes for value in node.inputs if value is not None]
    return chosen | {node.name for node in before if node is not None and node.name}
