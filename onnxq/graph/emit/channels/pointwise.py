"""A Conv over single positions whose result stays float, as one product of matrices with the channels last.

ONNX Runtime has no kernel for convolutions that reads integers and gives floats: between Q and DQ the result is rounded
to 8 bits first. MatMulIntegerToFloat scales its sums to float at once, in the time that QLinearConv and a DQ take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxq.core.spec import PerAxis, QParams, QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit import common
from onnxq.graph.emit.rewrite import NodeRewrite
from onnxq.graph.reading.ops import MICROSOFT


def to_last(rank: int) -> list[int]:
    """The order of axes that puts the channels, axis 1, last."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """The order of axes that brings them back."""
    return [0, rank - 1, *range(1, rank - 1)]


def as_product(
    builder: common.Builder, node: ir.Node, operand: Sequence[ir.Value | None], change: NodeRewrite
) -> ir.Node:
    """Put Transpose, MatMulIntegerToFloat and Transpose in the place of a Conv.

    Args:
        builder: of the model.
        node: the Conv; removed.
        operand: integers, scale and zero point of its input.
        change: its weight and bias.

    Returns:
        The last Transpose, whose output stands for the Conv's.
    """
    integers, graph, output, weight = operand[0], node.graph, node.outputs[0], node.inputs[1]
    assert integers is not None and graph is not None and weight is not None
    matrix = _matrix(change.constants[1])
    rank, name, base = change.constants[1].values.ndim, output.name or "", weight.name or ""
    inputs = [
        _turned(builder, graph, node, integers, rank),
        builder.integers(base, matrix),
        operand[1],
        builder.scale(base, matrix.params),
        operand[2],
        builder.zero_point(base, matrix.params),
    ]
    if change.bias is not None:
        bias, old = change.bias, walk.input_at(node, 2)
        added = (bias.values.astype(np.float64) * bias.params.scale).astype(np.float32)
        inputs.append(builder.constant((old.name if old is not None else None) or f"{node.name}_bias", added))
    product = builder.node(
        "MatMulIntegerToFloat", inputs, builder.names.value(f"{name}_channels_last"), name=node.name,
        domain=MICROSOFT, dtype=ir.DataType.FLOAT, shape=turned_shape(output.shape, to_last(rank)),
    )  # fmt: skip
    back = builder.node(
        "Transpose", [product.outputs[0]], builder.names.value(f"{name}_turned"),
        attributes=[ir.AttrInt64s("perm", to_first(rank))], dtype=ir.DataType.FLOAT, shape=output.shape,
    )  # fmt: skip
    graph.insert_after(node, [product, back])
    edit.take_over(output, back.outputs[0])
    read = list(node.inputs)
    graph.remove(node, safe=True)
    common.drop_inputs(read)
    return back


def turned_shape(shape: ir.Shape | None, order: Sequence[int]) -> ir.Shape | None:
    """A shape with its axes in another order; None where it is not known."""
    return None if shape is None else ir.Shape([shape[i] for i in order])


def _turned(builder: common.Builder, graph: ir.Graph, node: ir.Node, value: ir.Value, rank: int) -> ir.Value:
    order = to_last(rank)
    for user in value.consumers():
        if user.op_type == "Transpose" and user.graph is graph and walk.attr_ints(user, "perm") == tuple(order):
            return user.outputs[0]
    turn = builder.node(
        "Transpose", [value], builder.names.value(f"{value.name}_channels_last"),
        attributes=[ir.AttrInt64s("perm", order)], dtype=value.dtype, shape=turned_shape(value.shape, order),
    )  # fmt: skip
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, [turn])
    else:
        graph.insert_before(node, [turn])
    return turn.outputs[0]


def _matrix(weight: QTensor) -> QTensor:
    """The weight of a Conv over single positions as (in, out)."""
    count, params = weight.values.shape[0], weight.params
    many = params.scale.size > 1
    spec = replace(params.spec, granularity=PerAxis(1)) if many else params.spec
    columns = (1, count) if many else (1, 1)
    turned = QParams(spec, params.scale.reshape(columns), params.zero_point.reshape(columns))
    return QTensor(np.ascontiguousarray(weight.values.reshape(count, -1).T), turned)
