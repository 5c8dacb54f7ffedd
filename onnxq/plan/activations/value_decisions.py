"""What each activation becomes, once it is known which nodes run on integers."""

from __future__ import annotations

from collections.abc import Collection

from onnxq.core.spec import TensorSpec
from onnxq.graph import walk
from onnxq.graph.reading.ops import Kind, activation_positions, gives_float, row_of
from onnxq.graph.types import Graph, Node
from onnxq.plan.activations.read_ranges import EVERYTHING, told_apart
from onnxq.plan.decisions import INTEGER, Calibrated, Decision, Derived, NodePlan, SharedWith
from onnxq.plan.placement.candidates import Quantizable, Survey, joined_rule
from onnxq.plan.placement.select import Selection
from onnxq.recipe.recipe import Recipe


def decide_values(
    graph: Graph,
    found: Survey,
    nodes: dict[str, NodePlan],
    recipe: Recipe,
    spec: TensorSpec,
    selection: Selection,
    pointwise: Collection[str] = (),
) -> dict[str, Decision]:
    """A decision for each value that has an integer form, inputs first, in graph order.

    A value has one if an integer node reads it, or if an integer node writes it and cannot write floats. The Convs
    that can are named by ``pointwise``.
    """
    integer = [c for name, c in found.candidates.items() if name in nodes and nodes[name].action == INTEGER]
    read = {
        value.name
        for candidate in integer
        for value in (candidate.node.inputs[i] for i in activation_positions(candidate.node, candidate.row))
        if value is not None and not walk.is_constant(value)
    }
    values: dict[str, Decision] = {}
    written = {output.name for candidate in integer for output in candidate.outputs}
    for scope in walk.all_graphs(graph):
        for value in scope.inputs:
            if value.name in read:
                values[value.name or ""] = Calibrated(spec, recipe.range)
    by_node = {id(candidate.node): candidate for candidate in integer}
    for node in walk.all_nodes(graph):
        candidate = by_node.get(id(node))
        if candidate is not None and candidate.row.kind is not Kind.READING:
            given = {output.name or "" for output in candidate.outputs}
            if (node.name in pointwise or gives_float(node)) and given.isdisjoint(read):
                continue
            _decide_outputs(candidate, spec, recipe, selection, values)
        for output in node.outputs:
            if output.name in read and output.name not in written:
                row, rule = row_of(node), selection.of(node.name or "", node.op_type).rule
                if row is not None and row.fixed_range is not None and rule.range is None:
                    values[output.name or ""] = Calibrated(spec, "minmax", within=row.fixed_range)
                else:
                    values[output.name or ""] = Calibrated(spec, rule.range or recipe.range)
    return values


def _decide_outputs(
    candidate: Quantizable,
    spec: TensorSpec,
    recipe: Recipe,
    selection: Selection,
    values: dict[str, Decision],
) -> None:
    node, row = candidate.node, candidate.row
    method = joined_rule(candidate, selection).range or recipe.range
    for output in candidate.outputs:
        name = output.name or ""
        if row.kind is Kind.PASSING:
            source = node.inputs[0]
            assert source is not None
            values[name] = SharedWith(source.name or "")
        elif row.fixed_range is not None:
            # All of what was seen, and no more than there can be: a Softmax over many seldom comes near 1.
            rule = joined_rule(candidate, selection)
            values[name] = Calibrated(spec, rule.range or "minmax", within=row.fixed_range)
        elif node.op_type == "Concat" and candidate.clamp is None and _can_share(node):
            values[name] = Derived(tuple(v.name or "" for v in node.inputs if v is not None), "union")
        else:
            bounds = told_apart(output)
            values[name] = Calibrated(spec, method, within=bounds if bounds != EVERYTHING else None)


def _can_share(node: Node) -> bool:
    """Whether a Concat's inputs can take its output's range: no one else decides it and all are activations."""
    return not any(walk.is_constant(value) for value in node.inputs)
