"""The step that lets a rewritten model compute in float16 or bfloat16."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from onnxq.errors import ModelError, RecipeError
from onnxq.graph.edit import copy_of
from onnxq.graph.emit.half.halving import Halved, Halving, halve
from onnxq.graph.emit.half.rounded import values_in_order
from onnxq.graph.types import Model
from onnxq.graph.walk import all_nodes
from onnxq.graph.walk import opset as opset_of
from onnxq.pipeline.collection import collect_statistics
from onnxq.pipeline.deliver.half_noise import Compared, NoisyParts
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


_BFLOAT16_OPSET = 13

_MOST = 0.2
"""Share of the nodes that may stay float32 for that."""

_WORTH = 3.0
"""Decibels that have to be won where `EQUAL_DB` is not reached."""

_FEEDS = 3
"""Samples on which the outputs of both are compared meanwhile."""

EQUAL_DB = 50.0
"""From here on a float16 model is as good as its original: outputs differ by a three-hundredth of their amplitude."""

_MARGINS = (1.0, 2.0, 4.0)
"""Decibels above `EQUAL_DB` that models with nodes in float32 are built for, until one has `EQUAL_DB`."""


def to_halves(model: Model, job: Job, plan: Plan, keep: Kept, warnings: list[str]) -> tuple[Model, Plan]:
    """Halve a rewritten model, and say in its plan what became of each node.

    With samples, the nodes around values whose rounding adds most to the error stay float32 where that brings the
    outputs near enough.

    Args:
        model: the rewritten model; unchanged.
        job: what it was made from.
        plan: its plan.
        keep: those of `wide_nodes`.
        warnings: lines are appended.

    Raises:
        RecipeError: nothing of the model would have 16 bits, or its operator set does not know the type.
    """
    recipe = job.recipe
    assert recipe.half is not None
    if recipe.half == "bfloat16" and (opset := opset_of(model)) < _BFLOAT16_OPSET:
        raise RecipeError(
            f"bfloat16: needs operator set {_BFLOAT16_OPSET}, and the model cannot be raised from {opset}; export it "
            "with a newer one, or take float16"
        )
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
    compared = Compared(model, list(islice(job.data.calibration, _FEEDS)), job.threads)
    plain = reached = compared.ratio_of(first)
    names = values_in_order(model, done.half, done.stored)
    if not plain < EQUAL_DB or not names:
        return first, done
    best, seen = (first, done), set[str]()
    parts = NoisyParts(compared, names)
    for margin in _MARGINS:
        share = 1.0 - 10.0 ** ((plain - EQUAL_DB - margin) / 10.0)
        exact = parts.loudest(share, int(_MOST * len(done.half)), done.half)
        if not exact or exact <= seen:
            break
        seen = exact
        why = {name: _NOISE.format(plain) for name in exact}
        tried = copy_of(model)
        found = halve(tried, replace(asked, keep={**why, **asked.keep}, exact=asked.exact | exact), divide, dtypes)
        if not found.half:
            break
        ratio = compared.ratio_of(tried)
        if ratio > reached:
            best, reached = (tried, found), ratio
        if reached >= EQUAL_DB + _MARGINS[0]:
            break
    if reached < min(EQUAL_DB, plain + _WORTH):
        best, reached = (first, done), plain
    if reached < EQUAL_DB:
        helped = f"is no more than {reached - plain:.0f} dB better" if reached > plain else "does not help"
        warnings.append(
            f"float16: on the samples the outputs are at {reached:.0f} dB; rounding near {parts.worst!r} adds most to "
            f"it, and with a fifth of the nodes in float32 it {helped}; --store-only computes everything in float32"
        )
    return best


_NOISE = "rounding to float16 here adds much of the error of the outputs, which were at {:.0f} dB"
