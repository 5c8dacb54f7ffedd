"""Which nodes could run on integers at all, and why the others cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.graph import traits, walk
from onnxq.graph.reading.mask_values import mask_number, masked_values
from onnxq.graph.reading.ops import (
    EDGE,
    KEEP_FLOAT,
    STORABLE,
    Kind,
    OpRow,
    activation_positions,
    clamp_bounds,
    is_weight,
    row_of,
    why_left,
)
from onnxq.graph.types import FLOAT32, Graph, Node, Value
from onnxq.graph.views import inner
from onnxq.plan.placement.select import Choice, Selection
from onnxq.recipe.recipe import Rule
from onnxq.targets import Target

PACKED_OPS = traits.PACKED
"""Operators of ONNX Runtime that read packed weights: of GPTQ or AWQ, or of another tool."""
QUANTIZED_OPS = PACKED_OPS | frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)
_STRUCTURAL = traits.STRUCTURAL | {"Identity"}


@dataclass
class Quantizable:
    """A node that can run on integers, with the Relu or Clip that can be folded into it.

    Attributes:
        node: the node.
        row: its row of the operator table.
        choice: what the user said of it.
        clamp: the node behind it whose work its output's range can do.
    """

    node: Node
    row: OpRow
    choice: Choice
    clamp: Node | None = None

    @property
    def outputs(self) -> list[Value]:
        """The values it writes, behind the clamp; one that is left out has no name."""
        node = self.node if self.clamp is None else self.clamp
        return [value for value in node.outputs if value.name]


@dataclass
class Survey:
    """What a first look at the model gives.

    Attributes:
        candidates: by node name, in graph order.
        kept: reason by node name, for float nodes that cannot or may not run on integers.
        present: nodes that hold or touch quantized tensors already.
        order: every node that computes with real numbers, those of subgraphs behind the node that holds them.
        folded: by name of a Relu or Clip, the candidate that it is folded into.
        guarded: those of ``kept`` that stay float for the sake of accuracy.
    """

    candidates: dict[str, Quantizable] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    order: list[Node] = field(default_factory=list)
    folded: dict[str, Quantizable] = field(default_factory=dict)
    guarded: set[str] = field(default_factory=set)

    def guard(self, name: str, reason: str) -> None:
        """`keep`, for the sake of accuracy."""
        self.guarded.add(name)
        self.keep(name, reason)

    def keep(self, name: str, reason: str) -> None:
        """Let a candidate, and the clamp that was to be folded into it, stay float."""
        candidate = self.candidates.pop(name)
        self.kept[name] = reason
        if candidate.clamp is not None:
            clamp = candidate.clamp.name or ""
            del self.folded[clamp]
            self.kept[clamp] = "the layer before it stays float"


def survey(
    graph: Graph,
    target: Target,
    selection: Selection,
    dtypes: Mapping[str, str],
    symmetric: bool,
    trained: Collection[str] | None = None,
) -> Survey:
    """Look at every node, those in subgraphs included.

    Args:
        graph: main graph of the prepared model.
        target: what the runtime can do.
        selection: what the user chose.
        dtypes: element types seen at a run, such as "float32", where inference gave none.
        symmetric: activations have their zero in the middle of the grid.
        trained: nodes whose weights came as integers, which stay so unless they are excluded. Q and DQ nodes that are
            left are those that could not be taken out, and say nothing of the other nodes. None for any other model.
    """
    found = Survey()
    hidden = hidden_bodies(graph)
    for node in walk.all_nodes(graph):
        if node.op_type in QUANTIZED_OPS or _touches_quantized(node):
            found.present.add(node.name or "")
            found.order.append(node)
            continue
        if node.op_type in _STRUCTURAL or EDGE in node.meta or not _is_real(node, dtypes):
            continue
        found.order.append(node)
        choice = selection.of(node.name or "", node.op_type)
        if node.name in (trained or ()) and not choice.excluded:
            choice = replace(choice, reason=None)
        row = row_of(node)
        # A Relu or Clip belongs to the layer before it unless it is excluded by name.
        left_out = choice.reason if choice.excluded or row is None or row.kind is not Kind.CLAMPING else None
        reason = left_out or node.meta.get(KEEP_FLOAT)
        reason = reason or _refusal(node, target, dtypes) or hidden.get(id(node.graph))
        if reason is not None or row is None:
            found.kept[node.name or ""] = reason or "no integer kernel"
        else:
            found.candidates[node.name or ""] = Quantizable(node, row, choice)
    _leave_masks(found, masked_values(graph))
    if trained is None and any(node.name in found.present and not _only_weights(node) for node in found.order):
        _leave_to_its_maker(found)
    fold_clamps(found, symmetric)
    return found


def _leave_masks(found: Survey, masked: Mapping[str, float]) -> None:
    """What adds a mask, moves it or reads it: beside such a number a grid has no levels left for any other."""
    for name, candidate in list(found.candidates.items()):
        values = [candidate.node.inputs[i] for i in activation_positions(candidate.node, candidate.row)]
        values += candidate.node.outputs
        for value in values:
            number = masked.get(value.name or "", mask_number(value)) if value is not None else None
            if number is not None:
                text = "−∞" if np.isneginf(number) else f"{number:.4g}".replace("-", "−")
                found.keep(
                    name, f"it carries an attention mask ({text}), whose range leaves no 8-bit resolution for the rest"
                )
                break


def _leave_to_its_maker(found: Survey) -> None:
    """In a model that is quantized already, as Q and DQ nodes, what has none was left float on purpose."""
    for name, candidate in list(found.candidates.items()):
        if not candidate.choice.insisted:
            found.keep(name, "the model is already quantized (QDQ), but not this node")


def hidden_bodies(graph: Graph) -> dict[int, str]:
    """Why nothing inside a body can be calibrated, by the id of each body of which that is so."""
    version = walk.opset(graph)
    reasons = {key: inner.why_hidden(chain, version) for key, chain in inner.chains(graph).items()}
    return {key: f"nothing in its subgraph can be calibrated: {reason}" for key, reason in reasons.items() if reason}


def _refusal(node: Node, target: Target, dtypes: Mapping[str, str]) -> str | None:
    row = row_of(node)
    if row is None or node.op_type not in target.integer_ops:
        domain = f"{node.domain}." if node.domain else ""
        return f"{target.name} has no integer kernel for {domain}{node.op_type}"
    if row.refuse is not None and (reason := row.refuse(node)):
        return reason
    if node.graph is not None and (version := walk.opset(node.graph)) < row.since:
        return f"it takes integers from operator set {row.since} on, and the model could not be raised from {version}"
    positions = activation_positions(node, row)
    values = [node.inputs[i] for i in positions]
    if row.kind is Kind.WEIGHTED:
        if node.op_type != "MatMul" and not is_weight(node, row):
            return "its weight is not constant"
        weight = walk.const_array(node.inputs[1])
        if weight is not None and (weight.ndim < 2 or weight.size == 0):
            return f"its weight of shape {weight.shape} is no matrix"
        if weight is not None and weight.ndim < 3 and node.op_type in ("Conv", "ConvTranspose"):
            return "it has no spatial axis; the runtime moves the channels of an integer convolution behind those"
        if (left := why_left(node)) is not None:
            return left
    if not positions or all(walk.is_constant(value) for value in values):
        if any(value is not None and not walk.is_constant(value) for value in node.inputs):
            return "the numbers that it would quantize are constant"
        return "all its inputs are constant" if all(map(walk.is_constant, node.inputs)) else "it reads from a constant"
    if row.kind is Kind.REQUANTIZING:
        for array in map(walk.const_array, values):
            if array is not None and array.size == 0:
                return "an input is empty"
            if array is not None and not np.isfinite(array).all():
                return "an input is constant and not finite"
    for value in values:
        dtype = dtype_of(value, dtypes)
        if dtype is None:
            return f"the type of its input {value.name!r} is not known" if value else "an input is missing"
        if dtype != "float32":
            return f"its input is {dtype}; integer kernels take float32 models"
    return None


def dtype_of(value: Value | None, dtypes: Mapping[str, str]) -> str | None:
    """Element type of a value as numpy names it, by inference or as seen at a run."""
    if value is None:
        return None
    if value.dtype is not None:
        return "float32" if value.dtype == FLOAT32 else value.dtype.name.lower()
    return dtypes.get(value.name or "")


def _is_real(node: Node, dtypes: Mapping[str, str]) -> bool:
    # A node counts if it computes with real numbers; shape arithmetic does not.
    types = [dtype_of(value, dtypes) for value in (*node.inputs, *node.outputs) if value is not None]
    return any(t is None or t in ("float32", "float16", "float", "double", "float64", "bfloat16") for t in types)


def _only_weights(node: Node) -> bool:
    """Whether a node that is quantized already reads or unfolds quantized weights, and no quantized activation."""
    if node.op_type in PACKED_OPS:
        return True
    if node.op_type == "DequantizeLinear":
        return walk.is_constant(node.inputs[0])
    producers = [value.producer() for value in node.inputs if value is not None]
    readers = [user.op_type for output in node.outputs for user in output.consumers()]
    return (
        "QuantizeLinear" not in readers
        and all(
            producer is None or producer.op_type != "DequantizeLinear" or walk.is_constant(producer.inputs[0])
            for producer in producers
        )
        and node.op_type not in QUANTIZED_OPS
    )


def _unfolds_constant(value: Value | None) -> bool:
    """Whether the value is what a DequantizeLinear makes of a constant, rearranged or not."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Transpose", "Reshape", "Cast"):
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear" and walk.is_constant(producer.inputs[0])


def _touches_quantized(node: Node) -> bool:
    if any(walk.is_constant(walk.input_at(node, position)) for position in STORABLE.get(node.op_type, ())):
        return False  # whatever stands around it, its weight is float
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            return True
    if any(_unfolds_constant(walk.input_at(node, position)) for position in STORABLE.get(node.op_type, ())):
        return True
    return any(user.op_type == "QuantizeLinear" for output in node.outputs for user in output.consumers())


def fold_clamps(found: Survey, symmetric: bool, *, drop: bool = True) -> None:
    """Let the range of a layer's output do the work of a Relu or Clip behind it.

    Args:
        found: changed in place.
        symmetric: activations have their zero in the middle of the grid, behind which a Relu still has work to do.
        drop: clamps that nothing does the work of stay float; else they are candidates like any other node.
    """
    for candidate in list(found.candidates.values()):
        if candidate.row.kind not in (Kind.WEIGHTED, Kind.REQUANTIZING) or candidate.row.fixed_range:
            continue
        user = walk.only_use(candidate.node.outputs[0])
        clamp = found.candidates.get(user.name or "") if user is not None else None
        if (
            clamp is None
            or clamp.node.graph is not candidate.node.graph
            or clamp.row.kind is not Kind.CLAMPING
            or clamp.node.inputs[0] is not candidate.node.outputs[0]
        ):
            continue
        low, high = clamp_bounds(clamp.node)
        if low > 0 or high < 0 or not (low < high):
            continue
        if symmetric and low != -high:
            continue
        candidate.clamp = clamp.node
        found.folded[clamp.node.name or ""] = candidate
    for name, candidate in list(found.candidates.items()):
        if candidate.row.kind is Kind.CLAMPING and (drop or name in found.folded):
            del found.candidates[name]
            if name not in found.folded:
                alone = "no layer right before it on whose output range it could be folded"
                found.kept[name] = candidate.choice.reason or alone


def joined_rule(candidate: Quantizable, selection: Selection) -> Rule:
    """The rule for the value a candidate writes: the clamp's where one is folded in."""
    if candidate.clamp is None:
        return candidate.choice.rule
    rule = selection.of(candidate.clamp.name or "", candidate.clamp.op_type).rule
    return rule if rule.range is not None else candidate.choice.rule
