"""Max and Min with a single number as Relu and Clip, which layers take into their output range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.reading.ops import clamp_bounds

_CLIP_INPUTS = 11
"""Operator set from which on the bounds of Clip are inputs."""


def run(model: ir.Model) -> int:
    """Write ``Max(x, number)`` and ``Min(x, number)`` on float32 as Relu (the number is 0) or Clip.

    NaN stays NaN in all of them. A Max that is followed by a Min, or the other way round, gives one Clip.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < _CLIP_INPUTS:
        return 0
    names = walk.Names(model)
    done = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            if node.graph is not graph or node.domain != "":
                continue
            if node.op_type in ("Max", "Min"):
                done += _to_clip(node, names)
            elif node.op_type == "Clip":
                done += _join(node, names)
    return done


def _to_clip(node: ir.Node, names: walk.Names) -> bool:
    found = _number_beside(node)
    if found is None:
        return False
    x, number = found
    graph, output, read = node.graph, node.outputs[0], list(node.inputs)
    assert graph is not None
    behind = x.producer()
    if number == 0.0 and node.op_type == "Max" and (behind is None or behind.op_type != "Clip"):
        new = ir.Node("", "Relu", [x], num_outputs=1, name=node.name)
    else:
        bound = edit.add_initializer(graph, names.value(f"{output.name}_bound"), np.array(number, np.float32))
        inputs = [x, bound] if node.op_type == "Max" else [x, None, bound]
        new = ir.Node("", "Clip", inputs, num_outputs=1, name=node.name)
    new.outputs[0].name = names.value(f"{output.name}_bounded")
    graph.insert_before(node, new)
    edit.take_over(output, new.outputs[0])
    edit.remove_node(node)
    for value in read:
        edit.drop_unused_initializer(value)
    return True


def _number_beside(node: ir.Node) -> tuple[ir.Value, float] | None:
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        array, x = walk.const_array(node.inputs[index]), node.inputs[1 - index]
        if array is None or array.size != 1 or x is None or walk.is_constant(x) or x.dtype != ir.DataType.FLOAT:
            continue
        rank = walk.rank(x)
        if not np.isnan(array).any() and (array.ndim == 0 or (rank is not None and array.ndim <= rank)):
            return x, float(array.reshape(()))
    return None


def _join(outer: ir.Node, names: walk.Names) -> bool:
    """Let a Clip take up the Clip or Relu before it, where both let some interval through."""
    source = outer.inputs[0]
    inner = source.producer() if source is not None else None
    if inner is None or source is None or inner.domain != "" or inner.op_type not in ("Clip", "Relu"):
        return False
    if inner.graph is not outer.graph or walk.only_use(source) is not outer or source.dtype != ir.DataType.FLOAT:
        return False
    if not (_is_fixed(outer) and _is_fixed(inner)):
        return False
    (low, high), (inner_low, inner_high) = clamp_bounds(outer), clamp_bounds(inner)
    low, high = max(low, inner_low), min(high, inner_high)
    if not low < high:
        return False
    read = [*outer.inputs[1:], *inner.inputs[1:]]
    edit.set_input(outer, 0, inner.inputs[0])
    edit.remove_node(inner)
    graph = outer.graph
    assert graph is not None
    outer.resize_inputs(3)
    for index, bound in ((1, low), (2, high)):
        value = None
        if np.isfinite(bound):
            base = f"{outer.outputs[0].name}_bound"
            value = edit.add_initializer(graph, names.value(base), np.array(bound, np.float32))
        outer.replace_input_with(index, value)
    for value in read:
        edit.drop_unused_initializer(value)
    return True


def _is_fixed(node: ir.Node) -> bool:
    given = [value for value in node.inputs[1:3] if value is not None]
    arrays = [walk.const_array(value) for value in given]
    return all(array is not None and array.size == 1 and not np.isnan(array).any() for array in arrays)
