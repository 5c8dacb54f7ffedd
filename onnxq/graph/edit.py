"""Small changes to a graph that keep its invariants: names, outputs and the other readers of a value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk


def copy_of(model: ir.Model) -> ir.Model:
    """A copy that also knows what was noted of the model, such as what its file declared; weights are shared."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant to a graph.

    Args:
        graph: the graph that holds it; it is visible in the subgraphs inside too.
        name: a name that is free in the whole model (see `onnxq.graph.walk.Names`).
        array: its contents; not copied.
        dtype: ONNX element type; None takes the array's.
    """
    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape, frozen=True), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand for ``old`` everywhere: it gets its name, its readers and its place among the graph's outputs.

    Where ``old`` is a graph output, ``new`` must be allowed to be one (see `can_be_output`).
    """
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        new.shape = old.shape
    new.metadata_props.update(old.metadata_props)


def put_behind(value: ir.Value, node: ir.Node, names: walk.Names, base: str) -> None:
    """Put a node that reads a value right behind it: what it gives stands for the value everywhere else.

    Args:
        value: not without a producer; its shape and type go to what the node gives.
        node: not yet in a graph; its first input is the value.
        names: names in use.
        base: the value's name from here on, or what it begins with.
    """
    producer = value.producer()
    assert producer is not None and producer.graph is not None
    producer.graph.insert_after(producer, node)
    take_over(value, node.outputs[0])
    node.replace_input_with(0, value)  # it was among the readers
    value.name = names.value(base)


def axes_node(
    graph: ir.Graph, op_type: str, value: ir.Value, axes: Sequence[int], names: walk.Names, *, name: str, gives: str
) -> ir.Node:
    """A Squeeze or Unsqueeze of operator set 13 or later, not yet in the graph.

    Args:
        graph: holds the constant with the axes.
        op_type: which of them.
        value: what it reads.
        axes: taken out or put in.
        names: names in use.
        name: of the node, or what it begins with.
        gives: of its output, likewise.
    """
    given = add_initializer(graph, names.value(f"{value.name}_axes"), np.array(axes, np.int64))
    node = ir.Node("", op_type, [value, given], num_outputs=1, name=names.node(name))
    node.outputs[0].name, node.outputs[0].type = names.value(gives), value.type
    return node


def can_be_output(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether the value may take over the name of an output of ``graph``: made by a node of it, no output yet."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def remove_node(node: ir.Node) -> None:
    """Take a node whose outputs nothing reads any more out of its graph; its subgraphs read no outer values either."""
    graph = node.graph
    assert graph is not None
    for _, body in walk.subgraphs(node):
        for inner in walk.all_nodes(body):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    graph.remove(node, safe=True)


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Set an input, growing the list of inputs where it is too short."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def set_constant(node: ir.Node, index: int, array: Array, names: walk.Names, base: str) -> ir.Value:
    """Give a node its own constant at an input.

    An initializer that nothing else reads keeps its name and gets the new contents; otherwise one is added and the
    other readers keep what they have.

    Args:
        node: the reader.
        index: the input.
        array: the new contents; not copied.
        names: the model's names.
        base: name of an initializer that has to be added, made unique.
    """
    graph = node.graph
    assert graph is not None
    old = walk.input_at(node, index)
    if old is not None and old.is_initializer() and not old.is_graph_input() and walk.only_use(old) is node:
        set_contents(old, array)
        return old
    value = add_initializer(graph, names.value(base), array)
    set_input(node, index, value)
    return value


def set_contents(value: ir.Value, array: Array) -> None:
    """Give an initializer other contents, for all its readers; the array is not copied."""
    value.const_value = ir.Tensor(array, name=value.name)
    value.shape, value.type = ir.Shape(array.shape, frozen=True), ir.TensorType(value.const_value.dtype)


def drop_unused_initializer(value: ir.Value | None) -> bool:
    """Remove an initializer from its graph if nothing reads it; returns whether it did."""
    if value is None or not value.is_initializer() or value.uses() or value.is_graph_output() or value.is_graph_input():
        return False
    graph = value.graph
    assert graph is not None and value.name is not None
    del graph.initializers[value.name]
    return True


def multiply_by(main: ir.Graph, value: ir.Value, factors: Array, names: walk.Names, base: str) -> ir.Value:
    """Add a node that multiplies a value by a constant, right behind where the value comes from.

    Args:
        main: the main graph, which gets the constant.
        value: made by a node, or input of a graph; its readers stay as they are.
        factors: the constant; broadcasts against the value.
        names: the model's names.
        base: name of node, output and constant, made unique.

    Returns:
        The product.
    """
    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    assert graph is not None
    constant = add_initializer(main, names.value(f"{base}.factors"), factors)
    node = ir.Node("", "Mul", [value, constant], name=names.node(base), num_outputs=1)
    product = node.outputs[0]
    product.name, product.type, product.shape = names.value(base), value.type, value.shape
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return product
