"""Operators that take integers as they are: their input and output are integers with the same parameters."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.spec import QParams
from onnxq.graph import edit, walk
from onnxq.graph.emit import common


def to_integers(
    builder: common.Builder, node: ir.Node, source: ir.Value, params: QParams, integers: dict[int, ir.Value]
) -> None:
    """Let a node that only moves elements move integers, with a DQ behind each output.

    Args:
        builder: of the model.
        node: the node; its outputs keep their names on the DQ side.
        source: integers it reads from now on.
        params: parameters of input and outputs.
        integers: integer form by id of the float value; each output's DQ value is added.
    """
    edit.set_input(node, 0, source)
    if node.op_type == "Pad":
        _pad_with_zero(builder, node, params)
    for output in node.outputs:
        if not output.name:
            continue
        name = output.name
        dq = builder.dequantize(output, params, builder.names.value(f"{name}_float"), name)
        dq.outputs[0].shape = output.shape
        builder.place_after(output, [dq])
        common.replace_uses(output, dq.outputs[0], keep=dq)
        swap_names(output, dq.outputs[0], name, builder.names.value(f"{name}_quantized"))
        output.type = ir.TensorType(common.IR_TYPES[params.spec.dtype])
        integers[id(dq.outputs[0])] = output


def swap_names(output: ir.Value, back: ir.Value, name: str, integer_name: str) -> None:
    """The float side keeps the user's name, the integer side gets a new one."""
    output.name = integer_name
    back.name = name


def _pad_with_zero(builder: common.Builder, node: ir.Node, params: QParams) -> None:
    """Pad with the integer that stands for zero; other numbers the operator table refuses."""
    old = walk.input_at(node, 2)
    if walk.attr_str(node, "mode", "constant") == "constant":
        edit.set_input(node, 2, builder.zero_point(f"{node.name}_padding", params))
    elif old is not None:
        edit.set_input(node, 2, None)
    edit.drop_unused_initializer(old)
