"""The step that lets a rewritten model compute in float16 or bfloat16."""

from __future__ import annotations

from onnxq.errors import ModelError
from onnxq.graph.emit.halving import Halving, halve
from onnxq.graph.types import Model
from onnxq.graph.walk import all_nodes
from onnxq.pipeline.collection import collect_statistics
from onnxq.pipeline.job import Job, probe_shapes
from onnxq.pipeline.planning import refuse_empty
from onnxq.plan.decisions import Plan
from onnxq.plan.make_plan import Wanted
from onnxq.plan.placement.halves import divide, kept_wide, values_to_see, with_halves
from onnxq.plan.placement.select import Selection
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.session import session_of
from onnxq.runtime.synthetic import runnable_feed
from onnxq.stats.statistics import Statistics


def wide_nodes(job: Job, known: Statistics | None, warnings: list[str]) -> dict[str, str]:
    """Why nodes of the job's model have to stay float32, by name.

    Args:
        job: its model is not rewritten yet.
        known: statistics that were gathered already.
        warnings: lines are appended.
    """
    recipe, model = job.recipe, job.prepared.model
    if recipe.half is None or recipe.store_only:
        return {}
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


def to_halves(model: Model, job: Job, plan: Plan, keep: dict[str, str]) -> Plan:
    """Halve a rewritten model in place, and say in its plan what became of each node.

    Args:
        model: the rewritten model.
        job: what it was made from.
        plan: its plan.
        keep: those of `wide_nodes`.

    Raises:
        RecipeError: nothing of the model would have 16 bits.
    """
    recipe = job.recipe
    assert recipe.half is not None
    asked = Halving(recipe.half, keep, recipe.keep_io, recipe.store_only)
    done = halve(model, asked, divide, probe_shapes(job, job.prepared.model, job.statistics).dtypes)
    plan = with_halves(plan, done)
    if not done.stored:
        refuse_empty(plan, job.prepared, recipe, halved=True)
    return plan
