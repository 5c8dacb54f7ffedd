"""Values that some nodes read on a second grid, as the user says: written on the first one, and rounded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxq.core.spec import TensorSpec
from onnxq.errors import RecipeError, closest
from onnxq.graph import walk
from onnxq.graph.reading.ops import activation_positions, row_in
from onnxq.graph.types import Graph
from onnxq.plan.activations.activation_grids import of_width
from onnxq.plan.activations.value_wishes import rule_of
from onnxq.plan.decisions import INTEGER, Calibrated, Conversion, Decision, Fixed, Plan, SharedWith
from onnxq.recipe.patterns_of_names import matches
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.value_rules import ValueRule

Sources = Mapping[str, tuple[str, ...]]
"""By node, the names it had in the user's model."""


def with_conversions(plan: Plan, recipe: Recipe, graph: Graph, sources: Sources) -> Plan:
    """A plan with the second grids that the recipe asks for, in place of others of the same values.

    Args:
        plan: the decisions of nodes and values; what is said of values is in them already.
        recipe: has the rules.
        graph: of the prepared model.
        sources: names that nodes had in the user's model.

    Raises:
        RecipeError: ``readers`` names no node of the model.
    """
    if not any(rule.convert for rule in recipe.values):
        return plan
    _check_readers(recipe, sources)
    readers = _readers(graph, plan)
    found, notes = dict(plan.conversions), []
    for name in plan.values:
        rule = rule_of(recipe, name)
        if rule is None or rule.convert is None:
            continue
        root = _root(plan.values, name)
        held = root.spec if isinstance(root, Calibrated) else root.params.spec if isinstance(root, Fixed) else None
        taking = [node for node in readers.get(name, ()) if _named(rule, sources.get(node, (node,)))]
        if held is None or not taking or held.bits == rule.convert:
            why = _in_vain(held, bool(taking))
            notes.append(f"values: {name!r} {why}, so that convert has no effect")
            continue
        spec = of_width(held, rule.convert)
        again = replace(root, spec=spec) if isinstance(root, Calibrated) else Calibrated(spec, rule.method or "minmax")
        found[name] = Conversion(again, frozenset(taking))
    return replace(plan, conversions=found, notes=(*plan.notes, *notes))


def _in_vain(held: TensorSpec | None, taken: bool) -> str:
    if held is None:
        return "shares its range with other values"
    return f"has {held.bits} bits already" if taken else "is read on integers by none of its readers"


def _check_readers(recipe: Recipe, sources: Sources) -> None:
    there = sorted({name for names in sources.values() for name in names})
    for rule in recipe.values:
        for pattern in rule.readers or ():
            if not any(matches(pattern, name) for name in there):
                near = closest(pattern, there, cutoff=0.5)
                hint = f"did you mean {near!r}?" if near else "onnxq inspect --verbose lists the nodes"
                raise RecipeError(f"value rule {rule.match!r}: readers: {pattern!r} matches no node; {hint}")


def _named(rule: ValueRule, names: tuple[str, ...]) -> bool:
    return rule.readers is None or any(matches(pattern, name) for pattern in rule.readers for name in names)


def _root(values: Mapping[str, Decision], name: str) -> Decision | None:
    decision = values.get(name)
    while isinstance(decision, SharedWith):
        decision = values.get(decision.value)
    return decision


def _readers(graph: Graph, plan: Plan) -> dict[str, list[str]]:
    """By value, the nodes that read it on integers."""
    found: dict[str, list[str]] = {}
    for node in walk.all_nodes(graph):
        planned = plan.nodes.get(node.name or "")
        if planned is None or planned.action != INTEGER:
            continue
        for position in activation_positions(node, row_in(node)):
            value = node.inputs[position]
            if value is not None and value.name and not walk.is_constant(value):
                found.setdefault(value.name, []).append(node.name or "")
    return found
