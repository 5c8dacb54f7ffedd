"""Weights of layers on several positions at a time (`onnxq.graph.prepare.operators.narrow_convs`), stored once.

For each position such a weight holds the same window, one step further on. The file keeps one of them, and six nodes on
constants, which the runtime folds when it loads the model, spread it out: with zeros up to the length of a row and a
step, repeated without a gap and cut into rows, every row begins a step later in its window.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.emit.common import place_first
from onnxq.graph.prepare.operators.position_blocks import BLOCKS, Blocks

_WORTH = 1536
"""Bytes that must be saved: the nodes and their constants take about 1,000."""

_BETWEEN = frozenset({"DequantizeLinear", "Cast", "Mul"})
"""What may stand between the constant and the layer."""

_TYPES = frozenset({"int8", "uint8", "float32"})


def store_once(model: ir.Model) -> int:
    """Let such weights of the main graph be spread out at load, where that makes the file smaller.

    Returns:
        How many were rewritten.
    """
    names = walk.Names(model)
    known: dict[int, bool] = {}
    numbers: dict[tuple[int, ...], ir.Value] = {}
    for node in list(model.graph):
        blocks = node.meta.get(BLOCKS)
        if not isinstance(blocks, Blocks) or node.op_type != "Conv":
            continue
        stored = _constant(node)
        if stored is not None and id(stored) not in known and stored.graph is model.graph:
            known[id(stored)] = _spread(model.graph, stored, blocks, names, numbers)
    return sum(known.values())


def _constant(node: ir.Node) -> ir.Value | None:
    """The initializer that a layer's weight is made of."""
    value = walk.input_at(node, 1)
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type not in _BETWEEN or maker.domain != "":
            return None
        value = maker.inputs[0]
    return value if value is not None and value.is_initializer() and not value.is_graph_input() else None


def _spread(
    graph: ir.Graph,
    stored: ir.Value,
    blocks: Blocks,
    names: walk.Names,
    numbers: dict[tuple[int, ...], ir.Value],
) -> bool:
    array = walk.const_array(stored)
    if array is None or array.shape != blocks.shape or array.dtype.name not in _TYPES or stored.is_graph_output():
        return False
    once = _once(array, blocks)
    if array.nbytes - once.nbytes < _WORTH or not np.array_equal(_whole(once, blocks), array):
        return False
    out, read, across, _ = once.shape
    row, g = blocks.row, blocks.together
    name = stored.name or "weight"
    value = edit.add_initializer(graph, names.value(f"{name}_once"), once)
    pads = [0] * 3 + [blocks.first] + [0] * 3 + [row + blocks.step - blocks.first - once.shape[3]]
    order = (0, 3, 1, 5, 2, 4) if blocks.axis == 3 else (0, 3, 1, 5, 4, 2)
    nodes = []
    for op_type, constants in (
        ("Pad", [pads]),
        ("Tile", [[1, 1, 1, g]]),
        ("Slice", [[0], [g * row], [3]]),
        ("Reshape", [[out, read, across, g, row // blocks.block, blocks.block]]),
        ("Transpose", []),
        ("Reshape", [list(blocks.shape)]),
    ):
        for given in map(tuple, constants):
            if given not in numbers:
                numbers[given] = edit.add_initializer(graph, names.value("spread"), np.array(given, np.int64))
        inputs = [value, *(numbers[tuple(given)] for given in constants)]
        attributes = [] if constants else [ir.AttrInt64s("perm", order)]
        node = ir.Node("", op_type, inputs, attributes, num_outputs=1, name=names.node("spread"))
        value = node.outputs[0]
        value.name, value.type = names.value("spread"), stored.type
        nodes.append(node)
    value.shape = stored.shape
    place_first(graph, nodes)
    stored.replace_all_uses_with(value)
    edit.drop_unused_initializer(stored)
    return True


def _apart(array: Array, blocks: Blocks) -> Array:
    """(out, in, across, position, row of the window) of a weight in blocks."""
    turned = array if blocks.axis == 3 else array.swapaxes(2, 3)
    channels, many, across, width = turned.shape
    g, block = blocks.together, blocks.block
    whole = turned.reshape(channels // g, g, many // block, block, across, width)
    apart = whole.transpose(0, 2, 4, 1, 5, 3)
    return np.asarray(apart.reshape(channels // g, many // block, across, g, width * block))


def _once(array: Array, blocks: Blocks) -> Array:
    return np.ascontiguousarray(_apart(array, blocks)[:, :, :, 0, blocks.first : blocks.first + blocks.length])


def _whole(once: Array, blocks: Blocks) -> Array:
    """What the nodes make of it."""
    out, read, across, length = once.shape
    g, row, block = blocks.together, blocks.row, blocks.block
    rows = np.zeros((out, read, across, g, row), once.dtype)
    for position in range(g):
        start = blocks.first + position * blocks.step
        rows[:, :, :, position, start : start + length] = once
    apart = rows.reshape(out, read, across, g, row // block, block).transpose(0, 3, 1, 5, 2, 4)
    whole = apart.reshape(out * g, read * block, across, row // block)
    return whole if blocks.axis == 3 else np.ascontiguousarray(whole.swapaxes(2, 3))
