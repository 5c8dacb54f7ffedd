"""What a model was trained with, as decisions: which values and weights have a grid before anything is calibrated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.core.affine import params_from_range, quantize
from onnxq.core.spec import QParams, QTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.reading.ops import Kind, clamp_bounds, is_weight, row_of
from onnxq.graph.types import Graph, Node, Value
from onnxq.plan.decisions import Decision, Fixed, NodePlan, SharedWith
from onnxq.plan.placement.candidates import Survey


@dataclass(frozen=True)
class Given:
    """Grids from training, by the names of the prepared model.

    Attributes:
        values: of activations.
        weights: integers of constants, by (node, input).
        nodes: names of the Q and DQ that an activation had.
    """

    values: Mapping[str, Fixed] = field(default_factory=dict)
    weights: Mapping[tuple[str, int], QTensor] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Training:
    """What a model was trained with.

    Attributes:
        given: grids of its activations and integers of its weights.
        values: how many activations had a grid.
        weights: how many constants had one.
        refused: how often a grid could not be kept, by the reason.
    """

    given: Given
    values: int
    weights: int
    refused: Counter[str] = field(default_factory=Counter)


def spread(graph: Graph, values: Mapping[str, Fixed]) -> dict[str, Fixed]:
    """Give a grid to values that get the same integers as one that has a grid.

    What an operator only moves can be rounded before as well as behind it, and so can the parts of a Concat. Behind a
    Relu or Clip a grid stays what it was, and ends at the bounds.

    Args:
        graph: of the prepared model.
        values: the grids that there are.

    Returns:
        These and those that follow.
    """
    known = dict(values)
    nodes = list(walk.all_nodes(graph))
    for node in reversed(nodes):
        given = known.get(node.outputs[0].name or "") if node.outputs else None
        if given is not None:
            for value in _moved(node):
                known.setdefault(value.name or "", given)
    for node in nodes:
        row = row_of(node)
        if row is None or row.kind is not Kind.CLAMPING or node.inputs[0] is None:
            continue
        given = known.get(node.inputs[0].name or "")
        name = node.outputs[0].name or ""
        if given is not None and name not in known:
            known[name] = clamped(given, clamp_bounds(node))
    return known


def from_sums(graph: Graph, known: Mapping[str, Fixed], spec: TensorSpec) -> dict[str, Fixed]:
    """A grid for each term of an Add of which the sum and the other term have one: no sample is needed for it.

    Beyond the range that it gets, the sum is beyond its own range whatever the other term is, so that nothing is
    clipped that the sum would not clip.

    Args:
        graph: of the prepared model.
        known: the grids that there are.
        spec: the grid of activations.
    """
    found: dict[str, Fixed] = {}
    for node in walk.all_nodes(graph):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        total = known.get(node.outputs[0].name or "")
        terms = [value.name or "" for value in node.inputs if value is not None and not walk.is_constant(value)]
        if total is None or len(terms) != 2:
            continue
        for name, other in (terms, terms[::-1]):
            if name in known or other not in known:
                continue
            (low, high), (least, most) = ends(total), ends(known[other])
            found[name] = Fixed(params_from_range(min(low - most, 0.0), max(high - least, 0.0), spec))
    return found


def _moved(node: Node) -> Iterator[Value]:
    """The inputs whose elements a node hands on as they are, those that others read in another way left out."""
    row = row_of(node)
    if row is None or (row.kind is not Kind.PASSING and node.op_type != "Concat"):
        return
    for value in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
        if value is not None and value.name and not walk.is_constant(value) and walk.only_use(value) is node:
            yield value


def clamped(given: Fixed, bounds: tuple[float, float]) -> Fixed:
    """The same grid where nothing is outside of bounds: rounding keeps the order, so that the integers are clipped.

    Args:
        given: the grid.
        bounds: (low, high) of what is rounded; infinite where open.
    """
    spec = given.params.spec
    low, high = given.limits or (spec.qmin, spec.qmax)
    scalar = QParams(spec, given.params.scale.reshape(()), given.params.zero_point.reshape(()))
    ends = [int(end) for end in quantize(np.clip(np.array(bounds), -3e38, 3e38).astype(np.float32), scalar)]
    limits = max(low, ends[0]), min(high, ends[1])
    return replace(given, limits=None if limits == (spec.qmin, spec.qmax) else limits)


def ends(given: Fixed) -> tuple[float, float]:
    """The smallest and the largest real on a grid."""
    spec = given.params.spec
    low, high = given.limits or (spec.qmin, spec.qmax)
    zero, scale = int(given.params.zero_point.reshape(())), float(given.params.scale.reshape(()))
    return (low - zero) * scale, (high - zero) * scale


def fix(
    values: Mapping[str, Decision], known: Mapping[str, Fixed], clamps: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, Decision]:
    """Decide values by the grids that they were trained with, and leave the others as they are.

    What shares the grid of a value goes on sharing it: an integer kernel that moves elements cannot round anew.

    Args:
        values: a decision for each value that has an integer form.
        known: the grids.
        clamps: bounds of what was folded into what writes a value.
    """
    decided = dict(values)
    for name, decision in values.items():
        given = known.get(name)
        if given is None or isinstance(decision, SharedWith):
            continue
        for bounds in clamps.get(name, ()):
            given = clamped(given, bounds)
        decided[name] = given
    return decided


def folded_bounds(found: Survey, known: Mapping[str, Fixed]) -> dict[str, list[tuple[float, float]]]:
    """What a Relu or Clip that is folded into a layer lets through, and a grid in front of it, by what it writes."""
    bounds: dict[str, list[tuple[float, float]]] = {}
    for candidate in found.candidates.values():
        if candidate.clamp is None:
            continue
        inner = known.get(candidate.node.outputs[0].name or "")
        each = [clamp_bounds(candidate.clamp), *([ends(inner)] if inner is not None else [])]
        bounds[candidate.clamp.outputs[0].name or ""] = each
    return bounds


def as_trained(plan: NodePlan, given: Given) -> NodePlan:
    """A node's plan with the grids of those of its constants that came as integers."""
    specs = {i: given.weights[(plan.name, i)].params.spec for i in plan.weights if (plan.name, i) in given.weights}
    return replace(plan, weights={**plan.weights, **specs}, trained=True) if specs else plan


def unread(given: Given, decided: Mapping[str, Decision]) -> dict[str, tuple[QParams, tuple[int, int] | None]]:
    """The grids of values that no integer kernel reads or writes."""
    return {name: (fixed.params, fixed.limits) for name, fixed in given.values.items() if name not in decided}


def insist(found: Survey, given: Given, known: Mapping[str, Fixed]) -> None:
    """Put layers that were trained on integers there, and leave float those whose weights training left float."""
    for name, candidate in list(found.candidates.items()):
        if candidate.row.kind is not Kind.WEIGHTED or candidate.choice.insisted:
            continue
        if is_weight(candidate.node, candidate.row):
            source = candidate.node.inputs[0]
            if (name, candidate.row.weight) not in given.weights:
                found.keep(name, "its weight was not quantized in training")
            elif source is not None and source.name in known:
                candidate.choice = replace(candidate.choice, insisted=True)
