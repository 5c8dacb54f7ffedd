"""A graph as plain data, for packages that do not know onnx; and constants put back into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk

ELEMENT_TYPES: dict[int, str] = {int(dtype): dtype.name.lower() for dtype in ir.DataType}
"""Names of the element types that attributes such as Cast's ``to`` give by number."""


@dataclass(frozen=True)
class PlainNode:
    """One node.

    Attributes:
        index: its place among the graph's nodes.
        name: its name; may be empty.
        op_type: the operator.
        domain: its domain, empty for ONNX's own.
        opset: the version of that domain which the model imports.
        inputs: names of the values that it reads; empty where one is left out.
        outputs: names of the values that it gives; empty where one is left out.
        attributes: numbers, strings, lists of them and arrays, by name.
        bodies: whether it holds graphs (If, Loop, Scan); they are not handed out.
        captured: outer values that its subgraphs read.
    """

    index: int
    name: str
    op_type: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    bodies: bool = False
    captured: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlainGraph:
    """A graph without its subgraphs.

    Attributes:
        inputs: names of what a caller feeds.
        outputs: names of the results.
        nodes: in an order in which they can run, without Constant.
        constants: initializers and outputs of Constant by name; types that numpy lacks are those of ml_dtypes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[PlainNode, ...]
    constants: dict[str, Array]


def limits_behind(graph: PlainGraph) -> dict[str, tuple[float, float]]:
    """Smallest and largest integer of quantized values that a Clip holds within fewer steps than their type has.

    Both the value in front of the Clip and the one behind it are named.
    """
    found: dict[str, tuple[float, float]] = {}
    quantized = {name for node in graph.nodes if node.op_type == "QuantizeLinear" for name in node.outputs}
    for node in graph.nodes:
        ends = [graph.constants.get(name) for name in node.inputs[1:3]]
        if node.op_type == "Clip" and node.inputs[0] in quantized and len(ends) == 2:
            low, high = (float(end.reshape(-1)[0]) if end is not None and end.size == 1 else None for end in ends)
            if low is not None and high is not None:
                found |= dict.fromkeys((node.inputs[0], node.outputs[0]), (low, high))
    return found


def plain_graph(model: ir.Model) -> PlainGraph:
    """Hand out the main graph of a model; its arrays are not to be written to."""
    graph = model.graph
    constants: dict[str, Array] = {}
    nodes = []
    for value in graph.initializers.values():
        array = walk.const_array(value)
        if value.name and array is not None:
            constants[value.name] = array
    for index, node in enumerate(graph):
        constant = walk.const_array(node.outputs[0]) if node.op_type == "Constant" and node.domain == "" else None
        if constant is not None:
            constants[node.outputs[0].name or ""] = constant
            continue
        bodies = walk.subgraphs(node)
        nodes.append(
            PlainNode(
                index,
                node.name or "",
                node.op_type,
                "" if node.domain == "ai.onnx" else node.domain,
                graph.opset_imports.get(node.domain, 1),
                tuple("" if value is None else value.name or "" for value in node.inputs),
                tuple(value.name or "" for value in node.outputs),
                {name: plain for name, attr in node.attributes.items() if (plain := _plain(attr)) is not None},
                bool(bodies),
                tuple(_captured(node)) if bodies else (),
            )
        )
    inputs = tuple(value.name or "" for value in graph.inputs if value.name not in constants)
    return PlainGraph(inputs, tuple(value.name or "" for value in graph.outputs), tuple(nodes), constants)


def _plain(attribute: ir.Attr) -> Any:
    if attribute.is_ref():
        return None
    match attribute.type:
        case ir.AttributeType.INT | ir.AttributeType.FLOAT | ir.AttributeType.STRING:
            return attribute.value
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
            return list(attribute.value)
        case ir.AttributeType.TENSOR:
            tensor = walk.tensor_of(attribute)
            return None if tensor is None else tensor.numpy()
    return None


def _captured(node: ir.Node) -> list[str]:
    """Values from outside that the subgraphs of a node read."""
    inside = {id(value) for _, body in walk.subgraphs(node) for value in walk.all_values(body)}
    found: dict[str, None] = {}
    for _, body in walk.subgraphs(node):
        read = [value for inner in walk.all_nodes(body) for value in inner.inputs]
        for scope in walk.all_graphs(body):
            read += list(scope.outputs)
        for value in read:
            if value is not None and id(value) not in inside and value.name:
                found[value.name] = None
    return list(found)


def replace_constants(model: ir.Model, changed: Mapping[tuple[int, int], tuple[str, Array]]) -> None:
    """Give nodes of the main graph other constants, in place.

    Args:
        model: the model that `plain_graph` read, unchanged since.
        changed: by (index of a node, position of an input): a key and the array. Inputs of one key share an
            initializer, under the old one's name where nothing else reads that.
    """
    nodes, names = list(model.graph), walk.Names(model)
    made: dict[str, ir.Value] = {}
    old: dict[str, ir.Value | None] = {}
    for (index, position), (key, array) in changed.items():
        node = nodes[index]
        before = walk.input_at(node, position)
        if key not in made:
            base = (before.name if before is not None else None) or f"{node.name}_constant"
            made[key] = edit.add_initializer(model.graph, names.value(base), array)
            old[key] = before
        edit.set_input(node, position, made[key])
    for key, before in old.items():
        name = before.name if before is not None else None
        if name and edit.drop_unused_initializer(before):
            value = made[key]
            del model.graph.initializers[value.name or ""]
            value.name = name
            if value.const_value is not None:
                value.const_value.name = name
            model.graph.register_initializer(value)
