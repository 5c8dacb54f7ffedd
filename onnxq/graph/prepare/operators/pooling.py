"""Pools in the form that has an integer kernel: GlobalAveragePool, and AveragePool without what says nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk


def run(model: ir.Model, names: walk.Names | None = None) -> int:
    """Write ReduceMean over all spatial axes of (N, C, …) as GlobalAveragePool, and Squeeze where it drops them.

    Dilations of 1, which exporters write and QLinearAveragePool does not know, are dropped.

    Returns:
        How many were rewritten.
    """
    for node in walk.all_nodes(model.graph):
        if node.op_type == "AveragePool" and set(walk.attr_ints(node, "dilations")) == {1}:
            node.attributes.pop("dilations")
    if walk.opset(model) < 13:
        return 0  # Squeeze takes its axes as an input from 13 on
    found = [
        node
        for graph in walk.all_graphs(model.graph)
        for node in graph
        if node.op_type == "ReduceMean" and node.domain == "" and _over_the_image(node)
    ]
    if not found:
        return 0
    names = names or walk.Names(model)
    for node in found:
        _rewrite(node, names)
    return len(found)


def _over_the_image(node: ir.Node) -> bool:
    rank = walk.rank(node.inputs[0])
    if rank is None or not 4 <= rank <= 5 or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT:
        return False
    given = walk.input_at(node, 1)
    axes = walk.attr_ints(node, "axes", ())
    if given is not None:
        array = walk.const_array(given)
        if array is None:
            return False
        axes = tuple(array.reshape(-1).tolist())
    return sorted(axis % rank for axis in axes) == list(range(2, rank))


def _rewrite(node: ir.Node, names: walk.Names) -> None:
    graph, output, source = node.graph, node.outputs[0], node.inputs[0]
    assert isinstance(graph, ir.Graph) and source is not None
    rank = walk.rank(source) or 4
    keep = walk.attr_int(node, "keepdims", 1) == 1
    axes_before = walk.input_at(node, 1)
    name = node.name
    pooled = ir.Value(name=names.value(f"{output.name}_pooled"), type=source.type, shape=_pooled_shape(source, rank))
    pool = ir.Node("", "GlobalAveragePool", [source], outputs=[pooled], name=name)
    graph.insert_before(node, [pool])
    if keep:
        edit.take_over(output, pooled)
    else:
        axes = edit.add_initializer(graph, names.value(f"{output.name}_axes"), np.arange(2, rank, dtype=np.int64))
        squeezed = ir.Value(type=output.type, shape=output.shape)
        squeeze = ir.Node("", "Squeeze", [pooled, axes], outputs=[squeezed], name=names.node(f"{name}_squeeze"))
        graph.insert_before(node, [squeeze])
        edit.take_over(output, squeezed)
    edit.remove_node(node)
    edit.drop_unused_initializer(axes_before)


def _pooled_shape(source: ir.Value, rank: int) -> ir.Shape | None:
    if source.shape is None:
        return None
    return ir.Shape([*list(source.shape)[:2], *[1] * (rank - 2)])
