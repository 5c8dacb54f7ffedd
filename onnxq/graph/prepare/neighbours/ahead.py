"""Single numbers that are multiplied or added right before a layer become part of its weight and bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.prepare.folding.affine_layer import Layer, constant_operand, layer_of, set_bias, set_weight
from onnxq.graph.reading import patterns

_LARGEST = 1e4
"""A factor beyond this, or below its inverse, says that numbers are near the ends of their range: left alone."""


def run(model: ir.Model) -> int:
    """Fold what a layer's only input gets multiplied by, divided by or added to, where it is one number.

    A factor goes into the weight. An addend goes into the bias where the layer pads nothing with zeros; before one that
    does, ``s·x + b`` becomes ``x + b/s`` and the factor goes on into the weight. Equal up to float rounding.

    Returns:
        How many were folded.
    """
    names = walk.Names(model)
    done = 0
    for graph in list(walk.all_graphs(model.graph)):
        # The ½ of a Gelu stays where runtimes look for it.
        whole = {id(part) for match in patterns.find(graph) for part in match.nodes}
        for node in list(graph):
            while node.graph is graph and _fold(node, names, whole):
                done += 1
    return done


def _fold(node: ir.Node, names: walk.Names, whole: set[int]) -> bool:
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    layer = _layer(node)
    data = node.inputs[0]
    step = data.producer() if data is not None else None
    if layer is None or data is None or step is None or id(step) in whole or not _is_alone(step, data, node):
        return False
    number = _number(step)
    if number is None:
        return False
    if step.op_type in ("Mul", "Div"):
        factor = _factor(step, number)
        return factor is not None and _scale(layer, step, factor, names)
    if _pads(node):
        return _scale_behind(layer, step, number, names)
    return _shift(layer, step, number, names)


def _layer(node: ir.Node) -> Layer | None:
    if node.op_type == "MatMul":
        user = walk.only_use(node.outputs[0])
        if user is not None and user.op_type == "Add" and (found := layer_of(user.outputs[0])) is not None:
            return found if found.node is node else None
    layer = layer_of(node.outputs[0])
    return None if layer is None or layer.weight_is_shared or layer.weight.dtype != np.float32 else layer


def _is_alone(step: ir.Node, data: ir.Value, reader: ir.Node) -> bool:
    return step.domain == "" and step.graph is reader.graph and walk.only_use(data) is reader


def _number(step: ir.Node) -> tuple[ir.Value, float, int] | None:
    if step.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    operand = constant_operand(step)
    if operand is None or operand[1].size != 1 or operand[0].dtype != ir.DataType.FLOAT:
        return None
    rank = walk.rank(operand[0])
    if operand[1].ndim and (rank is None or operand[1].ndim > rank):
        return None
    number = float(operand[1].reshape(()))
    return (operand[0], number, operand[2]) if np.isfinite(number) else None


def _factor(step: ir.Node, found: tuple[ir.Value, float, int]) -> float | None:
    _, number, index = found
    if not 1 / _LARGEST <= abs(number) <= _LARGEST or (step.op_type == "Div" and index == 0):
        return None
    return number if step.op_type == "Mul" else 1.0 / number


def _pads(node: ir.Node) -> bool:
    """Whether zeros from outside take part in the products, so that an addend before is not one behind."""
    if node.op_type in ("Gemm", "MatMul"):
        return False
    if node.op_type == "ConvTranspose":
        return True  # at the borders fewer products add up
    return walk.attr_str(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(walk.attr_ints(node, "pads"))


def _scale(layer: Layer, step: ir.Node, factor: float, names: walk.Names) -> bool:
    weight = (layer.weight.astype(np.float64) * factor).astype(np.float32)
    if not np.isfinite(weight).all():
        return False
    set_weight(layer, weight, names)
    _bypass(step)
    return True


def _shift(layer: Layer, step: ir.Node, found: tuple[ir.Value, float, int], names: walk.Names) -> bool:
    _, number, index = found
    if layer.node.op_type == "MatMul" and layer.add is None:
        return False  # it has no bias that could take the number up
    bias = layer.bias()
    if bias is None:
        return False
    sign = -1.0 if step.op_type == "Sub" and index == 0 else 1.0
    offset = -number if step.op_type == "Sub" and index == 1 else number
    weight: Array = layer.weight.astype(np.float64)
    if layer.node.op_type == "Conv":
        sums = weight.reshape(weight.shape[0], -1).sum(axis=1)
    elif walk.outputs_first(layer.node):
        sums = weight.sum(axis=1)
    else:
        sums = weight.sum(axis=0)
    if layer.node.op_type == "Gemm" and walk.attr_int(layer.node, "transA"):
        return False
    if sign < 0:
        set_weight(layer, -layer.weight, names)
    set_bias(layer, bias + offset * sums, names)
    _bypass(step)
    return True


def _scale_behind(layer: Layer, add: ir.Node, found: tuple[ir.Value, float, int], names: walk.Names) -> bool:
    """``Mul(x, s) → Add(b) → layer`` as ``Add(x, b/s) → layer with s·weight``."""
    x, number, index = found
    mul = x.producer()
    if add.op_type != "Add" or mul is None or mul.op_type not in ("Mul", "Div") or not _is_alone(mul, x, add):
        return False
    inner = _number(mul)
    factor = None if inner is None else _factor(mul, inner)
    if factor is None:
        return False
    weight = (layer.weight.astype(np.float64) * factor).astype(np.float32)
    if not np.isfinite(weight).all() or not np.isfinite(np.float32(number / factor)):
        return False
    set_weight(layer, weight, names)
    old = add.inputs[index]
    edit.set_constant(add, index, np.array(number / factor, np.float32), names, f"{old.name if old else ''}_scaled")
    edit.drop_unused_initializer(old)
    _bypass(mul)
    return True


def _bypass(step: ir.Node) -> None:
    """Let the reader of a node with one constant read its other input, and drop the node."""
    operand = constant_operand(step)
    assert operand is not None
    read = list(step.inputs)
    step.outputs[0].replace_all_uses_with(operand[0])
    edit.remove_node(step)
    for value in read:
        edit.drop_unused_initializer(value)
