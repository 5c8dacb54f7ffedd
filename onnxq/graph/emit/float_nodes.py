"""What the plan leaves float stays float in ONNX Runtime, which puts whatever stands between DQ and Q on integers.

It joins DQ → operator → Q to an integer kernel whether the operator was meant to run on integers or not, and moves DQ
and Q past operators that only move elements. A Max of one input between them, which copies bit for bit, keeps it from
both (seen in 1.32; Sum, Min and Mean of one input do the same and are no faster, Identity, Cast and Clip are removed).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, traits, walk
from onnxq.graph.emit.bodies import MOVED_PAST
from onnxq.graph.emit.common import Builder, use_sum
from onnxq.graph.emit.rewrite import Rewrite
from onnxq.graph.reading.ops import Kind, OpRow, activation_positions, row_of

_NEEDS_NO_Q = frozenset({"MatMul", "Gemm"})
"""Operators whose integer kernels also give floats, so that a DQ at each input is enough."""

_CLAMPS = traits.CLAMPS
"""What the range of a Q behind it does, so that the runtime removes it and sees the operator in front of it."""


def hold_float(builder: Builder, rewrite: Rewrite) -> None:
    """Keep every node float that the rewrite does not put on integers.

    Args:
        builder: of the model, whose Q and DQ nodes are written; those that it brought along stay as they are.
        rewrite: what becomes of each node.
    """
    changed = rewrite.nodes.keys() | rewrite.dynamic.keys() | rewrite.weights.keys()
    for node in list(walk.all_nodes(builder.graph)):
        row = row_of(node)
        if row is not None and row.kind is not Kind.CLAMPING and (node.name or "") not in changed:
            _hold(builder, node, row)
    keep_weights_float(builder)


def _hold(builder: Builder, node: ir.Node, row: OpRow) -> None:
    positions = {*activation_positions(node, row), *([row.weight] if row.weight is not None else [])}
    sources = {i: _dequantizer(builder, walk.input_at(node, i)) for i in sorted(positions)}
    if not sources or None in sources.values():
        return
    output = node.outputs[0]
    if row.kind is Kind.READING:
        _copy_input(builder, node, 0)
    elif row.kind is Kind.PASSING:
        ends = [found for value in node.outputs if value.uses() for found in [_quantized(value)]]
        if (ends and all(end is not None for end in ends)) or node.op_type == "MaxPool":
            _copy_input(builder, node, 0)
            for end in ends if node.op_type in MOVED_PAST else []:
                if end is not None:
                    _copy_output(builder, end)
    elif node.op_type not in _NEEDS_NO_Q and _quantized(output) is None:
        pass
    elif not use_sum(node):
        smallest = min(sources, key=lambda i: _elements(node.inputs[i]))
        if node.op_type not in _NEEDS_NO_Q and _elements(output) < _elements(node.inputs[smallest]):
            _copy_output(builder, output)
        else:
            _copy_input(builder, node, smallest)


def _dequantizer(builder: Builder, value: ir.Value | None) -> ir.Node | None:
    """The DQ whose numbers a value has, moved or not; None where there is none that this rewrite wrote."""
    node = value.producer() if value is not None else None
    while node is not None and node.domain == "" and node.op_type in MOVED_PAST and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and not builder.is_given(node) else None


def _quantized(value: ir.Value) -> ir.Value | None:
    """What the Q reads that a value reaches, moved and clamped or not; None where anything else reads it."""
    while (user := walk.only_use(value)) is not None:
        if user.op_type == "QuantizeLinear":
            return value
        if user.domain != "" or user.op_type not in MOVED_PAST | _CLAMPS or user.inputs[0] is not value:
            return None
        value = user.outputs[0]
    return None


def _elements(value: ir.Value | None) -> int:
    shape = walk.dims(value) if value is not None else None
    return math.prod(1 if length is None else length for length in shape) if shape is not None else 1 << 40


def _copy_input(builder: Builder, node: ir.Node, position: int) -> None:
    value, graph = node.inputs[position], node.graph
    assert value is not None and graph is not None
    copy = _copy(builder, value)
    graph.insert_before(node, [copy])
    edit.set_input(node, position, copy.outputs[0])


def _copy_output(builder: Builder, value: ir.Value) -> None:
    producer = value.producer()
    assert producer is not None and producer.graph is not None
    copy = _copy(builder, value)
    producer.graph.insert_after(producer, [copy])
    for user, index in list(value.uses()):
        if user is not copy:
            user.replace_input_with(index, copy.outputs[0])


def _copy(builder: Builder, value: ir.Value) -> ir.Node:
    name = builder.names.value(f"{value.name}_held")
    return builder.node("Max", [value], name, dtype=ir.DataType.FLOAT, shape=value.shape)


_ROUNDED_AT_LOAD = traits.LAYERS - {"MatMul"}
"""Layers whose float weight ONNX Runtime rounds to 8 bits, one scale for all, where they stand between a DQ and a Q."""


def keep_weights_float(builder: Builder) -> None:
    """Keep the runtime from quantizing the layers that the plan leaves float.

    Its pass WeightBiasQuantization takes only layers behind a DQ of one scale: a DQ of the same scale written once for
    each channel gives the same numbers and is passed over. Operator sets before 13 have no such DQ.
    """
    if walk.opset(builder.graph) < 13:
        return
    for node in list(walk.all_nodes(builder.graph)):
        graph = node.graph
        channels = _input_channels(node) if node.op_type in _ROUNDED_AT_LOAD and node.domain == "" else None
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if (
            channels is None
            or graph is None
            or source is None
            or source.op_type != "DequantizeLinear"
            or source.graph is not graph
        ):
            continue
        scale, zero_point = (walk.const_array(walk.input_at(source, i)) for i in (1, 2))
        if scale is None or zero_point is None or scale.ndim or not _goes_to_integers(node):
            continue
        name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        apart = builder.node(
            "DequantizeLinear",
            [
                source.inputs[0],
                builder.constant(f"{name}_scales", np.full(channels, scale)),
                builder.constant(f"{name}_zero_points", np.full(channels, zero_point)),
            ],
            builder.names.value(f"{name}_DequantizeLinear_Output"),
            attributes=[ir.AttrInt64("axis", 1)],
            dtype=ir.DataType.FLOAT,
            shape=node.inputs[0].shape if node.inputs[0] is not None else None,
        )
        graph.insert_before(node, [apart])
        edit.set_input(node, 0, apart.outputs[0])
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            graph.remove(source, safe=True)


def _input_channels(node: ir.Node) -> int | None:
    """Channels of the input of a layer with a float weight; None where it has none that is constant."""
    weight = walk.input_at(node, 1)
    producer = weight.producer() if weight is not None else None
    if weight is None or (producer is not None and producer.op_type == "DequantizeLinear"):
        return None
    shape = walk.dims(weight)
    if shape is None or len(shape) < 2 or None in shape[:2]:
        return None
    first, second = int(shape[0] or 0), int(shape[1] or 0)
    if node.op_type == "Conv":
        return second * walk.attr_int(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return first
    return None if walk.attr_int(node, "transA") else (second if walk.outputs_first(node) else first)


def _goes_to_integers(node: ir.Node) -> bool:
    """Whether a Q reads the node's output, by way of a Relu or Clip or not."""
    for user in node.outputs[0].consumers():
        if user.op_type == "QuantizeLinear":
            return True
        if user.op_type in ("Relu", "Clip") and any(u.op_type == "QuantizeLinear" for u in user.outputs[0].consumers()):
            return True
    return False
