"""What the user says of the grids of single weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq.core.affine import params_from_range, quantize, scale_shape
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.reading.ops import channel_axis, row_of
from onnxq.graph.types import Graph, Node
from onnxq.plan.activations.value_wishes import rule_of
from onnxq.plan.decisions import INTEGER, STORAGE, NodePlan
from onnxq.recipe.patterns_of_names import one_name
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.value_rules import ValueRule


def named_weights(recipe: Recipe, graph: Graph) -> dict[str, ValueRule]:
    """The rules of constants; a constant is named in full, since patterns are of activations."""
    single = [rule for rule in recipe.values if one_name(rule.match) is not None]
    if not single:
        return {}
    named = {one_name(rule.match) for rule in single}
    found = [value for node in walk.all_nodes(graph) for value in node.inputs if value is not None]
    constants = sorted({str(value.name) for value in found if value.name in named and walk.is_constant(value)})
    rules = {name: rule_of(replace(recipe, values=tuple(single)), name) for name in constants}
    return {name: rule for name, rule in rules.items() if rule is not None}


def float_biases(recipe: Recipe, graph: Graph) -> frozenset[str]:
    """Names of the biases that the recipe leaves float.

    Raises:
        RecipeError: the format has no layers on integers with such a bias.
    """
    rules = named_weights(recipe, graph)
    wanted = {name for name, rule in rules.items() if rule.quantize is False}
    found = set()
    for node in walk.all_nodes(graph) if wanted else ():
        row = row_of(node)
        bias = None if row is None or row.bias is None else walk.input_at(node, row.bias)
        if bias is not None and bias.name in wanted:
            found.add(bias.name)
    if found and recipe.format == "qoperator":
        raise RecipeError(
            f"value rule {min(found)!r}: a bias stays float in models of Q and DQ alone; use --format qdq"
        )
    return frozenset(found)


def with_weight_wishes(
    nodes: Mapping[str, NodePlan], recipe: Recipe, graph: Graph
) -> tuple[dict[str, NodePlan], list[str]]:
    """Plans of nodes with the grids that the recipe gives their weights, and what it says in vain.

    Raises:
        RecipeError: a rule says of a weight what holds for activations alone, or has not one number a channel.
    """
    planned, rules = dict(nodes), named_weights(recipe, graph)
    used = {rules[name].match for name in float_biases(recipe, graph)}
    for node in walk.all_nodes(graph) if rules else ():
        plan = planned.get(node.name or "")
        if plan is None or plan.action not in (INTEGER, STORAGE):
            continue
        grids: dict[int, QParams] = {}
        for position, spec in plan.weights.items():
            value = node.inputs[position]
            rule = rules.get(value.name or "") if value is not None else None
            array = walk.const_array(value)
            if rule is not None and array is not None:
                grids[position] = _grid(node, array, spec, rule)
                used.add(rule.match)
        if grids:
            specs = {position: grid.spec for position, grid in grids.items()}
            planned[plan.name] = replace(plan, weights={**plan.weights, **specs}, grids=grids)
    idle = [name for name in rules if name not in used]
    return planned, [
        f"values: {name!r} is not quantized as a weight here, so that its rule has no effect" for name in idle
    ]


def on_given_grids(nodes: Mapping[str, Node], plans: Mapping[str, NodePlan]) -> dict[tuple[str, int], QTensor]:
    """The weights whose grids are given, as integers, by node and input."""
    found = {}
    for name, plan in plans.items():
        for position, params in plan.grids.items():
            array = walk.const_array(nodes[name].inputs[position])
            assert array is not None
            found[(name, position)] = QTensor(quantize(array, params), params)
    return found


def _grid(node: Node, array: Array, spec: TensorSpec, rule: ValueRule) -> QParams:
    where = f"value rule {rule.match!r}: is of a weight, "
    if rule.method is not None:
        raise RecipeError(f"{where}whose range is that of its elements; leave method out")
    if rule.convert is not None:
        raise RecipeError(f"{where}which has one grid; leave convert out")
    if rule.bits is not None:
        raise RecipeError(f"{where}whose bits a rule for its node says; leave bits out")
    if rule.quantize is not None:
        raise RecipeError(f"{where}which stays float where a rule for its node says so; leave quantize out")
    if rule.scale is not None and rule.zero_point is not None:
        return _given(node, array, spec, rule, where)
    symmetric = bool(rule.symmetric) if rule.symmetric is not None else rule.range is None
    whole = replace(spec, granularity=PerTensor(), symmetric=symmetric, narrow_range=symmetric)
    low, high = rule.range or (float(array.min(initial=0.0)), float(array.max(initial=0.0)))
    low, high = min(low, 0.0), max(high, 0.0)
    params = params_from_range(low, max(high, low + (rule.min_range or 0.0)), whole)
    shape = scale_shape(array.shape, whole.granularity)
    return QParams(whole, params.scale.reshape(shape), params.zero_point.reshape(shape))


def _given(node: Node, array: Array, spec: TensorSpec, rule: ValueRule, where: str) -> QParams:
    scales: Array = np.array(rule.scale, np.float64).reshape(-1)
    zeros: Array = np.array(rule.zero_point, np.int64).reshape(-1)
    axis = channel_axis(node, array.ndim)
    channels = array.shape[axis] if axis is not None else 1
    if max(scales.size, zeros.size) > 1 and not {scales.size, zeros.size} <= {1, channels}:
        raise RecipeError(
            f"{where}with {channels} channels, and has {scales.size} scales and {zeros.size} zero points; pass one of "
            "each, or one a channel"
        )
    by_channel = max(scales.size, zeros.size) > 1 and axis is not None
    free = replace(
        spec,
        granularity=PerAxis(axis) if by_channel and axis is not None else PerTensor(),
        symmetric=False,
        narrow_range=False,
    )
    if zeros.min() < free.qmin or zeros.max() > free.qmax:
        raise RecipeError(
            f"{where}and zero_point {zeros.tolist()} is not in {free.qmin}…{free.qmax}, the integers of "
            f"{free.dtype.value}"
        )
    shape = scale_shape(array.shape, free.granularity)
    count = channels if by_channel else 1
    scale = np.broadcast_to(scales.astype(np.float32), count).reshape(shape).copy()
    return QParams(free, scale, np.broadcast_to(zeros.astype(free.dtype.numpy), count).reshape(shape).copy())
