"""Convolutions with few output channels and long windows, several positions at a time.

ONNX Runtime computes 16 output channels of a Conv together (8 without AVX-512), and one with a single channel takes as
long as one with 16. With g neighbouring positions of the image taken for channels, a layer has g times the channels to
write, and its window, which reaches g − 1 positions further, as many times more to read: 16 → 16 channels and 20
positions for 8 → 8 and 39, which is the same work in full blocks (11 ms for 31). Such layers stand in networks on
spectrograms and sound, and where an image leaves a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.prepare.operators.position_blocks import (
    BLOCKS,
    RANK,
    Folded,
    ImageConv,
    blocks_of,
    cheapest,
    least_saved,
    weight_in_blocks,
)

_ELEMENTWISE = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu"})
"""Activations that need not know which element is which."""

_LONGEST_NAME = 32

_Dims = Sequence[Any]
"""Lengths of axes: numbers, names, or None."""


def run(model: ir.Model) -> int:
    """Compute such layers several positions at a time, where that is estimated to pay.

    Exact but for the order in which the products of one output are added. The layer and the activations behind it keep
    their names; Reshape and Transpose stand around them, and none between two such layers with equal blocks.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < 13:
        return 0  # Pad and Slice take constants as inputs from here on
    rewriter = _Rewriter(walk.Names(model), least_saved(model))
    return sum(rewriter.rewrite(node) for node in walk.nodes_to_rewrite(model, "Conv"))


class _Rewriter:
    """Rewrites layers one by one and knows which values there are in blocks."""

    def __init__(self, names: walk.Names, least: float) -> None:
        self._names, self._least = names, least
        # By id of a value: the value, the same in blocks, axis and positions of a block.
        self._blocks: dict[int, tuple[ir.Value, ir.Value, tuple[int, int]]] = {}

    def rewrite(self, node: ir.Node) -> bool:
        """Rewrite a Conv if that pays; returns whether it did."""
        found = cheapest(node, self._least) if BLOCKS not in node.meta else None
        if found is None:
            return False
        layer, folded = found
        self._fold_input(node, layer, folded)
        weight = weight_in_blocks(layer, folded)
        node.meta[BLOCKS] = blocks_of(layer, folded, weight)
        edit.set_constant(node, 1, weight, self._names, _short(f"{node.name}_weight_in_blocks"))
        bias = walk.const_array(walk.input_at(node, 2))
        if bias is not None:
            repeated = np.repeat(bias, folded.together)
            edit.set_constant(node, 2, repeated, self._names, _short(f"{node.name}_bias_in_blocks"))
        along = layer.axis - 2
        new: dict[str, tuple[int, ...]] = {"strides": (1,), "dilations": (1,), "kernel_shape": (folded.width,)}
        new["pads"] = (-folded.first, folded.after)
        for name, values in new.items():
            count = 4 if name == "pads" else 2
            unset = layer.weight.shape[2] if name == "kernel_shape" else int(name != "pads")
            attribute = list(walk.attr_ints(node, name, [unset] * count))
            attribute[along::2] = values
            node.attributes[name] = ir.AttrInt64s(name, attribute)
        self._unfold_output(node, layer, folded)
        return True

    def _fold_input(self, node: ir.Node, layer: ImageConv, folded: Folded) -> None:
        """(N, C, H, W) → (N, C·b, H, W/b) or (N, C·b, H/b, W) in front of the layer, with zeros to fill all blocks."""
        source, block, axis = node.inputs[0], folded.block, layer.axis
        assert source is not None
        there = self._blocks.get(id(source))
        fits = folded.shift == 0 and folded.read * block == layer.length
        if there is not None and fits and there[2] == (axis, block) and there[1].graph is node.graph:
            node.replace_input_with(0, there[1])
            _drop(source)
            return
        place = _Place(self._names, node, before=True)
        first, channels, *image = list(source.shape or (None,) * RANK)
        many, read = layer.weight.shape[1] * block, folded.read
        value, missing = source, read * block - layer.length - folded.shift
        if missing or folded.shift:
            ends = [0] * (2 * RANK)
            ends[axis], ends[RANK + axis] = folded.shift, missing
            value = place.add("Pad", value, [ends], (first, channels, *_along(image, axis, read * block)))
        split, joined = _along((-1, -1), axis, read), _along(image, axis, read)
        order = (0, 1, 4, 2, 3) if axis == 3 else (0, 1, 3, 2, 4)
        apart = (first, channels, *(_along(image, axis, read, block)))
        value = place.add("Reshape", value, [[0, 0, *(_along((0, -1), axis, read, block))]], apart)
        value = place.add("Transpose", value, order, (first, channels, block, *joined))
        node.replace_input_with(0, place.add("Reshape", value, [[0, many, *split]], (first, many, *joined)))

    def _unfold_output(self, node: ir.Node, layer: ImageConv, folded: Folded) -> None:
        """(N, C·g, H, W/g) → (N, C, H, W) behind the layer and its activations, cut to what the layer gave."""
        maker, axis = _last_activation(node), layer.axis
        last, out, g, blocks = maker.outputs[0], layer.weight.shape[0], folded.together, folded.blocks
        name, whole = last.name, last.shape
        first, _, *image = list(whole or (None,) * RANK)
        joined, length = _along(image, axis, blocks), blocks * g
        step = node
        while True:
            step.outputs[0].shape = _shape((first, out * g, *joined))
            if step is maker:
                break
            step = step.outputs[0].consumers()[0]
        place = _Place(self._names, maker, before=False)
        order = (0, 1, 3, 4, 2) if axis == 3 else (0, 1, 3, 2, 4)
        split = place.add("Reshape", last, [[0, out, g, *_along((-1, -1), axis, blocks)]], (first, out, g, *joined))
        value = place.add("Transpose", split, order, (first, out, *_along(image, axis, blocks, g)))
        value = place.add(
            "Reshape", value, [[0, 0, *_along((0, -1), axis, length)]], (first, out, *_along(image, axis, length))
        )
        if length != layer.written:
            cut = (first, out, *_along(image, axis, layer.written))
            value = place.add("Slice", value, [[0], [layer.written], [axis]], cut)
        last.replace_all_uses_with(value, replace_graph_outputs=True)
        begin = split.producer()
        assert begin is not None
        begin.replace_input_with(0, last)
        value.name = None
        last.name, value.name = self._names.value(_short(f"{name}_in_blocks")), name
        value.shape = whole
        value.metadata_props.update(last.metadata_props)
        if length == layer.written:
            self._blocks[id(value)] = (value, last, (axis, g))


class _Place:
    """Where nodes that move elements are put in, one behind the other."""

    def __init__(self, names: walk.Names, node: ir.Node, *, before: bool) -> None:
        assert isinstance(node.graph, ir.Graph)
        self._names, self._node, self._graph, self._before = names, node, node.graph, before

    def add(self, op_type: str, value: ir.Value, how: Sequence[int] | Sequence[list[int]], dims: _Dims) -> ir.Value:
        """The output of a new node; ``how``: the order of a Transpose, else the constants behind the value."""
        order = [number for number in how if isinstance(number, int)]
        constants = [
            edit.add_initializer(self._graph, self._names.value("blocks"), np.array(array, np.int64))
            for array in how
            if not isinstance(array, int)
        ]
        attributes = [ir.AttrInt64s("perm", order)] if order else []
        made = ir.Node(
            "", op_type, [value, *constants], attributes, num_outputs=1, name=self._names.node(f"blocks_{op_type}")
        )
        made.outputs[0].name, made.outputs[0].type = self._names.value("blocks"), value.type
        made.outputs[0].shape = _shape(dims)
        if self._before:
            self._graph.insert_before(self._node, made)
        else:
            self._graph.insert_after(self._node, made)
            self._node = made
        return made.outputs[0]


def _along(image: _Dims, axis: int, *lengths: int) -> list[Any]:
    """Both axes of an image, with other lengths for one of them."""
    return [*lengths, image[1]] if axis == 2 else [image[0], *lengths]


def _short(name: str) -> str:
    """The name, or its end: some exporters name a value after all that was joined to make it."""
    return name[-_LONGEST_NAME:]


def _shape(dims: _Dims) -> ir.Shape | None:
    return ir.Shape(list(dims))


def _drop(value: ir.Value | None) -> None:
    """Remove the nodes that only move elements and made a value that nothing reads any more."""
    while value is not None and not value.uses() and not value.is_graph_output():
        maker = value.producer()
        if maker is None or maker.op_type not in ("Reshape", "Transpose"):
            return
        read = list(maker.inputs)
        edit.remove_node(maker)
        for constant in read[1:]:
            edit.drop_unused_initializer(constant)
        value = read[0]


def _last_activation(node: ir.Node) -> ir.Node:
    """The last of the activations that follow a layer one by one; the layer where there is none."""
    while (user := walk.only_use(node.outputs[0])) is not None:
        if user.op_type not in _ELEMENTWISE or user.domain != "" or user.graph is not node.graph:
            break
        if user.inputs[0] is not node.outputs[0]:
            break
        node = user
    return node
