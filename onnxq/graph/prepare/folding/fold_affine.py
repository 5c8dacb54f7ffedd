"""BatchNormalization and constant Mul, Div, Add and Sub after a layer become part of its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer, constant_operand, layer_of, set_bias, set_weight

_COPY_LIMIT = 64 * 1024
"""Bytes up to which a weight with other readers is copied for the sake of a Mul or Div."""


@dataclass(frozen=True)
class _Affine:
    """``output = scale · data + shift`` with constants."""

    data: ir.Value
    scale: Array | None
    shift: Array | None
    per_channel: bool = False
    """The constants are vectors over axis 1 (BatchNormalization) instead of broadcasting like numpy's."""


def run(model: ir.Model) -> int:
    """Fold what can be folded, in the main graph and in every body.

    A node is folded when the layer's output is read by it alone, is no output of a graph, and weight and bias are
    constants. The layer keeps its name and its output gets that of the folded node.

    Returns:
        How many nodes were folded.
    """
    names = walk.Names(model)
    folded = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            affine = _affine_of(node) if node.graph is graph else None
            if affine is not None and _fold(node, affine, names):
                folded += 1
    return folded


def _affine_of(node: ir.Node) -> _Affine | None:
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node)
    if node.op_type not in traits.ARITHMETIC:
        return None
    operand = constant_operand(node)
    if operand is None or not walk.is_float(node.inputs[operand[2]]):
        return None
    data, array, index = operand
    constant = array.astype(np.float64)
    match node.op_type, index:
        case "Add", _:
            return _Affine(data, None, constant)
        case "Mul", _:
            return _Affine(data, constant, None)
        case "Sub", 1:
            return _Affine(data, None, -constant)
        case "Sub", 0:
            return _Affine(data, np.float64(-1.0).reshape(()), constant)
        case "Div", 1 if np.all(constant != 0):
            return _Affine(data, 1.0 / constant, None)
    return None


def _batch_normalization(node: ir.Node) -> _Affine | None:
    if walk.attr_int(node, "training_mode") or not walk.attr_int(node, "spatial", 1) or len(node.inputs) < 5:
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]) or node.inputs[0] is None:
        return None
    arrays = [walk.const_array(value) for value in node.inputs[1:5]]
    scale, shift, mean, variance = (None if array is None else array.astype(np.float64) for array in arrays)
    if scale is None or shift is None or mean is None or variance is None:
        return None
    factor = scale / np.sqrt(variance + walk.attr_float(node, "epsilon", 1e-5))
    return _Affine(node.inputs[0], factor, shift - mean * factor, per_channel=True)


def _fold(node: ir.Node, affine: _Affine, names: walk.Names) -> bool:
    layer = layer_of(affine.data)
    if layer is None or layer.node.graph is not node.graph or walk.only_use(affine.data) is not node:
        return False
    bias = layer.bias()
    scale = _vector(layer, affine, affine.scale)
    shift = _vector(layer, affine, affine.shift)
    if bias is None or (scale is None) != (affine.scale is None) or (shift is None) != (affine.shift is None):
        return False
    lone_matmul = layer.node.op_type == "MatMul" and layer.add is None
    if lone_matmul and shift is not None and node.op_type == "Add":
        return False  # it is the bias already
    if scale is not None and layer.weight_is_shared and not _may_copy(node, layer):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        weight = layer.weight if scale is None else layer.scaled_weight(scale)
        bias = bias * (1.0 if scale is None else scale) + (0.0 if shift is None else shift)
        if not (np.isfinite(weight).all() and np.isfinite(bias.astype(weight.dtype)).all()):
            return False
    if scale is not None:
        set_weight(layer, weight, names)
    if lone_matmul and shift is not None:
        _become_add(node, layer, bias, names)
        return True
    if shift is not None or bias.any():
        set_bias(layer, bias, names)
    _replace(node, layer)
    return True


def _vector(layer: AffineLayer, affine: _Affine, array: Array | None) -> Array | None:
    if array is None:
        return None
    if not affine.per_channel:
        return layer.vector(array)
    if array.shape != (layer.channels,) or (layer.node.op_type == "MatMul" and layer.rank != 2):
        return None
    return array


def _may_copy(node: ir.Node, layer: AffineLayer) -> bool:
    return node.op_type == "BatchNormalization" or layer.weight.nbytes <= _COPY_LIMIT


def _become_add(node: ir.Node, layer: AffineLayer, bias: Array, names: walk.Names) -> None:
    """Replace a node after a lone MatMul by the Add of the bias."""
    graph = node.graph
    assert graph is not None
    constants = [value for value in node.inputs if value is not None]
    add = ir.Node("", "Add", [layer.output, None], name=node.name, num_outputs=1)
    output = add.outputs[0]
    output.name = names.value(f"{node.outputs[0].name}_folded")
    graph.insert_before(node, add)
    weight = layer.node.inputs[1]
    assert weight is not None and weight.name is not None
    edit.set_constant(add, 1, bias.astype(layer.weight.dtype), names, f"{weight.name.removesuffix('.weight')}.bias")
    edit.take_over(node.outputs[0], output)
    edit.remove_node(node)
    for value in constants:
        edit.drop_unused_initializer(value)


def _replace(node: ir.Node, layer: AffineLayer) -> None:
    constants = [value for value in node.inputs if value is not None]
    edit.take_over(node.outputs[0], layer.output)
    edit.remove_node(node)
    for value in constants:
        edit.drop_unused_initializer(value)
