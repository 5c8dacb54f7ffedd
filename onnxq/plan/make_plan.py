"""Make the plan: recipe × operator table × target × shapes → decisions. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxq.core.spec import TensorSpec
from onnxq.graph import walk
from onnxq.graph.experts import small_layers
from onnxq.graph.reading.logarithms import before_logs
from onnxq.graph.reading.ops import (
    KEEP_FLOAT,
    STORABLE,
    Kind,
    activation_positions,
    gives_float,
    is_weight,
)
from onnxq.graph.types import Graph, Model, Node, Value
from onnxq.plan.activations.activation_grids import activation_spec, check_float8, of_width
from onnxq.plan.activations.body_probes import probed_values
from onnxq.plan.activations.dynamic import plan_dynamic
from onnxq.plan.activations.second_grids import Sources, with_conversions
from onnxq.plan.activations.value_decisions import decide_values
from onnxq.plan.activations.value_wishes import kept_float, of_inner_values, with_wishes
from onnxq.plan.decisions import (
    FLOAT,
    FOLDED,
    INTEGER,
    PRESENT,
    STORAGE,
    Decision,
    NodePlan,
    Plan,
)
from onnxq.plan.expert_layers import plan_packed
from onnxq.plan.given import Given, as_trained, fix, folded_bounds, insist, spread
from onnxq.plan.placement.candidates import Quantizable, Survey, survey
from onnxq.plan.placement.cost import Shapes, node_costs
from onnxq.plan.placement.halves import values_to_see
from onnxq.plan.placement.place import ahead_of_work, place, pointwise_layers, why_float
from onnxq.plan.placement.select import Choice, Selection
from onnxq.plan.placement.units import keep_whole, mixed_units, units_of
from onnxq.plan.product_biases import with_biases
from onnxq.plan.wanted import Wanted
from onnxq.plan.weight_wishes import named_weights, with_weight_wishes
from onnxq.plan.weights.bias import mean_kind
from onnxq.plan.weights.needed_moments import layer_input, moments_of
from onnxq.plan.weights.outlier_channels import check_outliers, split_inputs, threshold
from onnxq.plan.weights.stored import MIN_STORED, integer_spec, is_small, scales_outweigh, storage_specs
from onnxq.plan.weights.weight_only import notes_on
from onnxq.plan.whole_graph import Whole, plan_whole
from onnxq.recipe.presets import PRESETS, Preset
from onnxq.recipe.recipe import Recipe
from onnxq.targets import MEASURED, Target

_BEFORE_LOG = (
    "what it computes goes into a Log, where small numbers count as much as large ones: one scale is too coarse"
)

_ACTIVATIONS_FLOAT = "activations stay float32 with this preset"

__all__ = ["ModelFacts", "Wanted", "make_plan", "wanted_by", "wanted_by_any"]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model beyond its graph.

    Attributes:
        shapes: shape of each value in one sample.
        dtypes: element type of each value in one sample.
        sources: for each node, the names it had in the user's model.
        op_types: operator of each node of the user's model.
        unusable: values that must stay float, and why (see `onnxq.plan.activations.unusable`).
        low_sqnr: values that should stay float, and why; what the user insists on is quantized all the same (see
            `onnxq.plan.activations.low_sqnr`). An engine of integers alone has 16 bits for them, where it can.
    """

    shapes: Shapes
    dtypes: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]
    op_types: Mapping[str, str] | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    low_sqnr: Mapping[str, str] = field(default_factory=dict)
    given: Given | None = None


def make_plan(model: Model, recipe: Recipe, target: Target, seen: ModelFacts) -> Plan:
    """Decide what each node and value becomes.

    Args:
        model: the prepared model; not changed.
        recipe: what the user asked for; its preset must not be "auto".
        target: what the runtime can do, and how fast.
        seen: what a run on one sample, or calibration, has shown.

    Raises:
        RecipeError: a pattern or operator type matches nothing.
    """
    check_outliers(recipe)
    graph = model.graph
    recipe = of_inner_values(recipe, graph)
    op_types = {node.op_type for node in walk.all_nodes(graph)}
    selection = Selection(recipe, seen.sources, op_types, seen.op_types, small_layers(graph))
    spec = activation_spec(recipe, target)
    if target.coverage != MEASURED and PRESETS[recipe.preset].activations == "static":
        spec = of_width(spec, PRESETS[recipe.preset].activation_bits)
    check_float8(spec, graph)
    wished = kept_float(recipe, graph)
    unusable = {**wished, **seen.unusable}
    if target.coverage != MEASURED and any(preset.activations == "static" for preset in _presets(recipe)):
        everything = plan_whole(model, Whole(recipe, target, selection, spec, seen.dtypes, unusable, seen.low_sqnr))
        return _as_wished(everything, recipe, spec, graph, seen.sources)
    given = seen.given or Given()
    known = spread(graph, given.values)
    trained = None if seen.given is None else {name for name, _ in given.weights}
    found = survey(graph, target, selection, seen.dtypes, spec.symmetric, trained)
    if seen.given is not None:
        insist(found, given, known)
    pointwise = pointwise_layers(graph, found, target, spec, trained=seen.given is not None)
    for name, candidate in list(found.candidates.items()):
        wrong = {**({} if candidate.choice.insisted else seen.low_sqnr), **unusable}
        if name in pointwise or gives_float(candidate.node):  # whose products can stay as they are
            wrong = {key: why for key, why in wrong.items() if key not in wished or not _writes(candidate, key)}
        bad = next((v.name for v in _touched(candidate) if v.name in wrong), None)
        if bad:
            found.guard(name, f"value {bad!r} {wrong[bad]}")
    logs = before_logs(graph)
    for name in logs & found.candidates.keys():
        if not found.candidates[name].choice.insisted:
            found.guard(name, _BEFORE_LOG)
    static = any(preset.activations == "static" for preset in _presets(recipe))
    for name in list(found.candidates):
        candidate = found.candidates[name]
        if static and preset_of(recipe, candidate.choice).activations != "static":
            found.keep(name, _ACTIVATIONS_FLOAT)
    units = units_of(graph) if static else []
    keep_whole(found, units, selection)
    working = ahead_of_work(found)
    chosen = place(found, target, seen.shapes, working, units, pointwise) if static else set()
    while mixed := mixed_units(units, found, chosen):
        for unit, members in mixed:
            for name in members & found.candidates.keys():
                found.keep(name, f"{unit.reason}, which stays float")
        working = ahead_of_work(found)
        chosen = place(found, target, seen.shapes, working, units, pointwise)
    context = _Context(found, chosen, working, recipe, target, seen.shapes, selection, static, graph, logs)
    nodes: dict[str, NodePlan] = {}
    for node in found.order:
        for plan in _node_plans(node, context):
            nodes.setdefault(plan.name, plan)
    values = decide_values(graph, found, nodes, recipe, spec, selection, pointwise) if static else {}
    values, in_vain = with_wishes(
        fix(values, known, folded_bounds(found, known)), recipe, spec, named_weights(recipe, graph)
    )
    nodes = {name: as_trained(plan, given) for name, plan in nodes.items()}
    nodes, idle = with_weight_wishes(nodes, recipe, graph)
    nodes = _drop_folds(nodes, values, found)
    notes = (*notes_on(nodes.values(), recipe), *in_vain, *idle)
    ordered = {node.name or "": nodes[node.name or ""] for node in found.order}
    whole = with_conversions(Plan(ordered, values, notes, frozenset(found.guarded)), recipe, graph, seen.sources)
    return with_biases(whole, found, selection) if target.adds_bias else whole


def _at_inference(target: Target) -> tuple[str, ...]:
    """Operators whose weights are integers beside static layers; all but Gather become ONNX Runtime's own."""
    return ("Gather", "LSTM", "Attention") if target.own_operators else ("Gather",)


def _as_wished(plan: Plan, recipe: Recipe, spec: TensorSpec, graph: Graph, sources: Sources) -> Plan:
    """A plan with what the recipe says of values and weights."""
    values, in_vain = with_wishes(plan.values, recipe, spec, named_weights(recipe, graph))
    nodes, idle = with_weight_wishes(plan.nodes, recipe, graph)
    plan = replace(plan, nodes=nodes, values=values, notes=(*plan.notes, *in_vain, *idle))
    return with_conversions(plan, recipe, graph, sources)


def _presets(recipe: Recipe) -> list[Preset]:
    return [PRESETS[name] for name in {recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset)}]


def preset_of(recipe: Recipe, choice: Choice) -> Preset:
    """The preset that holds for a node."""
    return PRESETS[choice.rule.preset or recipe.preset]


def wanted_by(model: Model, plan: Plan, *, means: bool) -> Wanted:
    """What a plan needs.

    Args:
        model: the prepared model.
        plan: its plan.
        means: also what bias correction needs.
    """
    decided = ((node, plan.nodes.get(node.name or "")) for node in walk.all_nodes(model.graph))
    nodes = [node for node, p in decided if p is not None and p.action == INTEGER and not p.trained]
    moments = moments_of(model, plan)
    peaks = tuple(dict.fromkeys((*moments_of(model, plan, "awq"), *split_inputs(model, plan))))
    values = (*plan.calibrated, *probed_values(model, plan))
    return Wanted(values, *(_means(nodes) if means else ((), ())), moments, peaks)


def wanted_by_any(
    model: Model,
    target: Target,
    dtypes: Mapping[str, str],
    sources: Mapping[str, tuple[str, ...]],
    *,
    moments: bool = False,
) -> Wanted:
    """What any plan for the target could need; ``moments`` also what rounding weights by their inputs needs."""
    if target.coverage != MEASURED:
        return Wanted(tuple(values_to_see(model, dtypes)))
    selection = Selection(Recipe(preset="w8a8"), sources, ())
    found = survey(model.graph, target, selection, dtypes, target.symmetric_activations)
    names: dict[str, None] = {}
    for candidate in found.candidates.values():
        for value in _touched(candidate):
            if value.name and not walk.is_constant(value):
                names[value.name] = None
    read = dict(filter(None, map(layer_input, model.graph))) if moments else {}
    means = _means([candidate.node for candidate in found.candidates.values()])
    return Wanted(tuple(names), *means, read, tuple(read))


def _means(nodes: Iterable[Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kinds: dict[str, dict[str, None]] = {"image": {}, "rows": {}}
    for node in nodes:
        kind = mean_kind(node)
        if kind is not None and node.inputs[0] is not None and node.inputs[0].name:
            kinds[kind][node.inputs[0].name] = None
    return tuple(kinds["image"]), tuple(kinds["rows"])


def _touched(candidate: Quantizable) -> list[Value]:
    read = [candidate.node.inputs[i] for i in activation_positions(candidate.node, candidate.row)]
    written = [] if candidate.row.kind is Kind.READING else candidate.outputs
    return [value for value in (*read, *written) if value is not None]


def _writes(candidate: Quantizable, name: str) -> bool:
    return any(value.name == name for value in candidate.outputs)


@dataclass(frozen=True)
class _Context:
    """What the plans of single nodes are made from."""

    found: Survey
    chosen: set[str]
    working: set[int]
    recipe: Recipe
    target: Target
    shapes: Shapes
    selection: Selection
    static: bool
    graph: Graph
    logs: set[str]


def _node_plans(node: Node, context: _Context) -> list[NodePlan]:
    """The plan of a node and, where one is folded in, of its clamp."""
    found, chosen, recipe, target = context.found, context.chosen, context.recipe, context.target
    shapes, selection, static = context.shapes, context.selection, context.static
    name = node.name or ""
    op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if name in found.present:
        return [NodePlan(name, op_type, PRESENT, "quantized already")]
    candidate = found.candidates.get(name)
    if candidate is not None and name in chosen:
        costs = node_costs(node, candidate.row, shapes, target.costs)
        clamp = candidate.clamp
        plans = [
            NodePlan(
                name,
                op_type,
                INTEGER,
                folds=clamp.name if clamp is not None else None,
                weights=_weight_specs(candidate, recipe, target, selection),
                float_us=round(costs[0], 1),
                int_us=round(costs[1], 1),
            )
        ]
        if clamp is not None:
            plans.append(NodePlan(clamp.name or "", clamp.op_type, FOLDED, f"done by the output range of {name!r}"))
        return plans
    folded_into = found.folded.get(name)
    if folded_into is not None:
        if folded_into.node.name in chosen:
            return []
        return [NodePlan(name, op_type, FLOAT, "the layer before it stays float" if static else _ACTIVATIONS_FLOAT)]
    reason = found.kept.get(name)
    costs_of: tuple[float | None, float | None] = (None, None)
    if candidate is not None:
        as_float, as_int = node_costs(node, candidate.row, shapes, target.costs)
        costs_of = (round(as_float, 1), round(as_int, 1))
        reason = why_float(candidate, context.working, shapes, target) if static else _ACTIVATIONS_FLOAT
    choice = selection.of(name, node.op_type)
    by_user = choice.reason is not None or node.meta.get(KEEP_FLOAT) is not None  # or by the runtime
    preset = preset_of(recipe, choice)
    if not by_user and preset.activations in ("dynamic", "token"):
        small_counts = name in context.logs and not choice.insisted
        planned = _BEFORE_LOG if small_counts else plan_dynamic(node, preset, recipe, target, choice)
        if isinstance(planned, NodePlan):
            return [planned]
        reason = planned
    elif not by_user and preset.weights in ("blocks", "codebook"):
        inside = node.graph is not context.graph
        planned = plan_packed(node, preset, recipe, target, choice, walk.opset(context.graph), inside=inside)
        if isinstance(planned, NodePlan):
            return [planned]
        reason = planned
    elif not by_user and node.op_type in _at_inference(target) and preset.activations == "static":
        # A table, or what has an integer kernel in this form alone; what moves activations stays as it is.
        planned = plan_dynamic(node, preset, recipe, target, choice)
        if isinstance(planned, NodePlan):
            return [planned]
    stored = storage_specs(node, recipe, choice) if preset.weights != "float" else {}
    if stored and not by_user:
        why = f"{reason}; its weight is stored as {target.weight.value}" if static else (reason or "")
        outliers = threshold(node, preset, recipe)
        as_float_us, as_int_us = costs_of
        return [
            NodePlan(
                name, op_type, STORAGE, why, weights=stored, float_us=as_float_us, int_us=as_int_us, outliers=outliers
            )
        ]
    if not static and not by_user and preset.weights != "float" and op_type in STORABLE and is_small(node):
        reason = f"its weight has fewer than {MIN_STORED} elements, so that storing it as integers would save nothing"
    elif not static and not by_user and preset.weights != "float" and op_type in STORABLE and scales_outweigh(node):
        reason = "the scales of its weight would take the bytes that storing it as integers saves"
    return [NodePlan(name, op_type, FLOAT, reason or "", float_us=costs_of[0], int_us=costs_of[1])]


def _weight_specs(found: Quantizable, recipe: Recipe, target: Target, selection: Selection) -> dict[int, TensorSpec]:
    node, row = found.node, found.row
    specs: dict[int, TensorSpec] = {}
    if row.weight is not None and is_weight(node, row):
        specs[row.weight] = integer_spec(node, row.weight, recipe, target, found.choice)
    for position in activation_positions(node, row):
        if walk.is_constant(node.inputs[position]):
            specs[position] = activation_spec(recipe, target)
    return specs


def _drop_folds(nodes: dict[str, NodePlan], values: dict[str, Decision], found: Survey) -> dict[str, NodePlan]:
    """Undo folds where the output has no integer form, and note which products go straight to float."""
    result = dict(nodes)
    for name, plan in nodes.items():
        candidate = found.candidates.get(name)
        if plan.action != INTEGER or candidate is None or candidate.row.kind is Kind.READING:
            continue
        if candidate.outputs[0].name in values:
            continue
        result[name] = replace(plan, float_output=True, folds=None)
        if plan.folds is not None:
            result[plan.folds] = replace(result[plan.folds], action=FLOAT, reason="its output is only read as float")
    return result
