"""Element-wise work right behind the layer that made the value, where the runtime and the passes here can join them.

Exporters of one-dimensional convolutions put a Squeeze between the Conv and its bias, those that keep channels last a
Transpose: Conv → Squeeze → Add → Relu. The element-wise nodes move in front of what only moves elements; the Add then
is the layer's bias and the Relu part of its kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.prepare.folding.affine_layer import constant_operand, layer_of

_CLAMPS = traits.CLAMPS | {"LeakyRelu"}
"""Activations that a layer takes into its own kernel."""

_ARITHMETIC = traits.ARITHMETIC

_MOVERS = frozenset({"Transpose", "Squeeze", "Unsqueeze"})


def run(model: ir.Model) -> int:
    """Swap an element-wise node with the Transpose, Squeeze or Unsqueeze before it, as long as a layer lies behind.

    That is arithmetic with a constant, and activations that layers take up. Nothing else may read the values in
    between. Exact: the same numbers are combined.

    Returns:
        How many swaps there were.
    """
    names = walk.Names(model)
    done = 0
    for graph in list(walk.all_graphs(model.graph)):
        for node in list(graph):
            while node.graph is graph and _hoist(node, names):
                done += 1
    return done


def _hoist(node: ir.Node, names: walk.Names) -> bool:
    if node.domain != "":
        return False
    operand = constant_operand(node) if node.op_type in _ARITHMETIC else None
    if node.op_type in _ARITHMETIC:
        if operand is None or not walk.is_float(node.inputs[operand[2]]):
            return False
        data = operand[0]
    elif node.op_type in _CLAMPS and node.inputs and node.inputs[0] is not None:
        data = node.inputs[0]
    else:
        return False
    mover = data.producer()
    if mover is None or mover.domain != "" or mover.op_type not in _MOVERS or mover.graph is not node.graph:
        return False
    if walk.only_use(data) is not node:
        return False
    source = mover.inputs[0] if mover.inputs else None
    if source is None or walk.only_use(source) is not mover or not _behind_layer(source, operand is not None):
        return False
    constant = None
    if operand is not None:
        constant = _moved(operand[1], mover)
        if constant is None:
            return False
    _swap(node, mover, operand[2] if operand else None, constant, names)
    return True


def _behind_layer(value: ir.Value, arithmetic: bool) -> bool:
    """Whether the value is what a layer gives, through further nodes that only move elements."""
    for _ in range(8):
        node = value.producer()
        if node is None or node.domain != "":
            return False
        if layer_of(value) is not None:
            return node.op_type != "MatMul" or arithmetic
        if node.op_type not in _MOVERS or not node.inputs or node.inputs[0] is None:
            return False
        value = node.inputs[0]
        if walk.only_use(value) is not node:
            return False
    return False


def _moved(constant: Array, mover: ir.Node) -> Array | None:
    """The constant as it has to stand in front of the node that moves elements; None where there is no such form."""
    if constant.size == 1:
        rank = walk.rank(mover.inputs[0])
        after = walk.rank(mover.outputs[0])
        if rank is None or after is None or constant.ndim > after:
            return None
        return constant.reshape(())
    rank = walk.rank(mover.outputs[0])
    if rank is None or constant.ndim > rank:
        return None
    full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if mover.op_type == "Transpose":
        order = walk.attr_ints(mover, "perm", tuple(reversed(range(rank))))
        return full.transpose(np.argsort(order)) if len(order) == rank else None
    axes = _axes(mover)
    if axes is None:
        return None
    if mover.op_type == "Squeeze":
        before = rank + len(axes)
        moved: Array = np.expand_dims(full, tuple(axis % before for axis in axes))
        return moved
    if mover.op_type == "Unsqueeze":
        places = tuple(axis % rank for axis in axes)
        return np.squeeze(full, places) if all(full.shape[axis] == 1 for axis in places) else None
    return None


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a Squeeze or Unsqueeze; None where they are not said, or not constant."""
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    given = walk.input_at(node, 1)
    if given is None:
        return walk.attr_ints(node, "axes") or None
    array = walk.const_array(given)
    return None if array is None else tuple(int(axis) for axis in array.reshape(-1))


def _swap(node: ir.Node, mover: ir.Node, position: int | None, constant: Array | None, names: walk.Names) -> None:
    graph, source, data, output = node.graph, mover.inputs[0], mover.outputs[0], node.outputs[0]
    assert graph is not None and source is not None
    if position is not None and constant is not None:
        old = node.inputs[position]
        edit.set_constant(node, position, np.ascontiguousarray(constant), names, f"{old.name if old else ''}_moved")
        edit.drop_unused_initializer(old)
    final_shape = output.shape if output.is_graph_output() else data.shape  # an output keeps what the model declares
    edit.set_input(node, node.inputs.index(data), source)
    graph.remove(node)
    graph.insert_before(mover, node)
    mover.replace_input_with(0, output)
    # The mover's output is what the node's was: its name, its readers, its place among the graph's outputs.
    name = output.name
    output.replace_all_uses_with(data, replace_graph_outputs=True)
    mover.replace_input_with(0, output)
    data.name, output.name = None, names.value(f"{name}_early")
    data.name = name
    data.shape, output.shape = final_shape, source.shape
    data.type = output.type
