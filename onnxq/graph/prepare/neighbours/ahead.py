"""Arithmetic with constants right before a layer becomes part of its weight and bias.

That is single numbers, and one number a channel before a Conv, as where an image is normalized inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer, constant_operand, layer_of, set_bias, set_weight
from onnxq.graph.reading import patterns

_LARGEST = 1e4
"""A factor beyond this, or below its inverse, says that numbers are near the ends of their range: left alone."""

_SPREAD = 16.0
"""Times that the largest factor of a channel exceeds the smallest: the weights of an output share their integers."""


def run(model: ir.Model) -> int:
    """Fold what a layer's only input gets multiplied by, divided by or added to, also in front of a Transpose.

    A factor goes into the weight. An addend goes into the bias where the layer pads nothing with zeros; before one that
    does, ``s·x + b`` becomes ``x + b/s`` and the factor goes on into the weight. The addend then stays: to pad with
    ``−b/s`` instead takes a Pad, which copies the image in three times what adding takes. Equal up to float rounding.

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


@dataclass(frozen=True)
class _Operand:
    """What a node combines its input with.

    Attributes:
        data: the input.
        numbers: float64, a scalar, or (channels,).
        index: position of the constant.
        axis: of the input, along which the channels lie.
    """

    data: ir.Value
    numbers: Array
    index: int
    axis: int | None


def _fold(node: ir.Node, names: walk.Names, whole: set[int]) -> bool:
    if node.domain != "" or node.op_type not in traits.LAYERS:
        return False
    layer, data = _layer(node), node.inputs[0]
    if layer is None or data is None:
        return False
    axis: int | None = 1 if node.op_type in ("Conv", "ConvTranspose") else None
    step, reader = data.producer(), node
    while step is not None and step.op_type == "Transpose" and _is_alone(step, data, reader):
        order = walk.attr_ints(step, "perm")
        axis = order[axis] if axis is not None and axis < len(order) else None
        assert step.inputs[0] is not None
        data, reader, step = step.inputs[0], step, step.inputs[0].producer()
    if step is None or id(step) in whole or not _is_alone(step, data, reader):
        return False
    found = _operand(step, axis, _channels(layer))
    if found is None:
        return False
    if step.op_type in ("Mul", "Div"):
        factor = _factor(step, found)
        return factor is not None and _scale(layer, step, factor, names)
    if _pads(node):
        return _scale_behind(layer, step, found, names)
    return _shift(layer, step, found, names)


def _layer(node: ir.Node) -> AffineLayer | None:
    if node.op_type == "MatMul":
        user = walk.only_use(node.outputs[0])
        if user is not None and user.op_type == "Add" and (found := layer_of(user.outputs[0])) is not None:
            return found if found.node is node else None
    layer = layer_of(node.outputs[0])
    return None if layer is None or layer.weight_is_shared or layer.weight.dtype != np.float32 else layer


def _channels(layer: AffineLayer) -> int:
    """Input channels of a Conv or ConvTranspose."""
    if layer.node.op_type == "ConvTranspose":
        return int(layer.weight.shape[0])
    return int(layer.weight.shape[1]) * walk.attr_int(layer.node, "group", 1)


def _is_alone(step: ir.Node, data: ir.Value, reader: ir.Node) -> bool:
    return step.domain == "" and step.graph is reader.graph and walk.only_use(data) is reader


def _operand(step: ir.Node, axis: int | None, channels: int) -> _Operand | None:
    """What is combined, where it is one number, or one a channel along a known axis of that many."""
    if step.op_type not in traits.ARITHMETIC:
        return None
    operand = constant_operand(step)
    if operand is None or operand[0].dtype != ir.DataType.FLOAT or not np.isfinite(operand[1]).all():
        return None
    data, array, index = operand
    dims = walk.dims(data)
    if array.ndim and (dims is None or array.ndim > len(dims)):
        return None
    if array.size == 1:
        return _Operand(data, array.astype(np.float64).reshape(()), index, axis)
    if axis is None or dims is None or axis >= len(dims) or dims[axis] != channels or array.size != channels:
        return None
    if axis < len(dims) - array.ndim or array.shape[axis - len(dims)] != channels:
        return None
    return _Operand(data, array.astype(np.float64).reshape(-1), index, axis)


def _factor(step: ir.Node, found: _Operand) -> Array | None:
    sizes = np.abs(found.numbers)
    if (step.op_type == "Div" and found.index == 0) or sizes.min() < 1 / _LARGEST or sizes.max() > _LARGEST:
        return None
    if sizes.max() > _SPREAD * sizes.min():
        return None
    return found.numbers if step.op_type == "Mul" else np.asarray(1.0 / found.numbers)


def _pads(node: ir.Node) -> bool:
    """Whether zeros from outside take part in the products, so that an addend before is not one behind."""
    if node.op_type in ("Gemm", "MatMul"):
        return False
    if node.op_type == "ConvTranspose":
        return True  # at the borders fewer products add up
    return walk.attr_str(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(walk.attr_ints(node, "pads"))


def _scaled(layer: AffineLayer, factor: Array) -> Array | None:
    """The weight for an input ``factor`` times as large; None where it would not be finite."""
    weight: Array = layer.weight.astype(np.float64)
    if factor.ndim and layer.node.op_type == "ConvTranspose":
        factor = factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    elif factor.ndim:
        groups = walk.attr_int(layer.node, "group", 1)
        weight = weight.reshape(groups, -1, *weight.shape[1:])
        factor = factor.reshape((groups, 1, -1) + (1,) * (weight.ndim - 3))
    scaled = (weight * factor).astype(np.float32).reshape(layer.weight.shape)
    return scaled if np.isfinite(scaled).all() else None


def _scale(layer: AffineLayer, step: ir.Node, factor: Array, names: walk.Names) -> bool:
    weight = _scaled(layer, factor)
    if weight is None:
        return False
    set_weight(layer, weight, names)
    _bypass(step)
    return True


def _shift(layer: AffineLayer, step: ir.Node, found: _Operand, names: walk.Names) -> bool:
    if layer.node.op_type == "MatMul" and layer.add is None:
        return False  # it has no bias that could take the number up
    bias = layer.bias()
    if bias is None or (layer.node.op_type == "Gemm" and walk.attr_int(layer.node, "transA")):
        return False
    sign = -1.0 if step.op_type == "Sub" and found.index == 0 else 1.0
    offset = -found.numbers if step.op_type == "Sub" and found.index == 1 else found.numbers
    weight: Array = layer.weight.astype(np.float64)
    if layer.node.op_type == "Conv":
        groups = walk.attr_int(layer.node, "group", 1)
        windows = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum(axis=-1)
        by_channel = np.broadcast_to(offset, (_channels(layer),)).reshape(groups, -1)
        added = np.einsum("goi,gi->go", windows, by_channel).reshape(-1)
    else:
        added = offset * weight.sum(axis=1 if walk.outputs_first(layer.node) else 0)
    if sign < 0:
        set_weight(layer, -layer.weight, names)
    set_bias(layer, bias + added, names)
    _bypass(step)
    return True


def _scale_behind(layer: AffineLayer, step: ir.Node, found: _Operand, names: walk.Names) -> bool:
    """``Mul(x, s) → Add(b) → layer`` as ``Add(x, b/s) → layer with s·weight``, and Sub likewise."""
    mul = found.data.producer()
    if mul is None or mul.op_type not in ("Mul", "Div") or not _is_alone(mul, found.data, step):
        return False
    inner = _operand(mul, found.axis, _channels(layer))
    factor = None if inner is None else _factor(mul, inner)
    weight = None if factor is None else _scaled(layer, factor)
    old = step.inputs[found.index]
    if inner is None or factor is None or weight is None or old is None or found.axis is None:
        return False
    addend = found.numbers / factor
    if not np.isfinite(addend.astype(np.float32)).all():
        return False
    set_weight(layer, weight, names)
    rank = walk.rank(inner.data)
    if addend.ndim:
        assert rank is not None
        addend = addend.reshape([-1 if axis == found.axis else 1 for axis in range(rank)])
    edit.set_constant(step, found.index, addend.astype(np.float32), names, f"{old.name}_scaled")
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
