"""The rules: what a target's table says, looked for in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxq.graph import traits, walk
from onnxq.graph.emit.wrapped import row_for
from onnxq.graph.reading.ops import activation_positions
from onnxq.graph.traits import Trait, having
from onnxq.graph.types import FLOAT32, Model, Node, Value
from onnxq.targets import INPUTS, SLOW_16, WHOLE, Target
from onnxq.verify.lint.findings import GridNode, LintFinding, dequantizer, pairs_of, readers

_LAYERS = traits.LAYERS
_BIASED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_WIDE = ("int16", "uint16", "int4", "uint4")
_FREE = traits.STRUCTURAL | traits.CONVERSIONS | {"Cast"}
_INTEGER_OPS = frozenset(
    "ConvInteger DynamicQuantizeLSTM DynamicQuantizeLinear DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat "
    "QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool "
    "QLinearLeakyRelu QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere".split()
)
_SATURATES = 64
"""Magnitude of a weight from which two products of 8 bits may leave 16."""


def _found(pair: GridNode, rule: str, why: str, remedy: str, **how: bool) -> LintFinding:
    return LintFinding(rule, pair.node.name or "", pair.node.op_type, why, remedy, **how)


def activation_type(model: Model, target: Target) -> Iterator[LintFinding]:
    """Activations of a type that the target has no kernels for."""
    allowed = [kind.value for kind in target.activations]
    for pair in pairs_of(model):
        if pair.constant or not pair.is_quantize or pair.kind in allowed or not _quantizes(target):
            continue
        hard = target.coverage != "measured"
        why = f"activations are {pair.kind}, and {target.name} takes {' or '.join(allowed)}"
        remedy = "quantize the float model for this target"
        if target.is_here and pair.kind in ("int16", "uint16"):
            why = f"activations are {pair.kind}: {target.name} computes them in float between Q and DQ, {SLOW_16}"
            remedy = "quantize the float model with --preset w8a8"
        yield _found(pair, "activation-type", why, remedy, refuses=hard)


def activation_zero_point(model: Model, target: Target) -> Iterator[LintFinding]:
    """A zero point where the target wants none."""
    if target.symmetric_activations:
        for pair in pairs_of(model):
            if not pair.constant and pair.zero_point is not None and pair.zero_point.any() and pair.kind == "int8":
                zero = pair.zero_point.reshape(-1)[0]
                why = f"its zero point is {zero}, and {target.name} takes symmetric activations with zero point 0"
                yield _found(pair, "activation-zero-point", why, "--fix widens the grid to both sides", fixable=True)


def weight_type(model: Model, target: Target) -> Iterator[LintFinding]:
    """Weights of a type that the target does not read between Q and DQ."""
    allowed = [kind.value for kind in target.weights]
    for pair in _weights(model):
        if pair.kind not in (*allowed, ""):
            why = f"the weight is {pair.kind}, and {target.name} takes {' or '.join(allowed)}"
            fixable = pair.kind == "uint8" and pair.scale is not None and "int8" in allowed
            remedy = "--fix moves it to int8" if fixable else "quantize the float model for this target"
            yield _found(pair, "weight-type", why, remedy, refuses=target.coverage != "measured", fixable=fixable)


def weight_zero_point(model: Model, target: Target) -> Iterator[LintFinding]:
    """Weights that are not symmetric where kernels want them so."""
    for pair in _weights(model):
        several = pair.scale is not None and pair.scale.size > 1
        strict = target.symmetric_activations or several
        if pair.kind == "int8" and strict and pair.zero_point is not None and pair.zero_point.any():
            why = f"the weight has zero points other than 0, which {target.name} does not take"
            if target.coverage == "measured":
                why = "a convolution with a zero point a channel runs on slow kernels"
                if readers(pair.node)[0][0].op_type != "Conv":
                    continue
            yield _found(
                pair, "weight-zero-point", why, "--fix rounds it on a symmetric grid",
                refuses=target.coverage != "measured", fixable=True,
            )  # fmt: skip


def weight_granularity(model: Model, target: Target) -> Iterator[LintFinding]:
    """A scale a channel, or a block, where the target takes one for the whole weight."""
    for pair in _weights(model):
        user = readers(pair.node)[0][0]
        several = pair.scale is not None and pair.scale.size > 1
        if "block_size" in pair.node.attributes and walk.attr_int(pair.node, "block_size"):
            if target.coverage != "measured":
                why = f"the weight has a scale a block, and {target.name} takes one a channel at most"
                yield _found(pair, "weight-granularity", why, "--fix rounds it with one scale", fixable=True)
        elif several and user.op_type not in target.per_channel:
            why = f"the weight of {user.op_type} {user.name!r} has a scale a channel, and {target.name} takes one alone"
            yield _found(pair, "weight-granularity", why, "--fix rounds it with one scale", fixable=True)


def bias(model: Model, target: Target) -> Iterator[LintFinding]:
    """Biases on integers where the target quantizes them itself, in float where it does not, or at a wrong scale."""
    for node in walk.all_nodes(model.graph):
        position = _BIASED.get(node.op_type)
        value = walk.input_at(node, position) if position is not None and node.domain == "" else None
        sides = [dequantizer(walk.input_at(node, i)) for i in (0, 1)]
        if value is None or not _quantizes(target) or None in sides:
            continue
        where = (node.name or "", node.op_type)
        own = dequantizer(value)
        if target.float_bias and own is not None:
            why = f"its bias stands behind a DQ, and {target.name} reads biases in float"
            yield LintFinding("bias", *where, why, "--fix writes it in float", fixable=True)
        elif target.coverage == WHOLE and own is None and walk.is_constant(value):
            why = f"its bias is float, and {target.name} computes on integers alone"
            yield LintFinding("bias", *where, why, "--fix writes it as int32", fixable=True)
        elif own is not None and not target.float_bias:
            scales = [walk.const_array(walk.input_at(side, 1)) for side in (*sides, own) if side is not None]
            if len(scales) == 3 and all(scale is not None for scale in scales) and not _is_product(*scales):
                why = "the scale of its bias is not that of input times weight, so that kernels add it wrongly"
                yield LintFinding("bias", *where, why, "--fix rounds it at that scale", fixable=True)


def _is_product(x: np.ndarray | None, w: np.ndarray | None, b: np.ndarray | None) -> bool:
    assert x is not None and w is not None and b is not None
    wanted = x.reshape(-1).astype(np.float64) * w.reshape(-1) if x.size == 1 and w.ndim <= 1 else None
    if wanted is None or b.size not in (1, wanted.size):
        return wanted is None
    wanted = np.maximum(wanted, np.finfo(np.float32).tiny)  # where a channel is all zeros, the scale is that
    return bool(np.allclose(np.maximum(b.reshape(-1), np.finfo(np.float32).tiny), wanted, rtol=1e-3, atol=0.0))


def placement(model: Model, target: Target) -> Iterator[LintFinding]:
    """Values without Q and DQ where the engine computes on integers alone, or at one input of an Add."""
    for node in model.graph:
        if node.op_type in _FREE or node.domain not in ("", "ai.onnx"):
            continue
        floats = [v for v in node.inputs if v is not None and v.dtype == FLOAT32]
        bare = [v for v in floats if dequantizer(v) is None and not walk.is_constant(v)]
        where = (node.name or "", node.op_type)
        if target.coverage == WHOLE and node.op_type in target.runs and (floats or node.outputs[0].dtype == FLOAT32):
            loose = [v for v in _wrapped(node) if v in floats and dequantizer(v) is None]
            if loose:
                why = f"its input {loose[0].name!r} is float, and {target.name} would leave the node to the CPU"
                yield LintFinding("placement", *where, why, "quantize the float model for this target")
            open_ = [output for output in node.outputs if output.dtype == FLOAT32 and _is_open(output)]
            if open_ and not loose:
                moves = node.op_type in _MOVES
                why = f"its output {open_[0].name!r} has no Q, and {target.name} would leave the node to the CPU"
                remedy = "--fix repeats the grid of its input" if moves else "quantize the float model for this target"
                yield LintFinding("placement", *where, why, remedy, fixable=moves)
        elif target.coverage == INPUTS and node.op_type == "Add" and len(floats) == 2:
            # float8 stands in front of products alone, whose DQ an Add may read as well
            sides = [(dq := dequantizer(v)) is not None and not _is_float8(dq) for v in floats]
            if any(sides) and not all(sides) and bare:
                why = f"one of its inputs is quantized and {bare[0].name!r} is not: {target.name} cannot fuse it"
                yield LintFinding("placement", *where, why, "put Q and DQ at both inputs of an Add", refuses=False)


def _is_float8(dequantizes: Node) -> bool:
    source = dequantizes.inputs[0]
    return source is not None and source.dtype is not None and source.dtype.name.startswith("FLOAT8")


def _wrapped(node: Node) -> list[Value | None]:
    """The inputs that stand behind DQ.

    Those are neither biases nor bounds, sizes and the like, which are read as they are, nor weights of recurrent
    layers, which the engine rounds itself.
    """
    row = row_for(node)
    if row is None:
        return []
    positions = [*activation_positions(node, row), *([row.weight] if row.weight is not None else [])]
    values = [node.inputs[position] for position in positions]
    recurrent = node.op_type in having(Trait.RECURRENT)
    return [value for value in values if not (recurrent and walk.is_constant(value))]


_MOVES = traits.MOVING | {"MaxPool", "Slice"}


def _is_open(value: Value) -> bool:
    """Whether something else than Q reads a value, or the model gives it."""
    return value.is_graph_output() or any(use.node.op_type != "QuantizeLinear" for use in value.uses())


def opset(model: Model, target: Target) -> Iterator[LintFinding]:
    """Operator sets that the target does not read, and pairs that theirs does not know."""
    version = walk.opset(model)
    if not target.min_opset <= version <= target.max_opset:
        why = f"operator set {version}, and {target.name} reads {target.min_opset} to {target.max_opset}"
        yield LintFinding("opset", "model", "", why, "--fix changes it where that is sound", fixable=True)
    for pair in pairs_of(model):
        if pair.kind in _WIDE and version < 21 and pair.node.domain == "":
            why = f"{pair.kind} in the standard's {pair.node.op_type} needs operator set 21; the model has {version}"
            yield _found(pair, "opset", why, "--fix takes com.microsoft's", fixable=True)


def shapes(model: Model, target: Target) -> Iterator[LintFinding]:
    """Open dimensions where the target takes none."""
    for value in model.graph.inputs if target.fixed_shapes else ():
        sizes = walk.dims(value)
        if not walk.is_constant(value) and (sizes is None or None in sizes):
            named = [str(dim.value) for dim in value.shape or () if not isinstance(dim, int) and dim.value]
            fix = " ".join(f"--fix-dim {name}=N" for name in named) or "export it with fixed sizes"
            why = f"input {value.name!r} has open dimensions, and {target.name} takes fixed shapes alone"
            yield LintFinding(
                "shapes", value.name or "", "", why, f"pass {fix} to --fix" if named else fix, fixable=bool(named)
            )


def shared_integers(model: Model, target: Target) -> Iterator[LintFinding]:
    """One constant dequantized with several scales: the QNN provider keeps one and computes wrong numbers."""
    if target.provider != "QNNExecutionProvider":
        return
    seen: dict[int, tuple[bytes, GridNode]] = {}
    for pair in pairs_of(model):
        if not pair.constant or pair.scale is None:
            continue
        key, scale = id(pair.node.inputs[0]), pair.scale.tobytes()
        first = seen.setdefault(key, (scale, pair))
        if first[0] != scale:
            other = first[1].node.name
            why = f"reads the integers of {other!r} with another scale, of which {target.name} keeps one alone"
            yield _found(pair, "shared-integers", why, "--fix gives it a copy", fixable=True)


def own_operators(model: Model, target: Target) -> Iterator[LintFinding]:
    """Operators of ONNX Runtime's own, or integer operators, where the target reads Q and DQ."""
    for node in walk.all_nodes(model.graph):
        integer = node.op_type in _INTEGER_OPS
        pair = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        foreign = node.domain not in ("", "ai.onnx") and not (pair and target.coverage == WHOLE)
        if not target.own_operators and (integer or foreign):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            why = f"{target.name} does not read {name}"
            yield LintFinding("operators", node.name or "", node.op_type, why, "write the model as QDQ: --format qdq")
        elif integer and not target.integer_ops and target.presets:
            why = f"{target.name} has no kernel for it: {target.why_presets}"
            yield LintFinding("operators", node.name or "", node.op_type, why, f"use --preset {target.presets[0]}")


def no_integers(model: Model, target: Target) -> Iterator[LintFinding]:
    """Quantized activations where the target computes in float alone."""
    if target.integer_ops or not target.presets:
        return
    for pair in pairs_of(model):
        if pair.is_quantize and not pair.constant:
            why = f"{target.name} does not compute on integers: {target.why_presets}"
            yield _found(pair, "integers", why, f"use --preset {', '.join(target.presets)}")


def saturation(model: Model, target: Target) -> Iterator[LintFinding]:
    """Weights of 8 bits where products of them saturate."""
    for pair in _weights(model) if target.weight_bits == 7 else ():
        array = walk.const_array(pair.node.inputs[0])
        if array is not None and array.dtype == np.int8 and np.abs(array.astype(np.int16)).max(initial=0) > _SATURATES:
            why = f"the weight uses 8 bits, whose products saturate in 16 on {target.name}"
            yield _found(pair, "saturation", why, "--fix rounds it to 7 bits", refuses=False, fixable=True)


RULES: tuple[Callable[[Model, Target], Iterator[LintFinding]], ...] = (
    shapes, opset, own_operators, no_integers, activation_type, activation_zero_point, weight_type, weight_zero_point,
    weight_granularity, bias, placement, shared_integers, saturation,
)  # fmt: skip


def check(model: Model, target: Target) -> list[LintFinding]:
    """Everything that does not fit, rule by rule.

    Args:
        model: unchanged; its values have types.
        target: whose rules hold.
    """
    return [finding for rule in RULES for finding in rule(model, target)]


def _quantizes(target: Target) -> bool:
    return bool(target.integer_ops) or not target.presets


def _weights(model: Model) -> Iterator[GridNode]:
    """The DQ of the weights of layers that stand between Q and DQ."""
    for pair in pairs_of(model):
        users = readers(pair.node)
        if not pair.constant or pair.is_quantize or not users:
            continue
        user, position = users[0]
        if user.op_type in _LAYERS and position == 1 and dequantizer(walk.input_at(user, 0)) is not None:
            yield pair
