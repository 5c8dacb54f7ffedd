"""Let the blocks of a quantized model learn together: from solutions to one with learned numbers, and back again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError
from onnxq.graph.emit.apply import use_own_pair
from onnxq.graph.emit.inference.at_inference import emit_dynamic
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.rewrite import Rewrite, Style
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.graph.views.plain_graph import plain_graph, replace_constants
from onnxq.pipeline.job import Job, probe_shapes
from onnxq.pipeline.learned.learning import learning_signature
from onnxq.pipeline.learned.learning_record import LearningRecord, TriedModel
from onnxq.pipeline.learned.minutes import block_minutes
from onnxq.pipeline.learned.module_link import ModuleLink
from onnxq.pipeline.learned.whole_models import FEEDS, HELD_OUT, measured, nearest, on_held_out, taken
from onnxq.plan.decisions import Plan
from onnxq.qat import need_torch
from onnxq.qat.computing_time import Allowance
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.engines.installed import newest_pairs

if TYPE_CHECKING:
    from onnxq.qat.reconstruction import Reconstructed

NEAREST, BY_USE, BY_LAYER = "weights rounded to nearest", "weights rounded by use", "roundings learned by layer"
"""What blocks can learn from."""

_JUDGING = 0.2
"""Share of the time on the clock that is kept for comparing whole models, where an end was promised."""


def check_learning(job: Job, option: str) -> None:
    """Refuse a job in which nothing can learn.

    Args:
        job: the job.
        option: what asks for learning, ``--reconstruct`` or ``--finetune``.

    Raises:
        RecipeError: there are no samples.
        MissingExtraError: there is no PyTorch.
    """
    need_torch(option)
    if job.data is None:
        raise RecipeError(f"{option}: needs samples to learn from; pass --calibration")


def goes_first(plan: Plan) -> bool:
    """Whether single layers learn their rounding before blocks do: at 8 bits that gains nothing that blocks do not."""
    return any(spec.bits < 8 for node in plan.nodes.values() for spec in node.weights.values())


@dataclass(frozen=True)
class Start:
    """What blocks can learn from.

    Attributes:
        name: one of `NEAREST`, `BY_USE` and `BY_LAYER`.
        rewrite: the plan's numbers.
        learns: whether blocks may learn from it; else it only is what the others have to beat.
    """

    name: str
    rewrite: Rewrite
    learns: bool = True


def reconstructed(
    job: Job, plan: Plan, starts: Sequence[Start], steps: Mapping[str, Array], allowance: Allowance
) -> tuple[Rewrite, LearningRecord]:
    """Learn the rounding of weights, activations' scales and zero points, and biases, block by block.

    Blocks learn from the start that is nearest to float on held-out samples; where these do not clearly tell which one
    that is, from each of those that may be, as far as time suffices. What they come to is taken where the whole model
    is no worse than the one it started from, and than the other starts.

    Args:
        job: its prepared model gets the biases that its Add nodes hold; nothing else in it changes.
        plan: decisions.
        starts: the plan's numbers, weights rounded in one way or another; the first is what there is without learning.
        steps: by node, its weight in steps of its grid before it was rounded, zero point added.
        allowance: time that it may take.

    Returns:
        The rewrite that was taken, with what was learned, and what was tried.
    """
    record, begun = LearningRecord(), time.monotonic()
    if not starts[0].rewrite.nodes and not starts[0].rewrite.dynamic:
        record.notes.append("--reconstruct: no layer runs on integers, so nothing was learned")
        return starts[0].rewrite, record
    from onnxq.qat.graph_module import GraphModule

    model, until = job.prepared.model, allowance.until
    if until < math.inf:
        allowance = allowance.keeping(_JUDGING * max(allowance.on_the_clock, 0.0))
    with job.clock.step("reconstruct"):
        emitted = [_emitted(model, start.rewrite) for start in starts]
        order = [place for place, start in enumerate(starts) if start.learns]
        if len(order) > 1:
            order = nearest(on_held_out(job, emitted, until))
        links: dict[int, ModuleLink] = {}
        models = list(emitted)
        for place in order:
            mark = allowance.mark()
            links[place] = ModuleLink(GraphModule(plain_graph(emitted[place])), starts[place].rewrite)
            links[place].restrict(model, plan, steps)
            _learn(job, links[place], emitted[place], allowance, record)
            if changed := links[place].module.changed():
                models.append(emitted[place].clone())
                replace_constants(models[-1], changed)
            else:
                del links[place]
            if allowance.repeats(mark, 1) < 1.0:
                break
        figures = measured(job, models, until)
        record.taken, record.reason = taken(figures, [None] * len(starts) + list(links))
    names = [(start.name, False) for start in starts] + [(starts[place].name, True) for place in links]
    record.models = [
        TriedModel(*name, found.held_out.sqnr_db, found.held_out.loss)
        for name, found in zip(names, figures, strict=True)
    ]
    record.seconds = time.monotonic() - begun
    if record.reason and not job.recipe.finetune:  # which goes on from there, whoever asked for blocks
        record.notes.append(f"--reconstruct: nothing was taken over, since {record.reason}")
    if record.taken < len(starts):
        return starts[record.taken].rewrite, record
    return links[list(links)[record.taken - len(starts)]].rewrite_of(model), record


def _emitted(model: Model, rewrite: Rewrite) -> Model:
    """A copy of the model as the rewrite makes it, in QDQ whatever will be written.

    Values have the float model's axes: blocks meet where each stands for one of its values.
    """
    copy = model.clone()
    emit_qdq(copy, rewrite, Style(settled=False))
    emit_dynamic(copy, rewrite)
    use_own_pair(copy, newest=newest_pairs())
    return copy


def _learn(job: Job, link: ModuleLink, emitted: Model, allowance: Allowance, record: LearningRecord) -> None:
    """Let the blocks of the link's module learn, and note how far they came."""
    from onnxq.qat.reconstruction import Reconstruction, reconstruct

    model, data = job.prepared.model, job.data
    assert data is not None
    seen = probe_shapes(job, model)
    floats = {name: int(np.prod(shape)) for name, shape in seen.shapes.items() if seen.dtypes.get(name) == "float32"}
    found = reconstruct(
        Reconstruction(
            link.module,
            emitted,
            model,
            floats,
            data.calibration.part(0, FEEDS),
            min(data.calibration.count_feeds(), FEEDS),
            list(islice(data.held_out, HELD_OUT)),
            allowance=allowance,
            threads=job.threads,
            report=job.clock.report("reconstruct"),
            kept=job.layers,
            signature=learning_signature(job, io.to_bytes(emitted)),
        )
    )
    record.steps += sum(outcome.steps for outcome in found.outcomes)
    record.planned += sum(outcome.planned for outcome in found.outcomes)
    if found.late or any(outcome.short for outcome in found.outcomes):
        record.cut = "cut short by --budget" if allowance.until < math.inf else "cut short by --minutes"
    record.notes += [line for line in _said(found, job.recipe, record) if line not in record.notes]


def _said(found: Reconstructed, recipe: Recipe, record: LearningRecord) -> list[str]:
    said = []
    if found.skipped:
        listed = ", ".join(found.skipped)
        said.append(f"--reconstruct: blocks with {listed} were left out, for which there is no torch function")
    if found.failed:
        blocks = "a block was" if len(found.failed) == 1 else f"{len(found.failed)} blocks were"
        said.append(f"--reconstruct: {blocks} left out; {found.failed[0]}")
    within, more = f"{block_minutes(recipe):g} minutes", "--minutes gives more"
    if "--budget" in record.cut:
        within, more = "the time that was left", "--budget gives more"
    if found.late:
        said.append(f"--reconstruct: {found.late} blocks did not learn within {within}; {more}")
    if any(outcome.short for outcome in found.outcomes):
        of_computing = "" if "--budget" in record.cut else " of computing"
        said.append(
            f"--reconstruct: blocks made {record.steps} of {record.planned} steps within {within}{of_computing}; {more}"
        )
    if any(not outcome.finite for outcome in found.outcomes):
        said.append("--reconstruct: a loss was not finite; its block kept the best state before that")
    return said
