"""One form of a fully connected layer: Gemm with an untransposed weight, alpha = beta = 1 and a vector as bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.prepare.folding.affine_layer import constant_operand, layer_of

_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
"""Element types that every runtime has a Gemm for."""


def run(model: ir.Model) -> int:
    """Normalise every Gemm with a constant weight, and make Gemm of MatMul + Add on matrices.

    Returns:
        How many nodes were changed.
    """
    names = walk.Names(model)
    changed = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            if node.domain != "" or node.graph is not graph:
                continue
            if node.op_type == "Gemm":
                changed += _normalize(node, names)
            elif node.op_type == "Add":
                changed += _merge(node, names)
    return changed


def _normalize(node: ir.Node, names: walk.Names) -> bool:
    weight = walk.const_array(walk.input_at(node, 1))
    old = walk.input_at(node, 1)
    if weight is None or old is None or weight.ndim != 2:
        return False
    alpha, transposed = walk.attr_float(node, "alpha", 1.0), walk.attr_int(node, "transB")
    changed = False
    if alpha != 1.0 or transposed:
        array = np.ascontiguousarray(weight.T) if transposed else weight
        edit.set_constant(
            node, 1, (array * alpha).astype(weight.dtype) if alpha != 1.0 else array, names, f"{old.name}_T"
        )
        _drop(node, "alpha", "transB")
        changed = True
    return _normalize_bias(node, names) or changed


def _normalize_bias(node: ir.Node, names: walk.Names) -> bool:
    given = walk.input_at(node, 2)
    if given is None:
        return False
    bias = walk.const_array(given)
    if bias is None:
        return False
    beta = walk.attr_float(node, "beta", 1.0)
    layer_channels = _channels(node)
    array: Array = (bias * beta).astype(bias.dtype) if beta != 1.0 else bias
    if array.size not in (1, layer_channels) and (array.ndim < 2 or array.shape[0] == 1):
        return False  # it does not fit, which the runtime says when it runs
    if array.ndim < 2 or array.shape[0] == 1:
        array = np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (layer_channels,)))
    if beta == 1.0 and array.shape == bias.shape:
        return False
    edit.set_constant(node, 2, array, names, f"{given.name}_vector")
    _drop(node, "beta")
    return True


def _channels(node: ir.Node) -> int:
    weight = walk.const_array(node.inputs[1])
    assert weight is not None
    return int(weight.shape[1])


def _drop(node: ir.Node, *attributes: str) -> None:
    for name in attributes:
        node.attributes.pop(name, None)


def _merge(add: ir.Node, names: walk.Names) -> bool:
    """Make a Gemm of a MatMul with a constant weight and the Add of its bias, where the input is a matrix."""
    layer = layer_of(add.outputs[0])
    if layer is None or layer.add is not add or layer.rank != 2:
        return False
    weight, data = layer.node.inputs[1], layer.node.inputs[0]
    operand = constant_operand(add)
    if operand is None or weight is None or weight.dtype not in _TYPES or layer.vector(operand[1]) is None:
        return False
    graph, bias = add.graph, add.inputs[operand[2]]
    assert graph is not None
    matmul = layer.node
    gemm = ir.Node("", "Gemm", [data, weight, bias], name=matmul.name, num_outputs=1)
    gemm.metadata_props.update(matmul.metadata_props)
    gemm.outputs[0].name = names.value(f"{add.outputs[0].name}_gemm")
    graph.insert_before(add, gemm)
    gemm.meta.update(matmul.meta)
    edit.take_over(add.outputs[0], gemm.outputs[0])
    edit.remove_node(add)
    edit.remove_node(matmul)
    _normalize_bias(gemm, names)
    return True
