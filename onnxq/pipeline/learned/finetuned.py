"""Finetune a quantized model, verify it again, and keep the better of the two."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.core.cache_grids import BITS
from onnxq.core.dtypes import Array
from onnxq.core.processors import free_processors
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.views.plain_graph import PlainGraph, plain_graph, replace_constants
from onnxq.pipeline.caches.storing import store_caches, with_stored_caches
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import verify
from onnxq.pipeline.job import Data, Job, contents
from onnxq.pipeline.learned.minutes import FEW_BITS, finetune_minutes, integer_presets
from onnxq.pipeline.learned.output_targets import output_targets
from onnxq.plan.decisions import Plan
from onnxq.recipe.recipe import Recipe

if TYPE_CHECKING:
    from onnxq.qat.finetuning import FinetuningResult

_MOST = 4096
"""Samples to learn from, at most."""
_MOST_HELD_OUT = 128
"""Samples that states are judged by, at most."""
_SHARE_HELD_OUT = 0.15
"""Share of the calibration samples that states are judged by, so that verification sees others."""
_LEAST = 8
"""Calibration samples from which on some are spared; with fewer, states are judged by those of verification."""

_RATE_BEHIND = 5e-4
"""Of learning that goes on from what layers or blocks have learned: steps as long as usual would undo it first."""

_FINER = 1 / 16
"""Steps where no weight has fewer than 8 bits: sixteen times as fine a grid, whose error large steps exceed at once."""

_LAYERWISE = "autoround"
"""What rounds packed weights of 2 and 3 bits that then learn end to end."""


def rounded_in_order(recipe: Recipe, asked: Recipe) -> Recipe:
    """The recipe of a finetuning of packed weights that are rounded in the order of the graph, unless told otherwise.

    Args:
        recipe: of a run with samples and without statistics; with the algorithm that its preset takes.
        asked: what the user asked for.
    """
    learns = recipe.finetune and asked.algorithm is None and recipe.algorithm == _LAYERWISE
    return recipe.override(sequential=True) if learns else recipe


def with_learned_start(recipe: Recipe, job: Job) -> Recipe:
    """The recipe of a finetuning whose blocks learn first, where weights are integers and nothing else rounds them.

    From weights rounded to nearest it would have to find what blocks learn by themselves in a fraction of the time.
    """
    given = recipe.algorithm is not None or recipe.learns or recipe.reconstructs
    if job.prepared.training is not None or given or not integer_presets(recipe):
        return recipe
    return recipe.override(reconstruct=True)


def finetuned(job: Job, chosen: Candidate, *, timed: bool) -> Candidate:
    """Let a quantized model learn from the float model, end to end.

    Args:
        job: as `check_learning` lets it pass; its recipe says how.
        chosen: the model as it was built and verified.
        timed: measure latency.

    Returns:
        The finetuned model as it was verified, or the one that was given where learning found nothing better.

    Raises:
        RecipeError: the model has nodes that gradients cannot pass.
    """
    data, recipe = job.data, job.recipe
    assert data is not None
    if chosen.model is None or chosen.verdict.comparison is None:
        return chosen
    with job.clock.step("finetune"):
        model = chosen.model.clone()
        rounds = recipe.kv_cache in BITS
        student = with_stored_caches(job, chosen.model) if rounds else model
        outcome, changed = _learned(job, chosen, data, plain_graph(student))
        replace_constants(model, changed)
    notes = _said(outcome, _minutes(job, chosen))
    if not outcome.after < outcome.before:
        why = "no state was better on held-out samples than the start, which is kept"
        if not outcome.learns:
            why = "nothing in this form can learn: it has no scales, biases or weights of few bits that could"
        chosen.warnings += [*notes, f"--finetune: {why}"]
        return chosen
    content = contents(model, job.stack)
    other = replace(
        chosen, model=model, content=content, verdict=verify(content, job, timed=timed),
        warnings=list(chosen.warnings), caches={},
    )  # fmt: skip
    if rounds:  # what counts is what a model is with its caches
        for each in (chosen, other):
            store_caches(job, each)
    after, before = other.verdict.comparison, chosen.verdict.comparison
    assert before is not None
    worse = after is None or not after.finite or (_loss(after) > _loss(before) and _db(after) < _db(before))
    if worse or (other.verdict.failures and not chosen.verdict.failures):
        chosen.warnings += [*notes, "--finetune: what was learned is worse on the samples of verification; not kept"]
        return chosen
    other.finetuned = {
        "epochs": outcome.epochs,
        "loss": {"before": outcome.before, "after": outcome.after},
        "sqnr_db": {"before": before.sqnr_db, "after": after.sqnr_db if after is not None else None},
        "weights": outcome.weights,
    }
    other.warnings += notes
    return other


def _minutes(job: Job, chosen: Candidate) -> float:
    """Of computing that are left for it."""
    record = chosen.reconstructed
    return finetune_minutes(job.recipe, None if record is None else record.seconds)


def _loss(comparison: Any) -> float:
    return comparison.loss if comparison.loss is not None else 0.0


def _db(comparison: Any) -> float:
    return comparison.sqnr_db if comparison.sqnr_db is not None else float("inf")


@dataclass(frozen=True)
class _Samples:
    learn: list[Feed]
    judge: list[Feed]
    labels: list[Array] | None
    note: str = ""


def _learned(
    job: Job, chosen: Candidate, data: Data, graph: PlainGraph
) -> tuple[FinetuningResult, Mapping[tuple[int, int], tuple[str, Array]]]:
    from onnxq.qat.finetuning import FinetuneConfig, Finetuning, finetune, has_device, start_from
    from onnxq.qat.graph_module import GraphModule

    recipe = job.recipe
    if not has_device(recipe.device):
        raise RecipeError(
            f"PyTorch sees no device {recipe.device!r}; use --train-on cpu, with onnxq finetune --device cpu"
        )
    student, teacher = GraphModule(graph), GraphModule(plain_graph(job.prepared.model))
    lacking = list(dict.fromkeys(node.op_type for node in (*student.unsupported, *teacher.unsupported)))
    if lacking:
        raise RecipeError(
            f"--finetune: gradients cannot pass {', '.join(lacking)}, for which there is no torch function; use "
            "--format qdq, or --adaround, which learns layer by layer"
        )
    bits = {name: ends for name, ends in narrow_ranges(graph, chosen.plan).items() if name in student.weights}
    start_from(student, _float_weights(job), bits)
    samples = _samples(data)
    if samples.note:
        chosen.warnings.append(samples.note)
    comparison = chosen.verdict.comparison
    assert comparison is not None
    targets = output_targets(job, comparison.judged, samples.labels, "--finetune")
    if samples.labels is not None and not any(target.labelled for target in targets.values()):
        every = np.concatenate(samples.labels)
        chosen.warnings.append(
            f"--finetune: labels {every.min()}…{every.max()} are no classes of an output; learned from the float model "
            "alone"
        )
    config = FinetuneConfig(recipe.epochs, _minutes(job, chosen), seed=recipe.seed, device=recipe.device)
    config = replace(config, threads=job.threads or free_processors())
    if recipe.reconstructs or recipe.learns:
        config = replace(config, rate=_RATE_BEHIND)
    levels = [weight.integers.high - weight.integers.low + 1 for weight in student.weights.values()]
    if levels and min(levels) > 1 << FEW_BITS and not bits and recipe.kv_cache not in BITS:
        config = replace(config, rate=_FINER * config.rate)
    if recipe.learning_rate is not None:
        config = replace(config, rate=recipe.learning_rate)

    def report(line: str, done: int, total: int) -> None:
        job.clock.report(f"finetune ({line})")(done, total)

    task = Finetuning(
        student, teacher, targets, samples.learn, samples.judge, samples.labels, bits,
        config, job.learning_state, _signature(job, chosen, data), report,
    )  # fmt: skip
    return finetune(task), student.to("cpu").changed()


def _samples(data: Data) -> _Samples:
    """What to learn from, and what states are judged by."""
    count = min(data.calibration.count_feeds(), _MOST)
    spared = min(max(1, round(_SHARE_HELD_OUT * count)), _MOST_HELD_OUT) if count >= _LEAST else 0
    learn = list(data.calibration.part(0, count - spared))
    judged: Reader = data.calibration.part(count - spared, count) if spared else data.held_out
    judge = list(islice(judged, _MOST_HELD_OUT))
    labels, note = data.calibration.labels, ""
    parts = None
    if labels is not None:
        sizes = [next((array.shape[0] for array in feed.values() if array.ndim), 1) for feed in learn]
        if labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels) >= sum(sizes):
            parts = np.split(labels[: sum(sizes)], np.cumsum(sizes)[:-1])
        else:
            note = (
                f"--finetune: labels ({labels.dtype}, {list(labels.shape)}) are not one whole number for each of "
                f"{sum(sizes)} items to learn from; learned from the float model alone"
            )
    return _Samples(learn, judge, parts, note)


def narrow_ranges(graph: PlainGraph, plan: Plan) -> dict[str, tuple[int, int]]:
    """Smallest and largest integer of weights that use fewer bits than their type has."""
    writers = {name: node for node in graph.nodes for name in node.outputs}
    found = {}
    for node in graph.nodes:
        decided = plan.nodes.get(node.name)
        spec = decided.weights.get(1) if decided is not None else None
        if spec is None or len(node.inputs) < 2:
            continue
        writer = writers.get(node.inputs[1])
        name = writer.inputs[0] if writer is not None else node.inputs[1]
        if spec.bits < 8 and name in graph.constants and node.op_type != "MatMulNBits":
            found[name] = (spec.qmin, spec.qmax)
    return found


def _float_weights(job: Job) -> dict[str, Array]:
    """The weight of each layer before it was rounded, by the name of its node."""
    found = {}
    for node in walk.all_nodes(job.prepared.model.graph):
        array = walk.const_array(walk.input_at(node, 1))
        if node.name and array is not None and array.dtype == np.float32:
            found[node.name] = array
    return found


def _signature(job: Job, chosen: Candidate, data: Data) -> str:
    """What an interrupted run has to agree in with the one that goes on."""
    digest = hashlib.sha256(io.model_hash(chosen.quantized).encode())
    for part in (data.every.hash, job.recipe.to_yaml()):
        digest.update(part.encode())
    return digest.hexdigest()


def _said(outcome: FinetuningResult, minutes: float) -> list[str]:
    said = []
    if not outcome.finite:
        said.append("--finetune: a loss was NaN or infinite; it stopped there and kept the best state before")
    if outcome.late:
        said.append(f"--finetune: {outcome.epochs} epochs were done within {minutes:.2g} minutes; --minutes gives more")
    if outcome.resumed:
        said.append("--finetune: went on from where an interrupted run had stopped")
    return said
