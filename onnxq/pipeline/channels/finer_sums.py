"""Channels evened out in front of depthwise convolutions where an engine's sums of 16-bit products are coarse."""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph.types import Model, Node
from onnxq.graph.walk import all_nodes
from onnxq.passes.even_depthwise import cut_off_db, factors_of, is_depthwise, multiply_channels
from onnxq.pipeline.job import Job
from onnxq.pipeline.planning import seen_by
from onnxq.plan.activations.activation_grids import WIDE
from onnxq.plan.decisions import INTEGER, Calibrated, Decision, Fixed, Plan, SharedWith
from onnxq.plan.make_plan import make_plan
from onnxq.runtime.sampled_rows import sample_channels

_FEEDS, _ROWS = 8, 512
"""Samples, and places of a value, that show how large channels are."""

_LEAST_DB = 50.0
"""What is cut off is of no account above this: rounding a weight to 8 bits makes about as much noise."""

_WORTH = 2.0
"""The largest factor has to be at least that."""


def finer_sums(job: Job) -> list[str]:
    """Multiply channels in front of the depthwise convolutions whose small channels the engine would cut off.

    Args:
        job: its model, which is changed; without samples it stays as it is.

    Returns:
        A line that says what was done; none where that is nothing.
    """
    data, model = job.data, job.prepared.model
    if data is None or job.target.sum_unit <= 1 or job.spill is not None:
        return []
    layers = [node for node in all_nodes(model.graph) if node.graph is model.graph and is_depthwise(node)]
    if not layers:
        return []
    plan = make_plan(model, job.recipe, job.target, seen_by(job))
    layers = [node for node in layers if _sums_coarsely(node, plan)]
    known = job.prepared.depthwise
    lacking = [node for node in layers if node.name not in known]
    if lacking:
        known |= _looked_at(job, model, lacking, plan)
    factors = {node.name or "": found for node in layers if (found := known[node.name or ""]) is not None}
    added = multiply_channels(model, factors)
    if not added:
        return []
    return [
        f"{job.target.name}: {len(added)} depthwise layer(s) have a Mul in front of them (the first {added[0]!r}): "
        f"sums are cut off there to units of {job.target.sum_unit} products, in which small channels would be lost"
    ]


def _sums_coarsely(node: Node, plan: Plan) -> bool:
    """Whether a layer reads 16-bit integers."""
    value = node.inputs[0]
    found = plan.nodes.get(node.name or "")
    if value is None or found is None or found.action != INTEGER:
        return False
    decision: Decision | None = plan.values.get(value.name or "")
    conversion = plan.conversions.get(value.name or "")
    if conversion is not None and node.name in conversion.readers:
        decision = conversion.decision
    seen: set[str] = set()
    while isinstance(decision, SharedWith) and decision.value not in seen:
        seen.add(decision.value)
        decision = plan.values.get(decision.value)
    spec = decision.spec if isinstance(decision, Calibrated) else None
    spec = decision.params.spec if isinstance(decision, Fixed) else spec
    return spec is not None and spec.bits >= WIDE


def _looked_at(job: Job, model: Model, layers: list[Node], plan: Plan) -> dict[str, Array | None]:
    """The factors of layers by name, None where nothing is to be gained."""
    assert job.data is not None
    axes = {value.name or "": 1 for node in layers for value in (node.inputs[0], node.outputs[0]) if value is not None}
    seen = sample_channels(model, axes, job.data.calibration, rows=_ROWS, feeds=_FEEDS, threads=job.threads)
    found: dict[str, Array | None] = {}
    for node in layers:
        source, name = node.inputs[0], node.name or ""
        read, written = (seen.get(value.name or "") for value in (source, node.outputs[0]) if value is not None)
        found[name] = None
        if read is None or written is None:
            continue
        # the second half of the samples tells the same; their extremes are joined
        part, result = read[0].joined(read[1]), written[0].joined(written[1])
        spec = plan.nodes[name].weights.get(1)
        bits = spec.bits if spec is not None else 8
        factors = factors_of(part)
        if cut_off_db(node, bits, job.target.sum_unit, part, result) < _LEAST_DB and np.max(factors) >= _WORTH:
            found[name] = factors
    return found
