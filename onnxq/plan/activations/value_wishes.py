"""What the user says of single values, brought into their decisions."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace

import numpy as np

from onnxq.core.affine import params_from_range
from onnxq.core.dtypes import QType
from onnxq.core.spec import QParams, TensorSpec
from onnxq.errors import RecipeError, closest
from onnxq.graph import walk
from onnxq.graph.types import FLOAT32, Graph
from onnxq.plan.decisions import Calibrated, Decision, Derived, Fixed, SharedWith
from onnxq.recipe.patterns_of_names import matches, one_name
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.value_rules import ValueRule


def rule_of(recipe: Recipe, name: str) -> ValueRule | None:
    """All rules that match a value, joined into one, later ones winning key by key; None where none does."""
    joined: dict[str, object] = {}
    for rule in recipe.values:
        if matches(rule.match, name):
            given = {key: value for key, value in asdict(rule).items() if value is not None}
            for keys in (("range", "scale", "zero_point", "method"), ("scale", "zero_point", "symmetric")):
                if any(key in given for key in keys):  # a later way to say where the grid lies replaces an earlier one
                    joined = {key: value for key, value in joined.items() if key not in keys or key in given}
            joined |= given
    return ValueRule(**{**joined, "match": name}) if joined else None  # type: ignore[arg-type]


def names_of_casts(graph: Graph) -> dict[str, str]:
    """Inputs and outputs of another float type, by the name of the float32 value that each is cast to or from."""
    found = {}
    for value in graph.inputs:
        for user in value.consumers():
            if user.op_type == "Cast" and user.outputs[0].dtype == FLOAT32:
                found[user.outputs[0].name or ""] = value.name or ""
    for output in graph.outputs:
        node = output.producer()
        inner = walk.input_at(node, 0) if node is not None and node.op_type == "Cast" else None
        if inner is not None and inner.dtype == FLOAT32 and not walk.is_constant(inner):
            found[inner.name or ""] = output.name or ""
    return found


def of_inner_values(recipe: Recipe, graph: Graph) -> Recipe:
    """The recipe with rules of such inputs and outputs for the values that have their numbers inside."""
    inner = names_of_casts(graph) if recipe.values else {}
    if not inner:
        return recipe
    rules: list[ValueRule] = []
    for rule in recipe.values:
        named = [name for name, outer in inner.items() if matches(rule.match, outer) and not matches(rule.match, name)]
        if not named or one_name(rule.match) is None:
            rules.append(rule)
        rules += [replace(rule, match=glob.escape(name)) for name in named]
    return replace(recipe, values=tuple(rules))


def kept_float(recipe: Recipe, graph: Graph) -> dict[str, str]:
    """The values that are to stay float, and why, as `onnxq.plan.activations.unusable` says it.

    Raises:
        RecipeError: a rule matches no value.
    """
    if not recipe.values:
        return {}
    names = [name for name in _names(graph) if name]
    constants = {value.name for node in walk.all_nodes(graph) for value in node.inputs if value is not None}
    for rule in recipe.values:
        if one_name(rule.match) not in constants and not any(matches(rule.match, name) for name in names):
            near = closest(rule.match, names, cutoff=0.5)
            hint = f"did you mean {near!r}?" if near else "onnxq inspect --verbose lists the nodes"
            raise RecipeError(f"values: {rule.match!r} matches no value of the model; {hint}")
    wishes = {name: rule_of(recipe, name) for name in names}
    return {name: "is kept float by the recipe" for name, rule in wishes.items() if rule and rule.quantize is False}


def _names(graph: Graph) -> list[str | None]:
    inputs = [value.name for scope in walk.all_graphs(graph) for value in scope.inputs]
    return [*inputs, *(output.name for node in walk.all_nodes(graph) for output in node.outputs)]


def with_wishes(
    values: Mapping[str, Decision], recipe: Recipe, spec: TensorSpec, weights: Collection[str] = ()
) -> tuple[dict[str, Decision], list[str]]:
    """Decisions with what the recipe says of values, and what it says in vain.

    A value that shares the grid of another one passes its wish on to that one, unless that has one of its own.

    Args:
        values: a decision for each value that has an integer form.
        recipe: has the rules.
        spec: the grid of activations.
        weights: names of constants that rules are of.
    """
    decided = dict(values)
    if not recipe.values:
        return decided, []
    wishes = {name: rule for name in values if (rule := rule_of(recipe, name)) is not None}
    for name, rule in list(wishes.items()):
        root = name
        while isinstance(decision := values.get(root), SharedWith):
            root = decision.value
        wishes.setdefault(root, rule)
    for name, rule in wishes.items():
        decision = decided.get(name)
        if isinstance(decision, Calibrated | Fixed | Derived) and rule.quantize is None:
            decided[name] = _wished(decision, rule, spec)
    idle = [
        rule.match
        for rule in recipe.values
        if rule.quantize is None
        and one_name(rule.match) not in weights
        and not any(matches(rule.match, name) for name in values)
    ]
    notes = [f"values: {match!r} has no integer form in this model, so that its rule has no effect" for match in idle]
    return _of_one_width(decided, spec) if any(rule.bits for rule in recipe.values) else decided, notes


def _wished(decision: Calibrated | Fixed | Derived, rule: ValueRule, spec: TensorSpec) -> Decision:
    if isinstance(decision, Calibrated):
        spec = decision.spec
    elif isinstance(decision, Fixed):
        spec = decision.params.spec
    if rule.symmetric is not None:
        spec = replace(spec, symmetric=rule.symmetric)
    if rule.bits is not None:
        spec = replace(spec, dtype=QType(f"{'' if spec.dtype.signed else 'u'}int{rule.bits}"))
    if isinstance(rule.scale, tuple) or isinstance(rule.zero_point, tuple):
        raise RecipeError(f"value rule {rule.match!r}: is of an activation, which has one scale; pass one number")
    if rule.scale is not None and rule.zero_point is not None:
        if not spec.qmin <= rule.zero_point <= spec.qmax:
            raise RecipeError(
                f"value rule {rule.match!r}: zero_point {rule.zero_point} is not in {spec.qmin}…{spec.qmax}, the "
                f"integers of {spec.dtype.value}"
            )
        scale, zero_point = np.array(rule.scale, np.float32), np.array(rule.zero_point, spec.dtype.numpy)
        return Fixed(QParams(replace(spec, symmetric=False), scale, zero_point))
    if rule.range is not None:
        low, high = min(rule.range[0], 0.0), max(rule.range[1], 0.0)
        return Fixed(params_from_range(low, max(high, low + (rule.min_range or 0.0)), spec))
    if isinstance(decision, Calibrated):
        return replace(
            decision,
            spec=spec,
            range_method=rule.method or decision.range_method,
            least=decision.least if rule.min_range is None else rule.min_range,
            zeros=decision.zeros if rule.zeros is None else rule.zeros,
        )
    return decision if rule.bits is None else Calibrated(spec, rule.method or "minmax")


def _of_one_width(values: Mapping[str, Decision], spec: TensorSpec) -> dict[str, Decision]:
    """Decisions in which a value that would share one range with others of another width has a range of its own."""
    decided = dict(values)
    for name, decision in values.items():
        if isinstance(decision, Derived):
            kinds = {_dtype(values, value, spec) for value in decision.values}
            if kinds != {spec.dtype}:
                decided[name] = Calibrated(spec, "minmax")
    return decided


def _dtype(values: Mapping[str, Decision], name: str, spec: TensorSpec) -> QType:
    decision = values.get(name)
    while isinstance(decision, SharedWith):
        decision = values.get(decision.value)
    if isinstance(decision, Fixed):
        return decision.params.spec.dtype
    return decision.spec.dtype if isinstance(decision, Calibrated) else spec.dtype
