"""Convolutions over one axis in the form of those over two, whose kernels are faster.

ONNX Runtime computes a Conv over an image on blocks of channels, with the activation behind it, and one over a line by
copying each window first: 60 µs for 217 where each of 192 channels has its own window of 7, and up to a third less
where all channels are read. On integers both take the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk

_RANK = 3

_CHANNELS = 16
"""Channels of the output that a kernel for images computes together: fewer would leave it half empty."""

_DEPTH = 64
"""Products in an output from which on they, rather than the windows, are what takes the time."""

_PRODUCTS, _OWN_PRODUCTS = 1e6, 16e3
"""Multiply-accumulates that are worth two calls, where all channels are read and where each has its own window."""

_UNKNOWN_LENGTH = 128
"""Length of an output whose axis is not known."""


def run(model: ir.Model) -> int:
    """Give such a Conv and its input an axis of one element, and take it out behind it.

    Exact but for the order in which products are added. The weight must be constant. The Conv keeps its name, and the
    name of its output goes to what the Squeeze gives. Those of one graph that read the same value read it through one
    Unsqueeze.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < 13:
        return 0  # Squeeze takes its axes as an input from 13 on
    names = walk.Names(model)
    given: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}
    return sum(_rewrite(node, names, given) for node in walk.nodes_to_rewrite(model, "Conv"))


def _rewrite(node: ir.Node, names: walk.Names, given: dict[tuple[ir.Value, ir.Graph], ir.Value]) -> bool:
    """Rewrite one Conv; ``given`` has the input of earlier ones, in the order of the graph, with the axis put in."""
    source, weight, graph = node.inputs[0], walk.const_array(walk.input_at(node, 1)), node.graph
    if (
        source is None
        or not isinstance(graph, ir.Graph)
        or weight is None
        or weight.ndim != _RANK
        or weight.dtype != np.float32
    ):
        return False
    if walk.rank(source) != _RANK or not _pays(node, weight.shape):
        return False
    if (source, graph) not in given:
        before = _beside("Unsqueeze", source, node, names)
        graph.insert_before(node, before)
        before.outputs[0].shape = _with_axis(source.shape)
        given[source, graph] = before.outputs[0]
    node.replace_input_with(0, given[source, graph])
    edit.set_constant(node, 1, weight[:, :, None], names, f"{node.name}_weight")
    for key, unit in (("kernel_shape", [1]), ("strides", [1]), ("dilations", [1])):
        if key in node.attributes:
            node.attributes[key] = ir.AttrInt64s(key, [*unit, *walk.attr_ints(node, key)])
    if "pads" in node.attributes:
        first, last = walk.attr_ints(node, "pads")
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, first, 0, last])
    output = node.outputs[0]
    after = _beside("Squeeze", output, node, names)
    edit.put_behind(output, after, names, f"{output.name}_plane")
    output.shape = _with_axis(output.shape)
    return True


def _pays(node: ir.Node, weight: Sequence[int]) -> bool:
    """Whether the kernel for images is expected to be faster by more than two calls."""
    out, read, window = weight
    group = walk.attr_int(node, "group", 1)
    given, written = (walk.dims(value) or (None,) * _RANK for value in (node.inputs[0], node.outputs[0]))
    step = walk.attr_ints(node, "strides", (1,))[0]
    length = written[2] or (given[2] // step if given[2] else _UNKNOWN_LENGTH)
    products = out * read * window * length
    if group > 1 and read == 1:
        return out == group and out >= _CHANNELS and products >= _OWN_PRODUCTS
    if group > 1 and (read % _CHANNELS or (out // group) % _CHANNELS):
        return False
    return out // group >= _CHANNELS and read * window >= _DEPTH and products >= _PRODUCTS


def _beside(op_type: str, value: ir.Value, conv: ir.Node, names: walk.Names) -> ir.Node:
    label = op_type.lower()
    assert conv.graph is not None
    return edit.axes_node(
        conv.graph, op_type, value, [2], names, name=f"{conv.name}_{label}", gives=f"{value.name}_{label}"
    )


def _with_axis(shape: ir.Shape | None) -> ir.Shape | None:
    if shape is None:
        return None
    dims: list[Any] = list(shape)
    return ir.Shape([*dims[:2], 1, *dims[2:]])
