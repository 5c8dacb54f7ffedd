"""Copies of a model that also give the extrema of values, computed by nodes of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.prepare.whole.shapes import infer

_AXES_ARE_INPUTS = 18
"""Opset from which ReduceMin and ReduceMax take their axes as an input."""


def float_values(model: ir.Model, op_types: Collection[str] = ()) -> tuple[ir.Model, list[str]]:
    """A copy with types filled in, and the float values that nodes of the main graph read or write.

    Args:
        model: unchanged.
        op_types: only nodes of these types count; all where it is empty.

    Returns:
        The copy; names of float32 and float16 values that are no constants, in graph order.
    """
    copy = model.clone()
    infer(copy, [], folded=False)
    found: dict[str, None] = {}
    for node in copy.graph:
        if op_types and node.op_type not in op_types:
            continue
        for value in (*node.inputs, *node.outputs):
            if value is None or not value.name or walk.is_constant(value):
                continue
            if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                found[value.name] = None
    return copy, list(found)


def add_extrema(model: ir.Model, names: Iterable[str], *, per_channel: bool = False) -> dict[str, tuple[str, str]]:
    """Let a model also give the smallest and the largest element of values of its main graph.

    Args:
        model: changed in place.
        names: float values whose types are known.
        per_channel: one pair for each index of axis 1.

    Returns:
        The names of the two outputs, of one dimension, by value.
    """
    graph = model.graph
    free = walk.Names(model)
    known = {value.name: value for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}
    flat = edit.add_initializer(graph, free.value("flat_shape"), np.array([-1], np.int64))
    added: dict[str, tuple[str, str]] = {}
    for name in names:
        value = known[name]
        pair = []
        for op_type in ("ReduceMin", "ReduceMax"):
            inputs, attributes = [value], {"keepdims": 1}
            if per_channel:
                axes = [0, *range(2, walk.rank(value) or 2)]
                if walk.opset(model) < _AXES_ARE_INPUTS:
                    attributes["axes"] = axes  # type: ignore[assignment]
                else:
                    inputs.append(
                        edit.add_initializer(graph, free.value(f"{name}_{op_type}_axes"), np.array(axes, np.int64))
                    )
            end = ir.Value(name=free.value(f"{name}_{op_type}"), type=value.type, shape=ir.Shape([None]))
            kept = ir.Value(name=free.value(f"{name}_{op_type}_Reshape"), type=value.type)
            reduce = ir.node(op_type, inputs, attributes, outputs=[kept], name=free.node(f"{name}_{op_type}"))
            reshape = ir.node("Reshape", [kept, flat], outputs=[end], name=free.node(f"{name}_{op_type}_Reshape"))
            graph.extend([reduce, reshape])
            graph.outputs.append(end)
            pair.append(str(end.name))
        added[name] = (pair[0], pair[1])
    return added


def add_outputs(model: ir.Model, names: Iterable[str]) -> None:
    """Let a model also give values of its main graph.

    Args:
        model: changed in place.
        names: values that nodes write, or inputs.
    """
    graph = model.graph
    given = {value.name for value in graph.outputs}
    known = {value.name: value for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}
    graph.outputs.extend(known[name] for name in names if name not in given)
