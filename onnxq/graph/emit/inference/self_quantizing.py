"""Operators that quantize their input themselves, or read rows of integers: LSTM, Attention, Gather."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.spec import QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit import common
from onnxq.graph.emit.rewrite import DynamicRewrite
from onnxq.graph.reading.ops import MICROSOFT


def lstm(builder: common.Builder, node: ir.Node, change: DynamicRewrite) -> None:
    """DynamicQuantizeLSTM: weights are [directions, inputs, gates], scales [directions] or [directions, gates].

    Args:
        builder: of the model.
        node: the LSTM; its readers read the new node afterwards.
        change: with its weights at 1 and 2, as the LSTM has them.
    """
    inputs = [walk.input_at(node, i) for i in range(8)]
    parameters: list[ir.Value | None] = []
    for position in (1, 2):
        tensor = change.constants[position]
        base = _name(node.inputs[position], node)
        turned = np.ascontiguousarray(tensor.values.transpose(0, 2, 1))
        scale = _by_direction(tensor.params.scale, len(turned))
        inputs[position] = builder.constant(f"{base}_quantized", turned, tensor.params.spec.dtype)
        zero_point = np.zeros(scale.shape, tensor.params.spec.dtype.numpy)
        parameters.append(builder.constant(f"{base}_scale", scale))
        parameters.append(builder.constant(f"{base}_zero_point", zero_point, tensor.params.spec.dtype))
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]
    _replace(builder, node, "DynamicQuantizeLSTM", [*inputs, *parameters], attributes)


def _by_direction(scale: Array, directions: int) -> Array:
    """[directions, gates], or [directions] where one scale serves all."""
    if scale.size == 1:
        return np.full(directions, scale.reshape(()), np.float32)
    return scale.reshape(directions, -1)


def attention(
    builder: common.Builder, node: ir.Node, change: DynamicRewrite, integers: ir.Value, scale: ir.Value, zero: ir.Value
) -> None:
    """QAttention on an input that a DynamicQuantizeLinear has quantized.

    Args:
        builder: of the model.
        node: the Attention.
        change: with its weight at 1.
        integers: the quantized input.
        scale: its scale.
        zero: its zero point.
    """
    tensor, base = change.constants[1], _name(node.inputs[1], node)
    spec = tensor.params.spec
    bias = walk.input_at(node, 2)
    if bias is None:
        bias = builder.constant(f"{base}_bias", np.zeros(tensor.values.shape[1], np.float32))
    inputs = [
        integers,
        builder.integers(base, tensor),
        bias,
        scale,
        builder.scale(base, tensor.params),
        walk.input_at(node, 3),
        zero,
        builder.constant(f"{base}_zero_point", np.zeros((), spec.dtype.numpy), spec.dtype),
        walk.input_at(node, 4),
    ]
    kept = ("num_heads", "unidirectional", "scale", "mask_filter_value")
    _replace(builder, node, "QAttention", inputs, [a for name, a in node.attributes.items() if name in kept])


def gather(builder: common.Builder, node: ir.Node, tensor: QTensor) -> None:
    """Gather integers, along any axis, and their scales, and multiply; the table is never unfolded as a whole.

    Args:
        builder: of the model.
        node: the Gather; the one of integers takes its name.
        tensor: the table, with a scale for each row or slice.
    """
    graph, base, indices = node.graph, _name(node.inputs[0], node), node.inputs[1]
    assert graph is not None
    output = node.outputs[0]
    axis = [ir.AttrInt64("axis", walk.attr_int(node, "axis"))]
    names = builder.names
    name = output.name or node.name
    rows = builder.node(
        "Gather", [builder.integers(base, tensor), indices], names.value(f"{name}_integers"), name=node.name,
        attributes=axis, dtype=common.IR_TYPES[tensor.params.spec.dtype], shape=output.shape,
    )  # fmt: skip
    scale = builder.constant(f"{base}_scale", tensor.params.scale)
    scales = builder.node(
        "Gather", [scale, indices], names.value(f"{name}_scales"), attributes=axis, dtype=ir.DataType.FLOAT
    )
    real = builder.node(
        "Cast", [rows.outputs[0]], names.value(f"{name}_real"),
        attributes=[ir.AttrInt64("to", int(ir.DataType.FLOAT))], dtype=ir.DataType.FLOAT, shape=output.shape,
    )  # fmt: skip
    scaled = builder.node(
        "Mul", [real.outputs[0], scales.outputs[0]], names.value(f"{name}_scaled"), dtype=ir.DataType.FLOAT
    )
    graph.insert_before(node, [rows, scales, real, scaled])
    edit.take_over(output, scaled.outputs[0])


def _replace(
    builder: common.Builder, node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: list[ir.Attr]
) -> None:
    """Put an operator of ONNX Runtime's own in a node's place, under its name and with its outputs."""
    graph = node.graph
    assert graph is not None
    builder.graph.opset_imports.setdefault(MICROSOFT, 1)
    while inputs and inputs[-1] is None:
        inputs.pop()
    new = ir.Node(MICROSOFT, op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, [new])
    for old, output in zip(node.outputs, new.outputs, strict=True):
        if old.name:
            edit.take_over(old, output)
        else:
            output.name = ""


def _name(value: ir.Value | None, node: ir.Node) -> str:
    return (value.name if value is not None else None) or node.name or "weight"
