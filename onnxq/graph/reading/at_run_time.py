"""Recognise activations that are quantized at inference, and the arithmetic that belongs to it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk

PRODUCTS = ("MatMulInteger", "ConvInteger")
_RANGE = frozenset("Abs Div Max Min Mul Neg ReduceMax ReduceMin Sub Clip Sqrt".split())
"""Operators that find the scales of rows."""


def is_by_row(value: ir.Value | None) -> bool:
    """Whether integers come from a QuantizeLinear with a scale found for each row at inference."""
    return _row_scale(value) is not None


def _row_scale(value: ir.Value | None) -> ir.Value | None:
    """The scale of each row, where ``value`` is x / scale, rounded."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Split":
        return _row_scale(node.inputs[0])
    if node is None or node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return None
    one, divide = walk.const_array(walk.input_at(node, 1)), node.inputs[0].producer()
    if one is None or one.size != 1 or one.item() != 1 or divide is None or divide.op_type != "Div":
        return None
    scale = divide.inputs[1]
    return None if walk.is_constant(scale) else scale


def arithmetic(graph: ir.Graph) -> set[int]:
    """Ids of the nodes that find scales of activations, apply them, or scale gathered rows of a table."""
    found: set[int] = set()
    scales: set[int] = set()
    for node in walk.all_nodes(graph):
        if node.op_type == "DynamicQuantizeLinear":
            scales.add(id(node.outputs[1]))
        elif node.op_type == "QuantizeLinear" and (scale := _row_scale(node.outputs[0])) is not None:
            divide = node.inputs[0].producer() if node.inputs[0] is not None else None
            assert divide is not None
            scales.add(id(scale))
            found.add(id(divide))
            _mark(scale, divide.inputs[0], found)
    for node in walk.all_nodes(graph):
        if node.op_type == "Mul" and any(id(value) in scales for value in node.inputs):
            found.add(id(node))
        elif node.op_type == "Mul" and (table := _gathered(node)) is not None:
            found.update((id(node), id(table)))
        elif node.op_type in ("Split", "Transpose") and _moves_integers(node):
            found.add(id(node))
    return found


def _mark(value: ir.Value | None, source: ir.Value | None, found: set[int]) -> None:
    node = value.producer() if value is not None else None
    if value is source or node is None or node.op_type not in _RANGE or id(node) in found:
        return
    found.add(id(node))
    for operand in node.inputs:
        _mark(operand, source, found)


def _moves_integers(node: ir.Node) -> bool:
    """Whether a node hands integers on to products: a row's parts, or a table turned."""
    source = node.inputs[0]
    known = is_by_row(source) or (walk.is_constant(source) and source is not None and source.dtype not in walk.FLOATS)
    users = [user for output in node.outputs for user in output.consumers()]
    return known and bool(users) and all(user.op_type in PRODUCTS for user in users)


def _gathered(node: ir.Node) -> ir.Node | None:
    """The Gather of scales, where a Mul scales gathered rows of integers."""
    producers = [value.producer() if value is not None else None for value in node.inputs]
    for one, other in (producers, producers[::-1]) if len(producers) == 2 else ():
        source = one.inputs[0].producer() if one is not None and one.op_type == "Cast" and one.inputs[0] else None
        if source is not None and is_table(source) and other is not None and other.op_type == "Gather":
            return other
    return None


def is_table(node: ir.Node) -> bool:
    """Whether a node gathers rows of a constant table of integers that are scaled behind it."""
    value = node.inputs[0] if node.op_type == "Gather" and node.inputs else None
    if not walk.is_constant(value) or value is None or value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return False
    return any(user.op_type == "Cast" for user in node.outputs[0].consumers())


def scale_behind(node: ir.Node) -> Array | None:
    """The scales of the constant integers that a MatMulInteger, ConvInteger or Gather reads; None if not found."""
    for cast in node.outputs[0].consumers():
        for user in cast.outputs[0].consumers() if cast.op_type == "Cast" else ():
            if user.op_type != "Mul":
                continue
            for value in user.inputs:
                made = value.producer() if value is not None else None
                if made is None or made is cast:
                    if made is None and (array := walk.const_array(value)) is not None:
                        return np.asarray(array)
                    continue
                operands = made.inputs if made.op_type == "Mul" else made.inputs[:1] if made.op_type == "Gather" else ()
                for operand in operands:
                    if (array := walk.const_array(operand)) is not None:
                        return np.asarray(array)
    return None
