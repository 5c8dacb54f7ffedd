"""Softmax over an axis far from the last, as a detector's box distribution has it.

ONNX Runtime swaps the axis with the last one, which its Transpose does element by element (5,170 µs for 16 × 4 × 8400);
with the axes behind it joined, the same swap is a plain transposition (740 µs). A Transpose of our own would not do:
the runtime takes it into the Softmax again.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk

_SMALLEST = 2048
"""Elements below which two more calls cost as much as they save."""


def run(model: ir.Model) -> int:
    """Join the axes behind the one that a Softmax or LogSoftmax runs over, and split them again behind it. Exact.

    All but one of the axes that are joined must be known.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < 13:
        return 0  # before, Softmax flattened what it read
    names = walk.Names(model)
    found = [
        (node, tail)
        for graph in walk.all_graphs(model.graph)
        for node in graph
        if node.op_type in ("Softmax", "LogSoftmax") and node.domain == "" and (tail := _tail(node)) is not None
    ]
    for node, tail in found:
        _rewrite(node, tail, names)
    return len(found)


def _tail(node: ir.Node) -> tuple[int, list[int]] | None:
    """(axis, sizes behind it, −1 for one that is not known); None where the form is good already."""
    dims = walk.dims(node.inputs[0])
    if dims is None:
        return None
    axis = walk.attr_int(node, "axis", -1) % max(len(dims), 1)
    tail = dims[axis + 1 :]
    if len(tail) < 2 or tail.count(None) > 1 or 0 in dims or all(dim == 1 for dim in tail):
        return None
    if None not in dims and math.prod(dim or 1 for dim in dims) < _SMALLEST:
        return None
    return axis, [-1 if dim is None else dim for dim in tail]


def _rewrite(node: ir.Node, found: tuple[int, list[int]], names: walk.Names) -> None:
    axis, tail = found
    graph, source, output = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None and source is not None
    as_is = [0] * (axis + 1)
    joined = edit.add_initializer(graph, names.value(f"{source.name}_joined"), np.array([*as_is, -1], np.int64))
    split = edit.add_initializer(graph, names.value(f"{output.name}_split"), np.array([*as_is, *tail], np.int64))
    before = ir.Node("", "Reshape", [source, joined], num_outputs=1, name=names.node(f"{node.name}_join"))
    before.outputs[0].name, before.outputs[0].type = names.value(f"{source.name}_rows"), source.type
    graph.insert_before(node, before)
    edit.set_input(node, 0, before.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", axis)
    after = ir.Node("", "Reshape", [output, split], num_outputs=1, name=names.node(f"{node.name}_split"))
    after.outputs[0].name = names.value(f"{output.name}_whole")
    edit.put_behind(output, after, names, f"{output.name}_rows")
    output.shape = None
