"""SpaceToDepth in one operator, where a detector's Focus writes it as strided Slices and a Concat.

The Slices of one image of 416 × 416 pixels take 1,160 µs and SpaceToDepth 440; on integers it keeps the channels where
the Conv behind reads them. The Slices differ from it in the order of channels alone, which the weight takes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk

_RANK = 4

_LONGEST = 8
"""Slices, one behind the other, that are followed to their source."""


def run(model: ir.Model) -> int:
    """Write a Concat of all b · b phases of an image, each a Slice in steps of b, as SpaceToDepth.

    Where the phases come in another order than SpaceToDepth's, every reader must be a Conv of one group with a constant
    weight, whose input channels are put in order. Exact but for the order in which products are added. Images whose
    sides b does not divide make phases of different size, which no Concat joins.

    Returns:
        How many were rewritten.
    """
    names = walk.Names(model)
    return sum(_rewrite(node, names) for node in walk.nodes_to_rewrite(model, "Concat"))


@dataclass(frozen=True)
class _Phase:
    """Every ``steps``-th element of ``source`` from ``starts`` on, along height and width."""

    source: ir.Value
    starts: tuple[int, int]
    steps: tuple[int, int]


def _rewrite(concat: ir.Node, names: walk.Names) -> bool:
    joined, graph = concat.outputs[0], concat.graph
    block = round(len(concat.inputs) ** 0.5)
    if graph is None or block < 2 or block * block != len(concat.inputs) or walk.rank(joined) != _RANK:
        return False
    if walk.attr_int(concat, "axis") % _RANK != 1 or joined.dtype != ir.DataType.FLOAT:
        return False
    phases = [_phase(value) for value in concat.inputs]
    first = phases[0]
    if first is None or walk.rank(first.source) != _RANK or first.source.type is None:
        return False
    order = []
    for phase in phases:
        if phase is None or phase.source is not first.source or phase.steps != (block, block):
            return False
        order.append(phase.starts[0] * block + phase.starts[1])
    if sorted(order) != list(range(block * block)):
        return False
    if order != sorted(order) and not _reorder(joined, order, names):
        return False
    read = list(concat.inputs)
    whole = ir.Node("", "SpaceToDepth", [first.source], num_outputs=1, name=concat.name)
    whole.attributes["blocksize"] = ir.AttrInt64("blocksize", block)
    whole.outputs[0].name = names.value(f"{joined.name}_blocks")
    graph.insert_before(concat, whole)
    edit.take_over(joined, whole.outputs[0])
    edit.remove_node(concat)
    for value in read:
        _remove_unread(value)
    return True


def _phase(value: ir.Value | None) -> _Phase | None:
    """What a chain of Slices along height and width keeps; None for anything else."""
    starts, steps = {2: 0, 3: 0}, {2: 1, 3: 1}
    for _ in range(_LONGEST):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "Slice" or node.domain != "":
            break
        bounds = _bounds(node)
        if bounds is None:
            return None
        for axis, start, step in bounds:
            # The slice behind counts in steps of the one in front of it.
            starts[axis], steps[axis] = start + step * starts[axis], step * steps[axis]
        value = node.inputs[0]
    if value is None or any(starts[axis] >= steps[axis] for axis in (2, 3)):
        return None
    return _Phase(value, (starts[2], starts[3]), (steps[2], steps[3]))


def _bounds(node: ir.Node) -> list[tuple[int, int, int]] | None:
    """(axis, start, step) of a Slice of an image to its end; None where it is another, or not constant."""
    given = [walk.const_array(walk.input_at(node, i)) for i in range(1, 5)]
    starts, ends, axes, steps = (None if array is None else array.reshape(-1).tolist() for array in given)
    if starts is None or ends is None or axes is None or walk.rank(node.inputs[0]) != _RANK:
        return None
    if steps is None:
        if walk.input_at(node, 4) is not None:
            return None
        steps = [1] * len(axes)
    lengths = walk.dims(node.inputs[0]) or (None,) * _RANK
    found: list[tuple[int, int, int]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis % _RANK
        length = lengths[place]
        to_end = end >= np.iinfo(np.int32).max or (length is not None and end >= length)
        if place < 2 or start < 0 or step < 1 or not to_end or place in (entry[0] for entry in found):
            return None
        found.append((place, start, step))
    return found


def _reorder(joined: ir.Value, order: Sequence[int], names: walk.Names) -> bool:
    """Let the Convs that read the phases expect SpaceToDepth's order; nothing changes where one of them cannot."""
    readers = walk.consumers(joined)
    if not readers or joined.is_graph_output():
        return False
    weights: list[tuple[ir.Node, Array]] = []
    for node in readers:
        weight = walk.const_array(walk.input_at(node, 1)) if node.op_type == "Conv" and node.domain == "" else None
        if weight is None or weight.ndim != _RANK or walk.attr_int(node, "group", 1) != 1:
            return False
        if node.inputs[0] is not joined or weight.shape[1] % len(order):
            return False
        weights.append((node, weight))
    for node, weight in weights:
        apart = weight.reshape(len(weight), len(order), -1, *weight.shape[2:])
        sorted_channels = apart[:, np.argsort(order)].reshape(weight.shape)
        edit.set_constant(node, 1, sorted_channels, names, f"{node.name}_weight_in_blocks")
    return True


def _remove_unread(value: ir.Value | None) -> None:
    """Remove the Slices that nothing reads any more."""
    while value is not None and not value.uses() and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type != "Slice":
            return
        read = list(node.inputs)
        edit.remove_node(node)
        for constant in read[1:]:
            edit.drop_unused_initializer(constant)
        value = read[0]
