"""Look into a model, float or quantized by any tool: what computes how, and what its weights look like."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import traits, walk
from onnxq.graph.prepare.whole import initializer_inputs, shapes
from onnxq.graph.reading import at_run_time
from onnxq.graph.reading.ops import STORABLE, Kind, OpRow, activation_positions, clamp_bounds, row_of
from onnxq.graph.reading.weight_facts import granularity_of, weight_facts, weight_of
from onnxq.graph.traits import Trait, having

INTEGER, STORED, FLOAT = "integer", "stored", "float"
"""How a node computes: on integers; in float with weights that are stored as integers; in float."""

_ON_INTEGERS = {
    "QGemm": "Gemm", "MatMulIntegerToFloat": "MatMul", "MatMulInteger": "MatMul", "ConvInteger": "Conv",
    "DynamicQuantizeMatMul": "MatMul", "DynamicQuantizeLSTM": "LSTM", "QAttention": "Attention",
}  # fmt: skip
_AT_RUN_TIME = having(Trait.ROUNDS_AT_INFERENCE)
_WEIGHT_ONLY = {"MatMulNBits": "MatMul", "MatMulBnb4": "MatMul", "GatherBlockQuantized": "Gather", "QMoE": "MoE"}
_CONVERSIONS = traits.CONVERSIONS | {"DynamicQuantizeLinear"}
_STRUCTURAL = traits.STRUCTURAL | {"Cast", "CastLike", "ConstantOfShape", "Identity", "NonZero", "Range"}
_SAME_STEP = 0.5
"""A grid does a clamp's work if its ends are within half a step of the bounds."""


@dataclass(frozen=True)
class ModelContents:
    """What is in a model; see `onnxq.report.results.Inspection`."""

    facts: dict[str, Any]
    nodes: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    coverage: dict[str, dict[str, int]]


@dataclass(frozen=True)
class _State:
    op_type: str
    state: str
    how: str = ""
    reason: str = ""


def inspect_model(model: ir.Model, size: int) -> ModelContents:
    """Describe a model.

    Args:
        model: the model as loaded; initializers cease to be inputs, and types are filled in.
        size: bytes of its file.
    """
    entries = len(model.graph.initializers)
    initializer_inputs.remove_initializers(model)
    ranks = shapes.forget(model)
    shapes.infer(model, [], folded=False)
    shapes.recall(model, ranks)
    look = _Look(at_run_time.arithmetic(model.graph))
    nodes, weights, ways = [], [], Counter[str]()
    coverage: dict[str, dict[str, int]] = {}
    seen: set[int] = set()
    for path, node in walk.nodes_with_path(model.graph):
        found = look.state(node)
        if found is None:
            continue
        row = coverage.setdefault(found.op_type, {"quantized": 0, "total": 0})
        row["total"] += 1
        row["quantized"] += found.state != FLOAT
        ways.update(filter(None, [_way(found)]))
        nodes.append(
            {
                "name": "/".join((*path, node.name or "")),
                "op_type": found.op_type,
                "state": found.state,
                "how": found.how,
                "reason": found.reason,
            }
        )
        weight = weight_of(node)
        if weight is not None and id(weight.value) not in seen:
            seen.add(id(weight.value))
            weights.append(weight_facts(weight))
    for entry in nodes if ways else ():
        if entry["state"] == FLOAT and not entry["reason"]:
            entry["reason"] = "no quantized neighbour"
    facts = {
        "quantized": [way for way, _ in ways.most_common()],
        "producer": f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip(),
        "ir_version": model.ir_version,
        "opset": dict(model.opset_imports),
        "size_bytes": size,
        "inputs": [_signature(value) for value in model.graph.inputs],
        "outputs": [_signature(value) for value in model.graph.outputs],
        "initializers": entries,
    }
    return ModelContents(facts, nodes, weights, dict(sorted(coverage.items())))


@dataclass
class _Look:
    """What is known of values, remembered."""

    arithmetic: set[int]
    constant: dict[int, bool] = field(default_factory=dict)
    integer: dict[int, bool] = field(default_factory=dict)

    def state(self, node: ir.Node) -> _State | None:
        """How a node computes; None for conversions, constant arithmetic, shape arithmetic and control flow."""
        op_type = node.op_type
        if op_type in _ON_INTEGERS or op_type.startswith("QLinear"):
            how = op_type + (_at_run_time(node) if op_type in _AT_RUN_TIME else "")
            return _State(_ON_INTEGERS.get(op_type, op_type.removeprefix("QLinear")), INTEGER, how + _weights(node))
        if op_type in _WEIGHT_ONLY:
            return _State(_WEIGHT_ONLY[op_type], STORED, _packed(node))
        standard = node.domain in ("", "ai.onnx")
        if standard and (op_type in _CONVERSIONS or op_type in _STRUCTURAL):
            return None
        if self._all_constant(node) or _is_rescaling(node) or id(node) in self.arithmetic:
            return None
        if at_run_time.is_table(node):
            return _State(op_type, STORED, "int8 table, rows scaled once gathered" + _weights(node))
        row = row_of(node)
        if row is not None and node.inputs and self._holds_integers(node.inputs[0]):
            return _State(op_type, INTEGER, "moves integers")
        if not _is_real(node):
            return None
        return self._float_form(node, row, op_type if standard else f"{node.domain}.{op_type}")

    def _float_form(self, node: ir.Node, row: OpRow | None, shown: str) -> _State:
        """The state of a node that takes floats: on integers if the runtime fuses what stands around it."""
        reason = _no_kernel(node) if row is None else _why_float(node, row)
        if reason is None:
            return _State(shown, INTEGER, "QDQ" + (_rounded_at_load(node) or _weights(node)))
        stored = _stored(node)
        return _State(shown, STORED if stored else FLOAT, stored, reason)

    def _all_constant(self, node: ir.Node) -> bool:
        return bool(node.inputs) and all(self._is_constant(value) for value in node.inputs if value is not None)

    def _is_constant(self, value: ir.Value) -> bool:
        if walk.is_constant(value):
            return True
        producer = value.producer()
        if producer is None or walk.subgraphs(producer):
            return False
        if id(value) not in self.constant:
            self.constant[id(value)] = False  # against cycles
            self.constant[id(value)] = self._all_constant(producer)
        return self.constant[id(value)]

    def _holds_integers(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        producer = value.producer()
        if producer is None or value.dtype is not None:
            return value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        if id(value) not in self.integer:
            self.integer[id(value)] = False
            row = row_of(producer)
            self.integer[id(value)] = (
                producer.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
                or producer.op_type.startswith("QLinear")
                or (producer.op_type == "QGemm" and len(producer.inputs) > 7)
                or (row is not None and row.kind is Kind.PASSING and self._holds_integers(producer.inputs[0]))
            )
        return self.integer[id(value)]


def _way(found: _State) -> str:
    """The form in which a node is quantized; empty where it is float, or follows from its neighbours."""
    if found.state == STORED:
        return "weights only"
    if found.state == FLOAT or found.how == "moves integers":
        return ""
    if found.how.startswith("QDQ"):
        return "QDQ"
    if "at run time" not in found.how:
        return "QOperator"
    return "dynamic per token" if "per token" in found.how else "dynamic"


def _at_run_time(node: ir.Node) -> str:
    per_token = at_run_time.is_by_row(walk.input_at(node, 0))
    return ", activations quantized at run time" + (" per token" if per_token else "")


def _why_float(node: ir.Node, row: OpRow) -> str | None:
    """Why the runtime does not run a node on integers, in words, empty if nothing was tried; None where it does."""
    bias = walk.input_at(node, row.bias) if row.bias is not None else None
    if row.refuse is not None and not _dequantized(bias) and (reason := row.refuse(node)):
        return reason
    sources = [node.inputs[i] for i in activation_positions(node, row)]
    read = [_dequantized(value) and _has_one_scale(value) for value in sources]
    written = [_quantized(output) for output in node.outputs if output.uses() or output.is_graph_output()]
    before, after = bool(read) and all(read), all(written)
    if row.kind is Kind.CLAMPING and not before and _is_folded(node) and _on_integers(sources[0]):
        return None
    if not before:
        if any(read):
            return "only some of its inputs are quantized"
        return "only its output is quantized" if after else ""
    if row.weight is not None and not _has_integer_weight(node, row.weight):
        return "its weight is float"
    gives_float = row.kind is Kind.READING or (node.op_type in ("Gemm", "MatMul") and not _float_bias(node))
    if not after and not gives_float and not _folds_into_range(node):
        return "only its inputs are quantized"
    if row.kind is Kind.PASSING and not _same_parameters(sources[0], node.outputs[0]):
        return "its input and its output have different scales"
    return None


def _on_integers(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    row = row_of(producer) if producer is not None else None
    return producer is not None and row is not None and _why_float(producer, row) is None


def _no_kernel(node: ir.Node) -> str:
    if node.op_type == "BatchNormalization":
        return "no integer kernel; folded into a layer right before it"
    positions = STORABLE.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
    if any(walk.is_constant(walk.input_at(node, position)) for position in positions):
        return "no integer kernel; its weights can be stored as integers"
    return "no integer kernel"


def _is_real(node: ir.Node) -> bool:
    types = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    return any(dtype is None or dtype in walk.FLOATS for dtype in types)


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _has_one_scale(value: ir.Value | None) -> bool:
    """Whether a dequantized activation has one scale, as integer kernels need it."""
    producer = value.producer() if value is not None else None
    scale = walk.const_array(walk.input_at(producer, 1)) if producer is not None else None
    return scale is None or scale.size == 1


def _has_integer_weight(node: ir.Node, position: int) -> bool:
    """Whether a layer's weight is integers, or will be: ONNX Runtime rounds float weights between DQ and Q at load."""
    return _dequantized(node.inputs[position]) or bool(_rounded_at_load(node))


def _rounded_at_load(node: ir.Node) -> str:
    weight = weight_of(node, 1) if node.op_type in ("Conv", "Gemm") else None
    if weight is None or not (weight.dequantized or weight.value is node.inputs[1]):
        return ""
    bias = walk.input_at(node, 2)
    followed = _quantized(node.outputs[0]) or _folds_into_range(node)
    if not followed or (bias is not None and not walk.is_constant(bias)):
        return ""
    return ", float weights that are rounded at load, per tensor"


def _quantized(value: ir.Value) -> bool:
    """Whether only QuantizeLinear nodes read the value."""
    readers = value.consumers()
    return bool(readers) and not value.is_graph_output() and all(r.op_type == "QuantizeLinear" for r in readers)


def _folds_into_range(node: ir.Node) -> bool:
    clamp = walk.only_use(node.outputs[0])
    return clamp is not None and clamp.op_type in ("Relu", "Clip") and _is_folded(clamp)


def _is_folded(clamp: ir.Node) -> bool:
    """Whether the grid that a Relu or Clip is quantized to does its work, so that the runtime takes the node away."""
    quantize = walk.only_use(clamp.outputs[0])
    source = clamp.inputs[0]
    if quantize is None or quantize.op_type != "QuantizeLinear" or source is None or source.producer() is None:
        return False
    scale, zero = (walk.const_array(walk.input_at(quantize, i)) for i in (1, 2))
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return False
    grid = np.iinfo(zero.dtype)
    step, middle = float(scale.reshape(())), int(zero.reshape(()))
    low, high = clamp_bounds(clamp)
    slack = _SAME_STEP * step
    return step * (grid.min - middle) >= low - slack and step * (grid.max - middle) <= high + slack


def _float_bias(node: ir.Node) -> bool:
    """Whether a Gemm has a bias that is not quantized, which keeps it on floats where its output is float."""
    bias = walk.input_at(node, 2) if node.op_type == "Gemm" else None
    return bias is not None and not _dequantized(bias) and not _quantized(node.outputs[0])


def _same_parameters(before: ir.Value | None, after: ir.Value) -> bool:
    dequantize = before.producer() if before is not None else None
    for quantize in after.consumers():
        for position in (1, 2):
            values = [walk.input_at(node, position) for node in (dequantize, quantize) if node is not None]
            if values[0] is values[-1]:
                continue
            arrays = [walk.const_array(value) for value in values]
            if any(a is None for a in arrays) or not np.array_equal(arrays[0], arrays[-1]):  # type: ignore[arg-type]
                return False
    return True


def _is_rescaling(node: ir.Node) -> bool:
    """Whether a Mul brings integer products back to their scale, behind a MatMulInteger or ConvInteger."""
    if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
        return False
    producers = [value.producer() for value in node.inputs if value is not None]
    for producer in producers:
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
        made = source.producer() if source is not None else None
        if made is not None and made.op_type in ("MatMulInteger", "ConvInteger"):
            return True
    scales = [p is not None and p.op_type == "DynamicQuantizeLinear" for p in producers]
    return any(scales) and all(
        scale or walk.is_constant(value) for scale, value in zip(scales, node.inputs, strict=False)
    )


def _stored(node: ir.Node) -> str:
    """How the weights of a node that computes in float are stored as integers; empty where they are not."""
    positions = STORABLE.get(node.op_type, (0,) if node.op_type == "Gather" else ())
    for position in positions:
        value = walk.input_at(node, position)
        weight = weight_of(node, position) if value is not None else None
        if weight is None or weight.value is value or weight.value.dtype is None:
            continue
        kind = f"{weight.value.dtype.name.lower()} weights {granularity_of(weight)}".rstrip()
        if weight.table is not None:
            return f"{kind} (index of {weight.table.shape[-1]} values, looked up at load)"
        return f"{kind} ({'Cast, Mul' if weight.dequantized else 'DequantizeLinear'})"
    return ""


def _packed(node: ir.Node) -> str:
    """How an operator with packed weights stores them and computes."""
    block = f"in blocks of {walk.attr_int(node, 'block_size', 0)}"
    if node.op_type == "MatMulBnb4":
        return f"MatMulBnb4: {'nf4' if walk.attr_int(node, 'quant_type', 1) else 'fp4'} {block}"
    experts = node.op_type == "QMoE"
    block = block if walk.attr_int(node, "block_size", 0) else "with one scale a column"
    how = f"{node.op_type}: {walk.attr_int(node, 'expert_weight_bits' if experts else 'bits', 4)} bits {block}"
    affine = walk.input_at(node, 11 if experts else 3) is not None
    how += ", zero points" if affine else ""
    level = walk.attr_int(node, "accuracy_level", 0)
    return how + (f", accuracy level {level}" if node.op_type in ("MatMulNBits", "QMoE") else "")


def _weights(node: ir.Node) -> str:
    weight = weight_of(node)
    if weight is None or weight.scale is None:
        return ""
    granularity = granularity_of(weight)
    return f", weights {granularity}" if granularity else ""


def _signature(value: ir.Value) -> str:
    shape = "?" if value.shape is None else ", ".join(str(dim) for dim in value.shape)
    return f"{value.name}: {dtype_name(value.dtype)} ({shape})"


def dtype_name(dtype: ir.DataType | None) -> str:
    """A type as numpy names it."""
    if dtype is None:
        return "unknown"
    return {"float": "float32", "double": "float64"}.get(dtype.name.lower(), dtype.name.lower())
