"""The largest, smallest, sum or mean of values that were stacked for it, without the stack."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk

_DIRECT = {"ReduceMax": "Max", "ReduceMin": "Min", "ReduceSum": "Sum", "ReduceMean": "Mean"}
_MOST = 16
"""Values that are combined at once; the runtime goes through them one by one."""


def run(model: ir.Model) -> int:
    """Write a reduction over the axis along which Unsqueeze and Concat stacked float values as Max, Min, Sum or Mean.

    The reduction must drop the axis, and nothing else may read the stack. Max and Min are exact; sums are added in the
    same order.

    Returns:
        How many were rewritten.
    """
    names = walk.Names(model)
    done = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            if node.graph is graph and node.op_type in _DIRECT and node.domain == "":
                done += _rewrite(node, names)
    return done


def _rewrite(node: ir.Node, names: walk.Names) -> bool:
    stack, graph = node.inputs[0], node.graph
    concat = stack.producer() if stack is not None else None
    if stack is None or concat is None or graph is None or concat.op_type != "Concat" or concat.domain != "":
        return False
    rank = walk.rank(stack)
    if rank is None or concat.graph is not graph or walk.only_use(stack) is not node or len(concat.inputs) > _MOST:
        return False
    axis = walk.attr_int(concat, "axis") % rank
    if walk.attr_int(node, "keepdims", 1) or _axes_of(node, rank) != [axis] or stack.dtype != ir.DataType.FLOAT:
        return False
    layers = [value.producer() if value is not None else None for value in concat.inputs]
    sources: list[ir.Value] = []
    for layer in layers:
        if layer is None or layer.op_type != "Unsqueeze" or layer.domain != "" or _axes_of(layer, rank) != [axis]:
            return False
        if layer.inputs[0] is None:
            return False
        sources.append(layer.inputs[0])
    read = [*node.inputs[1:], *(value for layer in layers if layer is not None for value in layer.inputs[1:])]
    direct = ir.Node("", _DIRECT[node.op_type], sources, num_outputs=1, name=node.name)
    direct.outputs[0].name = names.value(f"{node.outputs[0].name}_direct")
    graph.insert_before(node, direct)
    edit.take_over(node.outputs[0], direct.outputs[0])
    edit.remove_node(node)
    edit.remove_node(concat)
    for layer in {id(layer): layer for layer in layers if layer is not None}.values():
        if not layer.outputs[0].uses() and not layer.outputs[0].is_graph_output():
            edit.remove_node(layer)
    for value in read:
        edit.drop_unused_initializer(value)
    return True


def _axes_of(node: ir.Node, rank: int) -> list[int]:
    given = walk.input_at(node, 1)
    array = walk.const_array(given)
    if given is not None and array is None:
        return []
    axes = walk.attr_ints(node, "axes") if array is None else array.reshape(-1).tolist()
    return [axis % rank for axis in axes]
