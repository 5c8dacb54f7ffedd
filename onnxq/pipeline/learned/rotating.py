"""Learn the matrices of a model that was turned, by what its quantization would lose, and judge what came of it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from onnxq.core.dtypes import QType
from onnxq.core.processors import free_processors
from onnxq.core.spec import PerTensor, PerToken, TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.attention.plain_attention import RunFacts
from onnxq.graph.edit import copy_of
from onnxq.graph.emit.rewrite import TOKEN
from onnxq.graph.types import Model, Node
from onnxq.graph.views.plain_graph import plain_graph
from onnxq.passes.turn_places import Turnable, turn_further, turnables
from onnxq.passes.value_heads import value_heads
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.held_out import compared
from onnxq.pipeline.learned.output_targets import output_targets
from onnxq.pipeline.learned.reconstructing import check_learning
from onnxq.plan.decisions import DYNAMIC, INTEGER, STORAGE, WEIGHT, Calibrated, NodePlan, Plan, SharedWith
from onnxq.plan.weights.tables import BNB4, LOOKUP
from onnxq.plan.weights.weight_only import weight_position
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from onnxq.verify.compare import compare

if TYPE_CHECKING:
    from onnxq.qat.rotations.turned_module import NodeRounding, TurnedConstant

OPTION = "--learn-rotation"

_MOST, _MOST_HELD_OUT = 512, 32
"""Samples that are learned from, and that states are judged by, at most."""

_DYNAMIC = TensorSpec(QType.UINT8, PerTensor())
_BY_TOKEN = TensorSpec(QType.INT8, PerToken(), symmetric=True, narrow_range=True)


def learned_turns(job: Job, turned: Model, plan: Plan) -> tuple[Model, str]:
    """A copy of a turned model with the matrices that lose least when it is quantized.

    Args:
        job: with samples.
        turned: float, its streams and heads turned.
        plan: what becomes of it.

    Returns:
        The copy, or the model as it is where nothing better was found; and a line for the user.

    Raises:
        RecipeError: there are no samples, nothing is rounded to a grid of integers, or a node has no torch function.
        MissingExtraError: there is no PyTorch.
    """
    check_learning(job, OPTION)
    from onnxq.qat.rotations.rotation_learning import RotationConfig, learn_rotations
    from onnxq.qat.rotations.turned_module import TurnedModule

    data, recipe = job.data, job.recipe
    assert data is not None
    seen = probe(turned, data.first, threads=job.threads)
    model = copy_of(turned)
    heads, _ = value_heads(model, RunFacts({name: info.shape for name, info in seen.items()}))
    found = turnables(model, heads)
    roundings = _roundings(model, plan)
    if not roundings:
        raise RecipeError(
            f"{OPTION}: preset {recipe.preset} rounds nothing to integers that matrices could be learned for; leave it "
            "out, or use w4, w8a8-dynamic or another preset that does"
        )
    module = TurnedModule(plain_graph(model), _constants(model, found), roundings)
    if module.unsupported:
        raise RecipeError(
            f"{OPTION}: gradients cannot pass {module.unsupported[0].op_type}, for which there is no torch function; "
            "use --rotate alone"
        )
    count = min(data.calibration.count_feeds(), _MOST)
    learn = list(data.calibration.part(0, count))
    judge = list(islice(data.held_out, _MOST_HELD_OUT))
    judged = compare(session_of(turned, threads=job.threads), session_of(turned, threads=job.threads), judge[:1],
                     facts=job.output_facts()).judged  # fmt: skip
    targets = output_targets(job, judged, None, OPTION)
    report = job.clock.report("rotate")
    config = RotationConfig(
        seed=recipe.seed, seconds=60.0 * recipe.minutes, threads=job.threads or free_processors()
    )  # fmt: skip
    made = learn_rotations(module, [(each.size, each.keeps_mean) for each in found], targets, (learn, judge), config,
                           report)  # fmt: skip
    if not made.after < made.before:
        return turned, f"{OPTION}: nothing was better on held-out samples than the matrices that were drawn"
    turn_further(found, made.matrices)
    short = f", ended by the {recipe.minutes:g} minutes" if made.steps < config.steps else ""
    return model, (
        f"{OPTION}: in {made.steps} steps{short} the loss that rounding to nearest has on held-out samples went from "
        f"{made.before:.3g} to {made.after:.3g}"
    )


def why_as_drawn(learned: Model, drawn: Model, job: Job) -> str | None:
    """A line, if the model of matrices that were drawn is the better one on held-out samples once it is quantized.

    Learning rounds to nearest. What GPTQ and the like make of the weights only shows in the model that they made.

    Args:
        learned: quantized, with what was learned.
        drawn: quantized, without.
        job: holds the float model and the samples.
    """
    found = compared([learned, drawn], job)
    if found is None:
        return None
    with_it, without = found
    # shares of decisions that change are too coarse to tell two models apart that are so near each other
    if with_it.token_divergence is not None and without.token_divergence is not None:
        worse = with_it.token_divergence > without.token_divergence
        said = f"a divergence of {without.token_divergence:.3g} nats without and {with_it.token_divergence:.3g} with it"
    elif with_it.sqnr_db is not None and without.sqnr_db is not None:
        worse = with_it.sqnr_db < without.sqnr_db
        said = f"an SQNR of {without.sqnr_db:.1f} dB without and {with_it.sqnr_db:.1f} dB with it"
    else:
        return None
    return f"{OPTION}: not used, since held-out samples have {said}" if worse else None


def _constants(model: Model, found: list[Turnable]) -> list[TurnedConstant]:
    from onnxq.qat.rotations.turned_module import TurnedConstant

    index = {id(node): number for number, node in enumerate(model.graph)}
    return [
        TurnedConstant(index[id(place.node)], place.position, place.axis, number)
        for number, each in enumerate(found)
        for place in each.places
    ]


def _roundings(model: Model, plan: Plan) -> dict[int, NodeRounding]:
    """What is rounded of each node of the main graph, by its index."""
    from onnxq.qat.rotations.turned_module import NodeRounding

    found = {}
    for index, node in enumerate(model.graph):
        planned = plan.nodes.get(node.name or "")
        if planned is None or planned.action not in (WEIGHT, INTEGER, DYNAMIC, STORAGE):
            continue
        position = weight_position(node)
        spec = planned.weights.get(position)
        tables = planned.form in (BNB4, LOOKUP)  # grids that are not even
        weight = None if spec is None or spec.dtype.is_float or tables else spec
        inputs = _inputs(node, planned, plan)
        if weight is not None or inputs is not None:
            packed = planned.action == WEIGHT and node.op_type != "Gather" and not walk.outputs_first(node)
            found[index] = NodeRounding(weight, position, packed, inputs)
    return found


def _inputs(node: Node, planned: NodePlan, plan: Plan) -> TensorSpec | None:
    """The grid of the first input of a layer; the ranges of static ones are those of each batch while it learns."""
    if planned.action == DYNAMIC:
        return _BY_TOKEN if planned.form == TOKEN else _DYNAMIC
    if planned.action != INTEGER or node.op_type not in ("MatMul", "Gemm"):
        return None
    name: str | None = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
    decision = plan.values.get(name or "")
    while isinstance(decision, SharedWith):
        decision = plan.values.get(decision.value)
    spec = decision.spec if isinstance(decision, Calibrated) else None
    return None if spec is None or spec.dtype.is_float else spec
