"""Products with their constant on the right, as a matrix, where kernels on integers and for packed weights take it.

``W · x`` is the transpose of ``xᵀ · Wᵀ``. On integers that costs what a kernel with the constant on the left would,
which has one scale for all of W (43 µs for 47 at 512 × 256 × 40, 118 in float); in float it takes up to a fifth longer,
so that `turn_back` undoes it where the product stays float. A vector on the right is a matrix of one column: ONNX
Runtime multiplies with a vector row by row (2,737 µs for 300 at 4096 × 256), on integers likewise.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.reading.ops import pays_turned

_TURNED = "onnxq.turned"
"""Key of a node's metadata: it was ``W · x``."""

_FLOATS = (np.float32, np.float16)


def run(model: ir.Model) -> int:
    """Turn products whose left side is a constant, Gemm nodes with transA = 1, and vectors on the right.

    Exact but for the order in which products are added. Nodes keep their names; the name of a product's output goes to
    what stands for it. Values are transposed once for all of their readers.

    Returns:
        How many nodes were rewritten.
    """
    names = walk.Names(model)
    turned: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}
    done = 0
    for node in walk.nodes_to_rewrite(model, "MatMul"):
        done += _as_column(node, names) if walk.opset(model) >= 13 else 0
        done += _turn(node, names, turned)
    return done + sum(_transpose_before(node, names, turned) for node in walk.nodes_to_rewrite(model, "Gemm"))


def _as_column(node: ir.Node, names: walk.Names) -> bool:
    vector, rank, graph = walk.const_array(walk.input_at(node, 1)), walk.rank(node.inputs[0]), node.graph
    if vector is None or vector.ndim != 1 or vector.dtype not in _FLOATS or rank is None or rank < 2 or graph is None:
        return False
    if walk.is_constant(node.inputs[0]):
        return False
    old, output = node.inputs[1], node.outputs[0]
    edit.set_constant(node, 1, vector[:, None], names, f"{old.name if old else node.name}_column")
    after = edit.axes_node(
        _graph(graph), "Squeeze", output, [rank - 1], names, name=f"{node.name}_squeeze", gives=f"{output.name}_squeeze"
    )
    edit.put_behind(output, after, names, f"{output.name}_column")
    if output.shape is not None:
        output.shape = ir.Shape([*output.shape, 1])
    return True


def _turn(node: ir.Node, names: walk.Names, turned: dict[tuple[ir.Value, ir.Graph], ir.Value]) -> bool:
    weight, x, graph = walk.const_array(walk.input_at(node, 0)), walk.input_at(node, 1), node.graph
    rank = walk.rank(x)
    if weight is None or x is None or rank is None or graph is None or walk.is_constant(x):
        return False
    if weight.ndim < 2 or weight.ndim > max(rank, 2) or weight.dtype not in _FLOATS or not pays_turned(weight):
        return False
    old = node.inputs[0]
    given = x if rank == 1 else _transposed(x, _graph(graph), node, names, turned)
    assert old is not None
    node.replace_input_with(0, None)
    node.replace_input_with(1, old)
    edit.set_constant(node, 1, np.ascontiguousarray(weight.swapaxes(-1, -2)), names, f"{old.name}_turned")
    node.replace_input_with(0, given)
    if rank > 1:
        output = node.outputs[0]
        after = ir.Node("", "Transpose", [output], [_swap(rank)], num_outputs=1, name=names.node(f"{node.name}_turned"))
        after.outputs[0].name = names.value(f"{output.name}_back")
        edit.put_behind(output, after, names, f"{output.name}_turned")
        output.shape = _turned_shape(output.shape)
        node.meta[_TURNED] = True
    return True


def _transpose_before(node: ir.Node, names: walk.Names, turned: dict[tuple[ir.Value, ir.Graph], ir.Value]) -> bool:
    x, graph = node.inputs[0], node.graph
    if not walk.attr_int(node, "transA") or x is None or graph is None or not walk.is_constant(walk.input_at(node, 1)):
        return False
    if walk.rank(x) != 2 or walk.is_constant(x):
        return False
    node.replace_input_with(0, _transposed(x, _graph(graph), node, names, turned))
    node.attributes.pop("transA")
    return True


def _transposed(
    value: ir.Value,
    graph: ir.Graph,
    node: ir.Node,
    names: walk.Names,
    turned: dict[tuple[ir.Value, ir.Graph], ir.Value],
) -> ir.Value:
    """A value with its last two axes swapped, for a node of this graph and those behind it."""
    if (value, graph) not in turned:
        rank = walk.rank(value)
        assert rank is not None
        new = ir.Node("", "Transpose", [value], [_swap(rank)], num_outputs=1, name=names.node(f"{node.name}_turn"))
        output = new.outputs[0]
        output.name, output.type = names.value(f"{value.name}_turned"), value.type
        output.shape = _turned_shape(value.shape)
        graph.insert_before(node, new)
        turned[value, graph] = output
    return turned[value, graph]


def _swap(rank: int) -> ir.Attr:
    return ir.AttrInt64s("perm", [*range(rank - 2), rank - 1, rank - 2])


def _turned_shape(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*list(shape)[:-2], shape[-1], shape[-2]])


def _graph(graph: ir.Graph | ir.Function) -> ir.Graph:
    assert isinstance(graph, ir.Graph)
    return graph


def turn_back(model: ir.Model) -> int:
    """Multiply with the constant on the left again where `run` has turned a product that is computed in float.

    Only where nothing but the product reads its transposed input, and nothing but a transposition what it gives. A
    weight that nodes unfold at load is transposed behind them, at load too.

    Returns:
        How many products were turned back.
    """
    names = walk.Names(model)
    return sum(_back(node, names) for node in walk.nodes_to_rewrite(model, "MatMul") if _TURNED in node.meta)


def _back(node: ir.Node, names: walk.Names) -> bool:
    given, weight = node.inputs
    before = given.producer() if given is not None else None
    after = walk.only_use(node.outputs[0])
    unfolds = weight.producer() if weight is not None else None
    if given is None or weight is None or before is None or after is None or walk.only_use(given) is not node:
        return False
    if not (_swaps(before) and _swaps(after)) or (unfolds is not None and unfolds.op_type == "DequantizeLinear"):
        return False
    x, turned = before.inputs[0], weight
    array, rank = walk.const_array(weight), walk.rank(weight)
    if x is None or rank is None or before.graph is not node.graph or after.graph is not node.graph:
        return False
    node.replace_input_with(0, x)
    edit.remove_node(before)
    if array is not None:
        turned = edit.set_constant(node, 1, np.ascontiguousarray(array.swapaxes(-1, -2)), names, f"{weight.name}_left")
    elif unfolds is not None and unfolds.graph is not None:
        turn = ir.Node("", "Transpose", [weight], [_swap(rank)], num_outputs=1, name=names.node(f"{node.name}_left"))
        turned = turn.outputs[0]
        turned.name, turned.type = names.value(f"{weight.name}_left"), weight.type
        turned.shape = _turned_shape(weight.shape)
        unfolds.graph.insert_after(unfolds, turn)
    node.replace_input_with(0, turned)
    node.replace_input_with(1, x)
    edit.take_over(after.outputs[0], node.outputs[0])
    edit.remove_node(after)
    del node.meta[_TURNED]
    return True


def _swaps(node: ir.Node) -> bool:
    """Whether a node is a Transpose of the last two axes."""
    order = walk.attr_ints(node, "perm")
    count = len(order)
    swapped = (*range(count - 2), count - 1, count - 2)
    return node.op_type == "Transpose" and node.domain == "" and count > 1 and order == swapped
