"""Subgraphs of If, Loop and Scan: what ONNX Runtime needs there for integer kernels, and what it stumbles over."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.emit.common import Builder, change_of, place_first, replace_uses
from onnxq.graph.emit.rewrite import Rewrite

MOVED_PAST = frozenset("MaxPool Reshape Slice Squeeze Transpose Unsqueeze".split())
"""Operators past which ONNX Runtime moves a DQ that stands before them, or a Q behind them."""


def dequantize_in_bodies(builder: Builder, rewrite: Rewrite, integers: dict[int, ir.Value]) -> None:
    """Give the integer nodes of a body a DQ of their own behind the integers they read from outside it.

    The runtime joins a DQ and its reader to an integer kernel only where both lie in one graph. The value is quantized
    once all the same: the integers are what the body reads.

    Args:
        builder: of the model.
        rewrite: which nodes run on integers.
        integers: integer form by id of the float value that a DQ gives.
    """
    for node in list(walk.all_nodes(builder.graph)):
        if node.op_type != "DequantizeLinear" or id(node.outputs[0]) not in integers:
            continue
        inside: dict[int, ir.Value] = {}
        for user, index in list(node.outputs[0].uses()):
            if user.graph is node.graph or user.graph is None or change_of(rewrite, user) is None:
                continue
            if id(user.graph) not in inside:
                name = node.outputs[0].name or ""
                copy = builder.node(
                    "DequantizeLinear", list(node.inputs), builder.names.value(f"{name}_DequantizeLinear_Output"),
                    dtype=ir.DataType.FLOAT, shape=node.outputs[0].shape,
                )  # fmt: skip
                place_first(user.graph, [copy])
                inside[id(user.graph)] = copy.outputs[0]
            user.replace_input_with(index, inside[id(user.graph)])


def shield_bodies(builder: Builder) -> None:
    """Put Q and DQ between a float node that a DQ may be moved past and subgraphs of If, Loop or Scan that read it.

    ONNX Runtime (seen in 1.32) looks for the reader among the inputs of the If, where values that a body captures are
    not, and ends the process. What moves numbers of a grid gives numbers of that grid, so this changes none.
    """
    for node in list(walk.all_nodes(builder.graph)):
        graph, output, name = node.graph, node.outputs[0], node.outputs[0].name or ""
        if node.op_type not in MOVED_PAST or graph is None or all(user.graph is graph for user in output.consumers()):
            continue
        source = _dequantizer(node)
        if source is None or source.inputs[0] is None:
            continue
        q = builder.node(
            "QuantizeLinear",
            [output, *source.inputs[1:]],
            builder.names.value(f"{name}_QuantizeLinear_Output"),
            dtype=source.inputs[0].dtype,
            shape=output.shape,
        )
        dq = builder.node(
            "DequantizeLinear",
            [q.outputs[0], *source.inputs[1:]],
            builder.names.value(f"{name}_DequantizeLinear_Output"),
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        graph.insert_after(node, [q, dq])
        replace_uses(output, dq.outputs[0], keep=q)


def _dequantizer(node: ir.Node) -> ir.Node | None:
    """The DQ of one scale whose numbers reach the node through operators that only move them."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None:
        return None
    if source.op_type in MOVED_PAST or source.op_type == "Identity":
        return _dequantizer(source)
    return source if source.op_type == "DequantizeLinear" and walk.rank(source.inputs[1]) == 0 else None
