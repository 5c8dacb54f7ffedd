"""Place the candidates: which of them run on integers, and why the others do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxq.core.spec import TensorSpec
from onnxq.graph import walk
from onnxq.graph.reading.ops import Kind, activation_positions, bias_behind, gives_float, is_pointwise, scalings_beside
from onnxq.graph.reading.patterns import Match
from onnxq.graph.types import Graph, Value
from onnxq.plan.placement.candidates import Quantizable, Survey
from onnxq.plan.placement.cost import Shapes, elements, kernel_is_slower, layout_us, node_costs
from onnxq.plan.placement.partition import Link, partition
from onnxq.targets import Target

SMALL_WEIGHT = 256
"""A weight of fewer elements saves less than its scales and conversions take, so its layer has to earn its place."""


def pointwise_layers(graph: Graph, found: Survey, target: Target, spec: TensorSpec, *, trained: bool) -> frozenset[str]:
    """Names of the Convs whose products can go straight to float, those of the main graph.

    Not those that give an output of the model: the Transpose behind the product would meet nothing to be joined with,
    and takes longer than the DQ that it saves.

    Args:
        graph: the main graph.
        found: the candidates.
        target: what the runtime can do.
        spec: the grid of activations, of which the kernel takes no other than 8 bits.
        trained: the model brings grids along that it was trained on; they stay.
    """
    if target.pointwise_float is None or spec.dtype.bits != 8 or trained:
        return frozenset()
    return frozenset(
        name
        for name, candidate in found.candidates.items()
        if is_pointwise(candidate.node) and candidate.node.graph is graph and not candidate.outputs[0].is_graph_output()
    )


def place(
    found: Survey,
    target: Target,
    shapes: Shapes,
    working: set[int],
    units: Sequence[Match] = (),
    pointwise: Collection[str] = (),
) -> set[str]:
    """Names of the candidates that run on integers.

    Args:
        found: the candidates.
        target: what the runtime can do, and how fast.
        shapes: shape of each value in one sample.
        working: those of `ahead_of_work`.
        units: functions of several nodes, some of which have a float kernel of their own.
        pointwise: those of `pointwise_layers`.
    """
    candidates = list(found.candidates.values())
    forced: dict[int, bool] = {}
    for i, candidate in enumerate(candidates):
        if candidate.choice.insisted or _is_heavy(candidate, shapes, target):
            forced[i] = True
    if not forced:
        # Nothing is expected to gain. The user asked for integers all the same: multiply on them, and let the
        # measurement say what it costs.
        forced = {i: True for i, c in enumerate(candidates) if c.row.kind is Kind.WEIGHTED}
    if not forced:
        return set()
    for i, candidate in enumerate(candidates):
        if (candidate.row.kind is Kind.REQUANTIZING and id(candidate) not in working) or _costs_more_than_it_saves(
            candidate
        ):
            forced.setdefault(i, False)
    costs = [node_costs(c.node, c.row, shapes, target.costs) for c in candidates]
    costs = _joined(candidates, costs, target, shapes, units)
    links = _links(candidates, target, shapes, units, pointwise)
    sides = partition([c[0] for c in costs], [c[1] for c in costs], links, forced)
    return {c.node.name or "" for c, integer in zip(candidates, sides, strict=True) if integer}


def _joined(
    candidates: list[Quantizable],
    costs: list[tuple[float, float]],
    target: Target,
    shapes: Shapes,
    units: Sequence[Match],
) -> list[tuple[float, float]]:
    """The costs, with nodes that the runtime joins with the product beside them, or with each other."""
    result = list(costs)
    index = {id(c.node): i for i, c in enumerate(candidates)}
    for i, candidate in enumerate(candidates):
        node = candidate.node
        added = bias_behind(node) if target.adds_bias else None
        if added is not None and id(added) in index:
            j = index[id(added)]
            result[j] = (0.0, result[j][1])
        if node.op_type != "MatMul" or walk.is_constant(node.inputs[1]):
            continue
        for scaling in scalings_beside(node):
            # Between floats it costs nothing; behind or before an integer product it does.
            if (j := index.get(id(scaling), -1)) >= 0:
                result[i] = (result[i][0], result[i][1] + costs[j][0])
                result[j] = (0.0, result[j][1])
    for unit in units:
        rate, last = target.costs.float_ops.get(unit.pattern.name), unit.nodes[-1]
        if rate is not None and not unit.shared and id(last) in index:
            for node in unit.nodes:
                if (j := index.get(id(node), -1)) >= 0:
                    size = elements(last.outputs[0], shapes) or 0
                    result[j] = (rate.us(size) if node is last else 0.0, result[j][1])
    return result


def _is_heavy(candidate: Quantizable, shapes: Shapes, target: Target) -> bool:
    """Whether a layer runs on integers whatever stands around it: it is faster there, and smaller.

    A product of two activations has no weight that becomes smaller, and has to earn its place.
    """
    if candidate.row.kind is not Kind.WEIGHTED or kernel_is_slower(candidate.node, shapes, target.costs):
        return False
    weight = walk.const_array(candidate.node.inputs[1])
    return weight is not None and weight.size >= SMALL_WEIGHT


def _costs_more_than_it_saves(candidate: Quantizable) -> bool:
    """Whether a matrix is so small that scales, biases and two nodes more take what its integers save.

    A Conv of that size stands among others on integers, as a depthwise one, and would cost conversions as float.
    """
    weight = walk.const_array(candidate.node.inputs[1]) if candidate.node.op_type in ("Gemm", "MatMul") else None
    return weight is not None and weight.size < SMALL_WEIGHT


def why_float(candidate: Quantizable, working: set[int], shapes: Shapes, target: Target) -> str:
    """Why a candidate that could run on integers does not."""
    as_float, as_int = node_costs(candidate.node, candidate.row, shapes, target.costs)
    if _costs_more_than_it_saves(candidate):
        return f"its weight has fewer than {SMALL_WEIGHT} elements: its scales would take what it saves"
    if candidate.row.kind is Kind.WEIGHTED:
        return f"slower on integers here: about {as_int:.0f} µs against {as_float:.0f} µs"
    if candidate.row.kind is Kind.REQUANTIZING and id(candidate) not in working:
        return "no integer layer comes after it, so that rounding to 8 bits would only cost accuracy"
    return f"not faster in int8, conversions included: about {as_int:.0f} µs and conversions against {as_float:.0f} µs"


def ahead_of_work(found: Survey) -> set[int]:
    """Ids of the candidates whose results reach a multiply-accumulate layer through other candidates."""
    writers = {id(output): c for c in found.candidates.values() for output in c.outputs}
    pending = [c for c in found.candidates.values() if c.row.kind is Kind.WEIGHTED]
    reached: set[int] = set()
    while pending:
        candidate = pending.pop()
        for position in activation_positions(candidate.node, candidate.row):
            writer = writers.get(id(candidate.node.inputs[position]))
            if writer is not None and id(writer) not in reached:
                reached.add(id(writer))
                pending.append(writer)
    return reached


def _links(
    candidates: list[Quantizable],
    target: Target,
    shapes: Shapes,
    units: Sequence[Match],
    pointwise: Collection[str],
) -> list[Link]:
    unit_of = {id(node): id(unit) for unit in units for node in unit.nodes}
    producers = {id(output): i for i, c in enumerate(candidates) for output in c.outputs}
    readers: dict[int, tuple[Value, dict[int, None]]] = {}
    for i, candidate in enumerate(candidates):
        for position in activation_positions(candidate.node, candidate.row):
            value = candidate.node.inputs[position]
            if value is not None and not walk.is_constant(value):
                readers.setdefault(id(value), (value, {}))[1][i] = None
        if candidate.row.kind is not Kind.READING:
            for output in candidate.outputs:
                readers.setdefault(id(output), (output, {}))
    members = {id(c.node) for c in candidates}
    links = []
    for key, (value, reading) in readers.items():
        size = elements(value, shapes) or 0
        producer = producers.get(key)
        outside = value.is_graph_output() or any(id(user) not in members for user in value.consumers())
        together = {unit_of.get(id(candidates[i].node), i) for i in reading}  # on one side, whichever it is
        alone = not reading or (len(together) == 1 and not outside)
        free = producer is not None and gives_float(candidates[producer].node) and alone
        back = 0.0 if free else target.costs.dequantize.us(size)
        if producer is not None and alone and candidates[producer].node.name in pointwise:
            wider = target.pointwise_float
            back = min(back, wider.us(size) if wider is not None else back)
        there = target.costs.quantize.us(size)
        there += sum(layout_us(candidates[i].node, shapes, target.costs.behind_quantize) for i in reading)
        if producer is not None:
            there += layout_us(candidates[producer].node, shapes, target.costs.before_quantize)
        links.append(Link(producer, tuple(reading), outside, there, back))
    return links
