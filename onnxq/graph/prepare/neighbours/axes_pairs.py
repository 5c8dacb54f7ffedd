"""Squeeze behind Unsqueeze, and Unsqueeze behind Squeeze: axes that are put in and taken out for nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk


def run(model: ir.Model) -> int:
    """Cancel the axes that an Unsqueeze adds and the Squeeze behind it drops; one node of the two is left, or none.

    An Unsqueeze that puts in again what a Squeeze took out goes too, and the Squeeze with it if nothing else reads it.

    Returns:
        How many pairs became fewer nodes.
    """
    if walk.opset(model) < 13:
        return 0  # Squeeze takes its axes as an input from 13 on
    names = walk.Names(model)
    done = sum(_cancel(node, names) for node in walk.nodes_to_rewrite(model, "Squeeze"))
    return done + sum(_put_back(node) for node in walk.nodes_to_rewrite(model, "Unsqueeze"))


def _put_back(unsqueeze: ir.Node) -> bool:
    value, output = unsqueeze.inputs[0], unsqueeze.outputs[0]
    squeeze = value.producer() if value is not None else None
    if value is None or squeeze is None or squeeze.op_type != "Squeeze" or squeeze.domain != "":
        return False
    source, rank = squeeze.inputs[0], walk.rank(squeeze.inputs[0])
    if source is None or rank is None or output.is_graph_output() or squeeze.graph is not unsqueeze.graph:
        return False
    taken = _axes(squeeze, rank)
    if taken is None or taken != _axes(unsqueeze, rank):
        return False
    read = [walk.input_at(squeeze, 1), walk.input_at(unsqueeze, 1)]
    output.replace_all_uses_with(source)
    edit.remove_node(unsqueeze)
    if not value.uses() and not value.is_graph_output():
        edit.remove_node(squeeze)
    for given in read:
        edit.drop_unused_initializer(given)
    return True


def _cancel(squeeze: ir.Node, names: walk.Names) -> bool:
    value = squeeze.inputs[0]
    unsqueeze = value.producer() if value is not None else None
    if value is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or unsqueeze.domain != "":
        return False
    source, rank = unsqueeze.inputs[0], walk.rank(value)
    if source is None or rank is None or unsqueeze.graph is not squeeze.graph or walk.only_use(value) is not squeeze:
        return False
    put, taken = _axes(unsqueeze, rank), _axes(squeeze, rank)
    if put is None or taken is None or not put & taken or (put - taken and taken - put):
        return False
    read = [walk.input_at(unsqueeze, 1), walk.input_at(squeeze, 1)]
    if taken - put:
        kept = [axis for axis in range(rank) if axis not in put]
        edit.set_input(squeeze, 0, source)
        _set_axes(squeeze, [kept.index(axis) for axis in sorted(taken - put)], names)
        edit.remove_node(unsqueeze)
    elif put - taken:
        kept = [axis for axis in range(rank) if axis not in taken]
        edit.take_over(squeeze.outputs[0], value)
        edit.remove_node(squeeze)
        _set_axes(unsqueeze, [kept.index(axis) for axis in sorted(put - taken)], names)
    else:
        if squeeze.outputs[0].is_graph_output() and (
            squeeze.graph is None or not edit.can_be_output(source, squeeze.graph)
        ):
            return False
        if squeeze.outputs[0].is_graph_output():
            edit.take_over(squeeze.outputs[0], source)
        else:
            squeeze.outputs[0].replace_all_uses_with(source)
        edit.remove_node(squeeze)
        edit.remove_node(unsqueeze)
    for given in read:
        edit.drop_unused_initializer(given)
    return True


def _axes(node: ir.Node, rank: int) -> set[int] | None:
    array = walk.const_array(walk.input_at(node, 1))
    return None if array is None else {int(axis) % rank for axis in array.reshape(-1)}


def _set_axes(node: ir.Node, axes: list[int], names: walk.Names) -> None:
    edit.set_constant(node, 1, np.array(axes, np.int64), names, f"{node.outputs[0].name}_axes")
