"""Layers with only such operators between them as let each channel be scaled: f(s·x) = s·f(x)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer, layer_of
from onnxq.graph.types import Graph, Node

_HOMOGENEOUS = frozenset(
    "Relu LeakyRelu PRelu Identity Dropout MaxPool AveragePool GlobalAveragePool GlobalMaxPool Pad Flatten Reshape "
    "Squeeze ReduceMean ReduceMax".split()
)
_SPATIAL = traits.POOLS | {"Pad"}


@dataclass
class Pair:
    """Two layers, or one and several, with only homogeneous operators between.

    Attributes:
        first: the layer that writes the channels.
        seconds: the layers that read them, all there are.
        between: the nodes between, in order.
        repeat: inputs of the second layers that one channel became on the way (a flattened image).
    """

    first: AffineLayer
    seconds: list[Node]
    between: list[Node] = field(default_factory=list)
    repeat: int = 1


def find_pairs(graph: Graph) -> list[Pair]:
    """All pairs of layers of a graph between which channels can be scaled, in graph order."""
    found = []
    for node in graph:
        layer = writer(node)
        if layer is None:
            continue
        pair = _follow(layer)
        if pair is not None:
            found.append(pair)
    return found


def writer(node: Node) -> AffineLayer | None:
    """The layer a node is, if its weight and bias can be scaled by output channel."""
    layer = layer_of(node.outputs[0]) if node.op_type in traits.LAYERS else None
    if layer is None:
        return None
    add = walk.only_use(node.outputs[0])
    if node.op_type == "MatMul" and add is not None and add.op_type == "Add":
        layer = layer_of(add.outputs[0]) or layer
    if layer.weight_is_shared or layer.bias() is None or layer.weight.dtype != np.float32:
        return None
    operand = walk.input_at(layer.node, 2) if layer.add is None else None
    if operand is not None and walk.only_use(operand) is None:
        return layer if walk.is_constant(operand) else None  # a bias that others read too is copied when it is set
    return layer


def _follow(first: AffineLayer) -> Pair | None:
    value, between, repeat = first.output, [], 1
    channel_last = first.node.op_type in ("MatMul", "Gemm")
    while True:
        if value.is_graph_output() or not value.uses():
            return None
        readers = [use.node for use in value.uses()]
        if all(use.idx == 0 and reads_channels(use.node) for use in value.uses()):
            seconds = list(dict.fromkeys(readers))
            break
        if len(readers) != 1 or readers[0].op_type not in _HOMOGENEOUS or readers[0].domain != "":
            return None
        node = readers[0]
        if node.inputs[0] is not value or node.graph is not first.node.graph:
            return None
        grown = _through(node, first, channel_last)
        if grown is None:
            return None
        channel_last = grown[0]
        repeat *= grown[1]
        between.append(node)
        value = node.outputs[0]
    if any(node.graph is not first.node.graph for node in seconds):
        return None
    for node in seconds:
        inputs = input_channels(node)
        if inputs is None or inputs % first.channels or (repeat == 1 and inputs != first.channels):
            return None
        if (node.op_type in ("Gemm", "MatMul")) != channel_last:
            return None
        repeat_here = inputs // first.channels
        if repeat not in (1, -1, repeat_here):
            return None
        repeat = repeat_here
    return Pair(first, seconds, between, repeat)


def _through(node: Node, first: AffineLayer, channel_last: bool) -> tuple[bool, int] | None:
    """(channels lie last, factor of `Pair.repeat`; negative where not known yet) behind a node; None where it mixes."""
    match node.op_type:
        case "PRelu":
            slope = walk.const_array(walk.input_at(node, 1))
            return (channel_last, 1) if slope is not None and _per_channel(slope, first, channel_last) else None
        case name if name in _SPATIAL and channel_last:
            return None
        case "Pad":
            value = walk.const_array(walk.input_at(node, 2))
            plain = walk.attr_str(node, "mode", "constant") != "constant" or walk.input_at(node, 2) is None
            zero = plain or (value is not None and not value.any())
            pads = walk.const_array(walk.input_at(node, 1))
            if not zero or pads is None or walk.input_at(node, 3) is not None:
                return None
            half = pads.size // 2
            return (channel_last, 1) if not pads[:2].any() and not pads[half : half + 2].any() else None
        case "MaxPool" if any(output.uses() for output in node.outputs[1:]):
            return None
        case "ReduceMean" | "ReduceMax":
            return _reduced(node, channel_last)
        case "Flatten":
            return (True, -1) if walk.attr_int(node, "axis", 1) == 1 and not channel_last else None
        case "Reshape" | "Squeeze":
            shape = walk.dims(node.outputs[0])
            before = walk.dims(node.inputs[0])
            if channel_last or shape is None or before is None or len(shape) != 2 or len(before) < 3:
                return None
            known = [length for length in before[1:] if length is not None]
            if shape[1] is None or len(known) != len(before) - 1 or shape[1] != int(np.prod(known)):
                return None
            return True, -1
    return channel_last, 1


def _reduced(node: Node, channel_last: bool) -> tuple[bool, int] | None:
    rank = walk.rank(node.inputs[0])
    axes = walk.const_array(walk.input_at(node, 1))
    if axes is None:
        axes = np.array(walk.attr_ints(node, "axes", ()))
    if rank is None or channel_last or axes.size == 0:
        return None
    if sorted(int(axis) % rank for axis in axes.reshape(-1)) != list(range(2, rank)):
        return None
    return (False, 1) if walk.attr_int(node, "keepdims", 1) else (True, 1)


def _per_channel(slope: Array, first: AffineLayer, channel_last: bool) -> bool:
    if slope.size == 1:
        return True
    axis = -1 if channel_last else -(first.weight.ndim - 1)
    shape = (1,) * (first.weight.ndim - slope.ndim) + slope.shape
    return slope.size == first.channels == shape[axis]


def reads_channels(node: Node) -> bool:
    """Whether a node's weight can be scaled by input channel."""
    if node.op_type not in traits.LAYERS or node.domain != "":
        return False
    if len(node.inputs) < 2 or (node.op_type == "Gemm" and walk.attr_int(node, "transA", 0)):
        return False
    weight = walk.const_array(node.inputs[1])
    value = node.inputs[1]
    if weight is None or value is None or walk.only_use(value) is None or weight.dtype != np.float32:
        return False
    return weight.ndim == 2 if node.op_type in ("Gemm", "MatMul") else weight.ndim >= 3


def input_channels(node: Node) -> int | None:
    """How many channels the weight of a layer reads."""
    weight = walk.const_array(node.inputs[1])
    if weight is None:
        return None
    match node.op_type:
        case "Conv":
            return int(weight.shape[1]) * walk.attr_int(node, "group", 1)
        case "ConvTranspose":
            return int(weight.shape[0])
        case "Gemm":
            return int(weight.shape[1 if walk.outputs_first(node) else 0])
    return int(weight.shape[0])


__all__ = ["Pair", "find_pairs", "input_channels", "reads_channels", "writer"]
