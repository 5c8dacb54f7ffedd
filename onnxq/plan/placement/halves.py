"""Which nodes compute in float16 or bfloat16, and why the others stay float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from onnxq.graph import walk
from onnxq.graph.emit.half.halving import Halved, Sides
from onnxq.graph.reading.logarithms import ahead_of_logs
from onnxq.graph.reading.ops import KEEP_FLOAT
from onnxq.graph.types import FLOAT32, Model, Node, Value
from onnxq.plan.decisions import FLOAT, HALF, STORAGE, Plan
from onnxq.plan.placement.candidates import dtype_of, hidden_bodies
from onnxq.plan.placement.partition import Link, partition
from onnxq.plan.placement.select import Selection
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic
from onnxq.targets import Ops, Target

_REACH = {"float16": (6.104e-5, 65504.0), "bfloat16": (1.175e-38, 3.389e38)}
"""(Smallest normal number, largest number) of each type."""

_EXACT = 2048.0
"""Up to here float16 holds every whole number."""

_PERIODIC = frozenset({"Sin", "Cos", "Tan"})
_TURNS = 16.0
"""Angle from which rounding to float16 moves a point of the circle by a hundredth."""

_ARITHMETIC = frozenset(
    "Abs Add Cast Ceil Clip Concat CumSum Div Einsum Expand Floor Gather Identity MatMul Max Min Mod Mul Neg Pow Range "
    "Reciprocal Reshape Round Slice Sqrt Squeeze Sub Tile Transpose Unsqueeze Where".split()
)
"""What computes positions, sizes and angles."""


def divide(sides: Sides) -> list[bool]:
    """Choose for each node whether it has 16 bits, with the fewest Casts: a minimum cut."""
    links = [Link(edge.producer, edge.readers, edge.wide, 1.0, 1.0) for edge in sides.edges]
    return partition(sides.costs, [0.0] * len(sides.costs), links, sides.forced)


def values_to_see(model: Model, dtypes: Mapping[str, str]) -> list[str]:
    """Names of the float32 values whose ranges decide what can have 16 bits."""
    hidden = hidden_bodies(model.graph)
    found: dict[str, None] = {}
    for value in walk.all_values(model.graph):
        producer = value.producer()
        graph = producer.graph if producer is not None else value.graph
        if value.name and not walk.is_constant(value) and not hidden.get(id(graph)) and _is_wide(value, dtypes):
            found[value.name] = None
    return list(found)


@dataclass(frozen=True)
class Kept:
    """Nodes that have to stay float32.

    Attributes:
        reasons: why, by name.
        exact: those that the user left out, whose weights stay float32 too.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()


def kept_wide(
    model: Model, target: Target, selection: Selection, kind: str, statistics: Statistics | None,
    dtypes: Mapping[str, str],
) -> Kept:  # fmt: skip
    """Why nodes have to stay float32; what their schemas and constants say is found when the model is written.

    Args:
        model: the prepared model.
        target: knows which operators have kernels.
        selection: what the user chose.
        kind: "float16" or "bfloat16".
        statistics: ranges of the values; None where nothing was run.
        dtypes: element types seen at a run.
    """
    kernels = target.halves.get(kind, Ops())
    hidden = hidden_bodies(model.graph) if statistics is not None else {}
    found: dict[str, str] = {}
    exact = set()
    for node in walk.all_nodes(model.graph):
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        choice = selection.of(node.name or "", node.op_type)
        reason = choice.reason or node.meta.get(KEEP_FLOAT)
        if choice.reason:
            exact.add(node.name or "")
        if not reason and op_type not in kernels:
            reason = f"{target.name} has no {kind} kernel for {op_type}"
        if not reason and hidden.get(id(node.graph)):
            reason = hidden[id(node.graph)]
        if not reason and statistics is not None:
            reason = _out_of_range(node, kind, statistics)
        if reason:
            found[node.name or ""] = reason
    if kind == "float16":
        for node in ahead_of_logs(model.graph):
            found.setdefault(node.name or "", _LOG)
        for name, reason in _exact_chains(model, statistics, dtypes):
            found.setdefault(name, reason)
    for name in _crashing(model):
        found.setdefault(name, _CRASH)
    return Kept(found, frozenset(exact))


_LOG = "what it computes goes into a Log, where small numbers count as much as large ones: float16 has none so small"
_CRASH = "onnxruntime's CPU provider, which verifies the model, crashes where it joins such a pair in 16 bits"


def _crashing(model: Model) -> Iterator[str]:
    """Names of each Transpose and MatMul that bring ONNX Runtime down (seen in 1.32) unless no Cast is near them.

    Its fusion of a Transpose that moves the first axis behind the other batch axes with a MatMul of a constant matrix
    loses the Cast that stands between them, or that is put there since no kernel takes float16.
    """
    for node in walk.all_nodes(model.graph):
        source = walk.input_at(node, 0)
        before = source.producer() if source is not None else None
        if node.op_type != "MatMul" or before is None or before.op_type != "Transpose":
            continue
        order = walk.attr_ints(before, "perm")
        rank = len(order)
        if rank > 2 and walk.is_constant(node.inputs[1]) and tuple(order[:-2]) == tuple(range(1, rank - 1)):
            yield node.name or ""
            yield before.name or ""


def with_halves(plan: Plan, done: Halved, kind: str) -> Plan:
    """The plan with what the rewrite did."""
    nodes = {}
    for name, node in plan.nodes.items():
        wide = "" if name in done.half else done.wide.get(name, "it computes in float32")
        if node.action != FLOAT:
            nodes[name] = replace(node, wide=wide)
        elif not wide:
            nodes[name] = replace(node, action=HALF, reason="")
        elif name in done.stored:
            nodes[name] = replace(node, action=STORAGE, reason=f"{wide}; its weight is stored as {kind}")
        else:
            nodes[name] = replace(node, reason=wide)
    return replace(plan, nodes=nodes)


def _is_wide(value: Value, dtypes: Mapping[str, str]) -> bool:
    return value.dtype == FLOAT32 or (value.type is None and dtype_of(value, dtypes) == "float32")


def _out_of_range(node: Node, kind: str, statistics: Statistics) -> str:
    least, most = _REACH[kind]
    for value in (*node.inputs, *node.outputs):
        found = statistics.get(value.name or "") if value is not None and not walk.is_constant(value) else None
        reach = _reach(found)
        if value is None or reach is None:
            continue
        if reach > most:
            return f"value {value.name!r} reaches {reach:.4g}, and {kind} ends at {most:.5g}"
        if 0.0 < reach < least:
            return f"value {value.name!r} reaches {reach:.2g} at most, where {kind} has few digits left"
    return ""


def _reach(statistic: ValueStatistic | None) -> float | None:
    if statistic is None or statistic.low is None or statistic.high is None:
        return None
    return max(abs(statistic.low), abs(statistic.high))


def _exact_chains(model: Model, statistics: Statistics | None, dtypes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Arithmetic whose results are positions, sizes or angles, which rounding to three digits would change."""
    for node in walk.all_nodes(model.graph):
        source = walk.input_at(node, 0)
        if source is None or node.domain not in ("", "ai.onnx"):
            continue
        reach = _reach(statistics.get(source.name or "")) if statistics is not None else None
        if node.op_type == "Cast" and _is_wide(source, dtypes) and _becomes_whole(node):
            why = "its numbers become integers, which float16 would round otherwise"
        elif node.op_type in _PERIODIC and (reach is None or reach > _TURNS):
            why = "its numbers are angles of many turns, of which float16 keeps too few digits"
            yield node.name or "", why
        elif node.op_type in ("CumSum", "Range") and (reach is None or reach > _EXACT):
            yield node.name or "", f"{node.op_type} adds up what float16 rounds"
            continue
        else:
            continue
        yield node.name or "", why
        for name in _arithmetic_before(source):
            yield name, why


def _becomes_whole(node: Node) -> bool:
    output = node.outputs[0].dtype
    return output is not None and output.is_integer()


def _arithmetic_before(value: Value) -> Iterator[str]:
    pending, seen = [value.producer()], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen or node.op_type not in _ARITHMETIC:
            continue
        seen.add(id(node))
        if any(array is not None and array.size >= 4096 for array in map(walk.const_array, node.inputs)):
            continue  # a layer
        yield node.name or ""
        pending += [v.producer() for v in node.inputs if v is not None]
