"""A float32 model in which some values have the digits of float16 alone, to see what halving each of them costs."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.edit import copy_of
from onnxq.graph.emit.common import place_first


def values_in_order(model: ir.Model, nodes: Collection[str], stored: Collection[str] = ()) -> list[str]:
    """Names of the float32 values that some nodes of the main graph read or write, in graph order, weights too.

    Args:
        model: unchanged.
        nodes: names of the nodes.
        stored: names of nodes of which only weights count.
    """
    found: dict[str, None] = {}
    for node in model.graph:
        if node.name in nodes or node.name in stored:
            for value in (*node.inputs, *node.outputs):
                if value is None or not value.name or not _is_float(value) or value.is_graph_output():
                    continue
                if node.name in nodes or walk.is_constant(value):
                    found[value.name] = None
    return list(found)


def rounded(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Copy a model and round values of its main graph to float16 and back.

    Args:
        model: unchanged.
        names: names of the values; initializers may be among them.
    """
    copy = copy_of(model)
    taken = walk.Names(copy)
    graph = copy.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name not in names:
            continue
        array = walk.const_array(value)
        if array is not None:
            with np.errstate(over="ignore", under="ignore"):
                near = array.astype(np.float16).astype(np.float32)
            new = edit.add_initializer(graph, taken.value(f"{value.name}_rounded"), near)
            value.replace_all_uses_with(new)
            continue
        half, back = (ir.Value(name=taken.value(f"{value.name}_{end}"), shape=value.shape) for end in ("half", "back"))
        half.type, back.type = ir.TensorType(ir.DataType.FLOAT16), ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(back)
        casts = [_cast(source, result, taken) for source, result in ((value, half), (half, back))]
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.insert_after(producer, casts)
        else:
            place_first(graph, casts)
    return copy


def around(model: ir.Model, names: Collection[str]) -> set[str]:
    """Names of the nodes that write or read some values: with all of them in float32, these are not rounded.

    Args:
        model: unchanged.
        names: names of values.
    """
    return {
        node.name
        for node in walk.all_nodes(model.graph)
        if node.name and any(value is not None and value.name in names for value in (*node.inputs, *node.outputs))
    }


def _cast(source: ir.Value, result: ir.Value, taken: walk.Names) -> ir.Node:
    assert result.dtype is not None
    to = ir.AttrInt64("to", int(result.dtype))
    return ir.Node("", "Cast", [source], [to], outputs=[result], name=taken.node(f"{result.name}_Cast"))


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
