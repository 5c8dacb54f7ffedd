"""Max pooling before a PRelu that never falls, rather than behind it: the same numbers on a quarter of the elements.

The pool then stands right behind the layer, where it runs on what the layer gives, in float and on integers.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk


def run(model: ir.Model) -> int:
    """Swap PRelu → MaxPool where no slope is negative and slopes are the same over the image, if nothing reads between.

    Exact: a function that never falls gives the largest of its results for the largest of its arguments.

    Returns:
        How many were swapped.
    """
    names = walk.Names(model)
    done = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            if node.op_type == "MaxPool" and node.domain == "" and node.graph is graph:
                done += _swap(node, names)
    return done


def _swap(pool: ir.Node, names: walk.Names) -> bool:
    source = pool.inputs[0]
    relu = source.producer() if source is not None else None
    if source is None or relu is None or relu.op_type != "PRelu" or relu.domain != "" or relu.graph is not pool.graph:
        return False
    if walk.only_use(source) is not pool:
        return False
    if len(pool.outputs) > 1 and any(output.uses() or output.is_graph_output() for output in pool.outputs[1:]):
        return False
    slopes, rank = walk.const_array(relu.inputs[1]), walk.rank(source)
    if slopes is None or rank is None or (slopes < 0).any() or slopes.ndim > rank:
        return False
    shape = (1,) * (rank - slopes.ndim) + slopes.shape
    if any(dim != 1 for dim in shape[2:]):
        return False
    graph, data, pooled, output = pool.graph, relu.inputs[0], source, pool.outputs[0]
    assert graph is not None and data is not None
    name = output.name
    pool.replace_input_with(0, data)
    graph.remove(relu)
    graph.insert_after(pool, relu)
    output.replace_all_uses_with(pooled, replace_graph_outputs=True)
    relu.replace_input_with(0, output)
    pooled.name, output.name = None, names.value(f"{name}_early")
    pooled.name, pooled.shape = name, output.shape
    return True
