"""A layer whose constant weight and bias can take up what follows it, seen the same for Conv, Gemm and MatMul."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk

WEIGHTED = traits.LAYERS


@dataclass(frozen=True)
class AffineLayer:
    """A node with a constant weight at input 1, and where its output has the channels.

    Attributes:
        node: Conv, ConvTranspose, Gemm (alpha = beta = 1) or MatMul.
        weight: its weight.
        channels: number of output channels.
        rank: rank of the output; None where it is not known (MatMul).
        add: for a MatMul, the Add of a constant that makes up its bias.
    """

    node: ir.Node
    weight: Array
    channels: int
    rank: int | None
    add: ir.Node | None = None

    @property
    def output(self) -> ir.Value:
        """What the layer gives."""
        return (self.add or self.node).outputs[0]

    def vector(self, array: Array) -> Array | None:
        """A constant that is combined with the output, as one number a channel.

        Args:
            array: of any shape that broadcasts against the output.

        Returns:
            float64, (channels,); None where the constant is not the same along every other axis, or would widen
            the output.
        """
        channel_last = self.node.op_type == "MatMul"
        rank = self.rank if self.rank is not None else 1
        if array.ndim > rank:
            return None
        shape = (1,) * (rank - array.ndim) + array.shape
        axis = rank - 1 if channel_last else 1
        if any(dim != 1 for i, dim in enumerate(shape) if i != axis) or shape[axis] not in (1, self.channels):
            return None
        return np.broadcast_to(array.reshape(-1).astype(np.float64), (self.channels,))

    def scaled_weight(self, scale: Array) -> Array:
        """The weight for an output ``scale`` times as large.

        Args:
            scale: float64, (channels,).
        """
        weight = self.weight
        if self.node.op_type == "ConvTranspose":
            group = walk.attr_int(self.node, "group", 1)
            factor = scale.reshape((group, 1, weight.shape[1]) + (1,) * (weight.ndim - 2))
            grouped = weight.reshape((group, weight.shape[0] // group, *weight.shape[1:]))
            return (grouped * factor).reshape(weight.shape).astype(weight.dtype)
        if self.node.op_type == "Conv":
            return (weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))).astype(weight.dtype)
        if walk.outputs_first(self.node):
            return (weight * scale[:, None]).astype(weight.dtype)
        return (weight * scale).astype(weight.dtype)

    def bias(self) -> Array | None:
        """The bias: float64, (channels,), zeros where there is none; None where it is not one constant a channel."""
        if self.node.op_type == "MatMul":
            return np.zeros(self.channels) if self.add is None else self._added()
        given = walk.input_at(self.node, 2)
        if given is None:
            return np.zeros(self.channels)
        array = walk.const_array(given)
        if array is None:
            return None
        if self.node.op_type == "Gemm":
            return self.vector(array)
        return array.astype(np.float64) if array.shape == (self.channels,) else None

    def _added(self) -> Array | None:
        assert self.add is not None
        constant = constant_operand(self.add)
        return None if constant is None else self.vector(constant[1])

    @property
    def weight_is_shared(self) -> bool:
        """Whether something else reads the weight too."""
        value = self.node.inputs[1]
        return value is not None and walk.only_use(value) is None


def layer_of(value: ir.Value) -> AffineLayer | None:
    """The layer that gives this value, if it is one whose weight is constant."""
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Add":
        operand = constant_operand(node)
        inner = None if operand is None else operand[0].producer()
        if operand is None or inner is None or inner.op_type != "MatMul" or inner.graph is not node.graph:
            return None
        if walk.only_use(operand[0]) is not node:
            return None
        layer = _layer(inner)
        return None if layer is None else AffineLayer(inner, layer.weight, layer.channels, layer.rank, add=node)
    return _layer(node)


def _layer(node: ir.Node) -> AffineLayer | None:
    if node.domain != "" or node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return None
    weight = walk.const_array(node.inputs[1])
    if weight is None or node.inputs[1] is None or not walk.is_float(node.inputs[1]):
        return None
    match node.op_type:
        case "Conv":
            return AffineLayer(node, weight, weight.shape[0], weight.ndim) if weight.ndim >= 3 else None
        case "ConvTranspose":
            channels = weight.shape[1] * walk.attr_int(node, "group", 1)
            return AffineLayer(node, weight, channels, weight.ndim) if weight.ndim >= 3 else None
        case "Gemm":
            if walk.attr_float(node, "alpha", 1.0) != 1 or walk.attr_float(node, "beta", 1.0) != 1 or weight.ndim != 2:
                return None
            return AffineLayer(node, weight, weight.shape[0 if walk.outputs_first(node) else 1], 2)
    if weight.ndim != 2:
        return None
    return AffineLayer(node, weight, weight.shape[1], walk.rank(node.inputs[0]))


def constant_operand(node: ir.Node) -> tuple[ir.Value, Array, int] | None:
    """Of a node with two inputs, one of them constant: the other one, the constant, and the constant's position."""
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        array = walk.const_array(node.inputs[index])
        other = node.inputs[1 - index]
        if array is not None and other is not None and not walk.is_constant(other):
            return other, array, index
    return None


def set_weight(layer: AffineLayer, array: Array, names: walk.Names) -> None:
    """Give the layer another weight; other readers of the old one keep it."""
    old = layer.node.inputs[1]
    assert old is not None
    edit.set_constant(layer.node, 1, array, names, f"{old.name}_{layer.node.name}")


def set_bias(layer: AffineLayer, array: Array, names: walk.Names) -> None:
    """Give the layer another bias, of the weight's element type; a MatMul must have its Add already."""
    weight = layer.node.inputs[1]
    assert weight is not None and weight.name is not None
    stem = weight.name.removesuffix(".weight")
    bias = array.astype(layer.weight.dtype)
    if layer.add is not None:
        operand = constant_operand(layer.add)
        assert operand is not None
        edit.set_constant(layer.add, operand[2], bias, names, f"{stem}.bias")
    else:
        edit.set_constant(layer.node, 2, bias, names, f"{stem}.bias")
