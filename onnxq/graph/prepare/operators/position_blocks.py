"""What a Conv on several positions at a time would be, and whether that is estimated to pay (see `narrow_convs`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk

BLOCKS = "onnxq.blocks"
"""Key of a node's metadata for how its weight was made; see `onnxq.graph.emit.blocks`."""

_LEAST_SAVED, _LEAST_SHARE = 5e6, 0.02
"""Multiply-accumulates that must be saved, and the share of those of the model."""

_MOST_SHARE = 0.1
"""What is enough for a file however small."""

_OVERHEAD, _WEIGH = 2000, 8.0
"""Bytes of the nodes that move elements, and how many times their share of the file must be saved of the work."""

_TOGETHER = (2, 4, 8, 16)
"""Positions that are tried."""

WIDE, _SMALL = 16, 8
"""Channels that a kernel computes together, with and without AVX-512."""

_WORTH, _NO_LOSS = 0.7, 1.15
"""Share of the work that may be left where `WIDE` channels go together, and where `_SMALL` do."""

_MOVE = 12.0
"""Multiply-accumulates in the time that an element takes to be moved to another place."""

_UNKNOWN_LENGTH = 64
"""Length of an axis that is not known."""

_MOST_GROWTH = 1 << 16
"""Elements that a weight may gain."""

_ELEMENT = 500.0
"""Multiply-accumulates that have to be saved for each element that a weight gains."""

RANK = 4


@dataclass(frozen=True)
class Blocks:
    """How the weight of a layer on several positions at a time was made.

    Attributes:
        axis: of the image and of the weight, 2 or 3.
        shape: of the weight.
        together, block: positions that are channels of the output, and of the input.
        step: how much further in its window each position begins.
        first, length: where the first one begins, and how long the layer's own window is.
    """

    axis: int
    shape: tuple[int, ...]
    together: int
    block: int
    step: int
    first: int
    length: int

    @property
    def row(self) -> int:
        """Positions in a window of whole blocks."""
        return self.shape[self.axis] * self.block


@dataclass(frozen=True)
class ImageConv:
    """A Conv on images, as this pass sees it; all but the last three are along one of the two axes of the image.

    Attributes:
        axis: this axis, 2 or 3.
        weight: (out, in, across, along): the window along this axis last.
        stride, dilation, before, length, written: step, padding in front, positions of the input and of the output.
        rows, lines: positions of the output and of the input along the other axis.
    """

    axis: int
    weight: Array
    stride: int
    dilation: int
    before: int
    length: int
    written: int
    rows: int
    lines: int


@dataclass(frozen=True)
class Folded:
    """A Conv on several positions at a time.

    Attributes:
        together: positions that become channels of the output.
        block: those of the input.
        shift: zeros in front of the input, so that a window begins with a block.
        first, last: the blocks that a window reaches from and to, counted from that of its first position.
        read, blocks: blocks of the input and of the output.
    """

    together: int
    block: int
    shift: int
    first: int
    last: int
    read: int
    blocks: int

    @property
    def width(self) -> int:
        """Blocks in a window."""
        return self.last - self.first + 1

    @property
    def after(self) -> int:
        """Blocks of zeros that the layer pads behind its input."""
        return self.blocks + self.last - self.read


def layers_of(node: ir.Node) -> list[ImageConv]:
    """A Conv along each axis of its image whose length is known; nothing where it is of another kind."""
    if node.op_type != "Conv" or node.domain != "":
        return []
    weight, bias = walk.const_array(walk.input_at(node, 1)), walk.input_at(node, 2)
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    if weight is None or weight.dtype != np.float32 or before is None or after is None:
        return []
    if not weight.ndim == len(before) == len(after) == RANK or before[1] != weight.shape[1]:
        return []  # the second: with one group
    if (bias is not None and walk.const_array(bias) is None) or walk.attr_str(node, "auto_pad", "NOTSET") != "NOTSET":
        return []
    pads = walk.attr_ints(node, "pads", (0, 0, 0, 0))
    if min(pads) < 0:
        return []
    found = []
    for axis in (3, 2):
        along = axis - 2
        length, other = before[axis], 5 - axis
        if length is None:
            continue
        stride, dilation = (walk.attr_ints(node, name, (1, 1))[along] for name in ("strides", "dilations"))
        reach = dilation * (weight.shape[axis] - 1) + 1
        written = (length + pads[along] + pads[2 + along] - reach) // stride + 1
        rows = after[other] or _UNKNOWN_LENGTH
        lines = before[other] or rows * walk.attr_ints(node, "strides", (1, 1))[1 - along]
        if written > 0:
            turned = weight if axis == 3 else weight.swapaxes(2, 3)
            found.append(ImageConv(axis, turned, stride, dilation, pads[along], length, written, rows, lines))
    return found


def cheapest(node: ir.Node, least_saved: float) -> tuple[ImageConv, Folded] | None:
    """The axis and number of positions that are cheapest, if they are cheap enough."""
    found, least = None, math.inf
    for layer in layers_of(node):
        plain = work(layer, None, WIDE)
        for together in _TOGETHER:
            folded = _fold(layer, together)
            if folded.after < 0:
                continue  # its input would have to be cut
            growth = layer.weight.size * (together * folded.block * folded.width / layer.weight.shape[3] - 1)
            cost = work(layer, folded, WIDE) + _ELEMENT * growth
            slower_elsewhere = work(layer, folded, _SMALL) > _NO_LOSS * work(layer, None, _SMALL)
            enough = cost <= _WORTH * plain and plain - cost >= least_saved
            if enough and not slower_elsewhere and growth <= _MOST_GROWTH and cost < 0.95 * least:
                found, least = (layer, folded), cost
    return found


def _fold(layer: ImageConv, together: int) -> Folded:
    block = layer.stride * together
    reach = layer.stride * (together - 1) + layer.dilation * (layer.weight.shape[3] - 1)
    least = -(-(reach + 1) // block)
    aligned = (reach - layer.before) // block - -layer.before // block + 1
    shift = layer.before % block if aligned > least else 0
    first, last = (shift - layer.before) // block, (reach + shift - layer.before) // block
    read = -(-(layer.length + shift) // block)
    return Folded(together, block, shift, first, last, read, -(-layer.written // together))


def work(layer: ImageConv, folded: Folded | None, channels: int) -> float:
    """Multiply-accumulates where a kernel computes so many channels together; and in their terms, moving elements."""
    out, read, across, along = layer.weight.shape
    if folded is None:
        return float(math.ceil(out / channels) * channels * read * across * along * layer.written * layer.rows)
    many = math.ceil(out * folded.together / channels) * channels
    macs = float(many * read * folded.block * across * folded.width * folded.blocks * layer.rows)
    given, made = read * layer.length * layer.lines, out * layer.written * layer.rows
    padded = folded.shift > 0 or folded.read * folded.block != layer.length
    return macs + _MOVE * float(given * (2 if padded else 1) + made)


def least_saved(model: ir.Model) -> float:
    """Multiply-accumulates that a layer must save, all things considered."""
    total = sum(work(layer, None, WIDE) for node in walk.all_nodes(model.graph) for layer in layers_of(node)[:1])
    constants = (value.const_value for graph in walk.all_graphs(model.graph) for value in graph.initializers.values())
    size = sum(tensor.nbytes for tensor in constants if tensor is not None)
    share = min(max(_LEAST_SHARE, _WEIGH * _OVERHEAD / max(size, 1)), _MOST_SHARE)
    return max(_LEAST_SAVED, share * total)


def weight_in_blocks(layer: ImageConv, folded: Folded) -> Array:
    """The weight for blocks: (out, position in its block, in, position in its block, across, block)."""
    out, read, across, along = layer.weight.shape
    result = np.zeros((out, folded.together, read, folded.block, across, folded.width), layer.weight.dtype)
    for position in range(folded.together):
        for tap in range(along):
            at = layer.stride * position + layer.dilation * tap - layer.before + folded.shift
            block = at // folded.block - folded.first
            result[:, position, :, at % folded.block, :, block] = layer.weight[:, :, :, tap]
    whole = result.reshape(out * folded.together, read * folded.block, across, folded.width)
    return whole if layer.axis == 3 else np.ascontiguousarray(whole.swapaxes(2, 3))


def blocks_of(layer: ImageConv, folded: Folded, weight: Array) -> Blocks:
    """How the weight of a layer in blocks was made."""
    first = folded.shift - layer.before - folded.first * folded.block
    length = layer.dilation * (layer.weight.shape[3] - 1) + 1
    return Blocks(layer.axis, weight.shape, folded.together, folded.block, layer.stride, first, length)
