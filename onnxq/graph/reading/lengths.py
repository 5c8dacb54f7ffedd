"""Lengths of inputs that a graph hints at: of its windows, of what it reshapes to, and multiples of its strides."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx

from onnxq.graph.names import scopes

_MOST = 1 << 17
_STRIDES = 1 << 12
_WINDOWS = frozenset({"Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool"})
_SHAPES = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2), "STFT": (1, 3), "Pad": (1,), "Tile": (1,), "Split": (1,)}
"""Inputs that hold lengths, by operator."""


def lengths_in(model: bytes | Path) -> list[int]:
    """Lengths that a model may need, ascending; none where it cannot be read.

    Args:
        model: contents of a model file, or its path.
    """
    try:
        proto = (
            onnx.load_model_from_string(model)
            if isinstance(model, bytes)
            else onnx.load_model(model, load_external_data=False)
        )
    except Exception:  # damaged in whatever way: whoever runs the model says so
        return []
    graphs = scopes(proto.graph)
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for graph in graphs
        for node in graph.node
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value"
    }
    found: set[int] = set()
    step = 1
    for node in (node for graph in graphs for node in graph.node):
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in _WINDOWS:
            strides = list(attributes["strides"].ints) if "strides" in attributes else []
            step = min(step * max(strides, default=1), _STRIDES)
            found.update(_window(node, attributes, constants))
        for index in _SHAPES.get(node.op_type, ()):
            if len(node.input) > index and node.input[index] in constants:
                found.update(_numbers(constants[node.input[index]]))
    plain = {length for length in found if 1 < length <= _MOST}
    wider = {length * step for length in (*plain, 1, 4, 16)}
    products = {math.prod(pair) for pair in zip(sorted(plain), sorted(plain)[1:], strict=False)}
    return sorted(length for length in plain | wider | products if 1 < length <= _MOST)


def _window(
    node: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto], constants: dict[str, onnx.TensorProto]
) -> list[int]:
    """How far the window of a node reaches along each axis."""
    shape = list(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else []
    if not shape and len(node.input) > 1 and node.input[1] in constants:
        shape = list(constants[node.input[1]].dims)[2:]
    spread = list(attributes["dilations"].ints) if "dilations" in attributes else [1] * len(shape)
    return [(size - 1) * gap + 1 for size, gap in zip(shape, spread, strict=False)]


def _numbers(tensor: onnx.TensorProto) -> list[int]:
    """The elements of a small tensor of integers."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > 64:
        return []
    array = onnx.numpy_helper.to_array(tensor)
    return [abs(int(value)) for value in array.ravel()] if np.issubdtype(array.dtype, np.integer) else []
