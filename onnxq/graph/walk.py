"""Look at graphs: nodes with their subgraphs, constants, consumers, attributes; and hand out names that are free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import traits

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Element types of real numbers that ordinary kernels compute in."""


_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def subgraphs(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The subgraphs a node holds (If, Loop, Scan), each with the name of its attribute."""
    found: list[tuple[str, ir.Graph]] = []
    for attribute in node.attributes.data.values():  # the plain dict: this is asked of every node, again and again
        kind = attribute.type
        if kind not in _BODIES or attribute.is_ref():
            continue
        if kind == ir.AttributeType.GRAPH:
            found.append((attribute.name, attribute.as_graph()))
        else:
            found.extend((f"{attribute.name}[{i}]", graph) for i, graph in enumerate(attribute.as_graphs()))
    return found


def nodes_with_path(graph: ir.Graph, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ir.Node]]:
    """Every node, outer before inner, with where it is.

    Yields:
        (path, node): the path is empty in ``graph`` itself and grows by ``"<node name>.<attribute>"`` with each body
        entered. The nodes of one graph are listed when iteration enters it, so a caller may change the graph.
    """
    for node in list(graph):
        yield path, node
        for attribute, body in subgraphs(node):
            yield from nodes_with_path(body, (*path, f"{node.name}.{attribute}"))


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every node of a graph and of all subgraphs inside it, outer before inner."""
    for _, node in nodes_with_path(graph):
        yield node


def nodes_to_rewrite(model: ir.Model, op_type: str) -> Iterator[ir.Node]:
    """Nodes of an ONNX operator in the whole model, for a pass that rewrites while it looks.

    A node that an earlier rewrite took out of its graph is left out; those that it put in are not seen.
    """
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            if node.graph is graph and node.op_type == op_type and node.domain == "":
                yield node


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all subgraphs inside it, outer before inner."""
    yield graph
    for node in list(graph):
        for _, body in subgraphs(node):
            yield from all_graphs(body)


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and node outputs of a graph and of all subgraphs inside it; each once."""
    for scope in all_graphs(graph):
        yield from scope.inputs
        yield from (value for value in scope.initializers.values() if not value.is_graph_input())
        for node in scope:
            yield from node.outputs


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that no caller can override, or the output of a Constant node."""
    if value is None:
        return False
    producer = value.producer()
    if producer is not None:
        return producer.op_type == "Constant" and producer.domain == "" and _constant_tensor(producer) is not None
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def const_array(value: ir.Value | None) -> Array | None:
    """The contents of a constant (see `is_constant`), not to be written to; None for anything else."""
    if value is None or not is_constant(value):
        return None
    producer = value.producer()
    tensor = value.const_value if producer is None else _constant_tensor(producer)
    if tensor is None or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return tensor.numpy()


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    attribute = next(iter(node.attributes.values()))
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return tensor_of(attribute)
        case "value_float":
            return ir.tensor(attribute.as_float(), dtype=ir.DataType.FLOAT)
        case "value_floats":
            return ir.tensor(attribute.as_floats(), dtype=ir.DataType.FLOAT)
        case "value_int":
            return ir.tensor(attribute.as_int(), dtype=ir.DataType.INT64)
        case "value_ints":
            return ir.tensor(attribute.as_ints(), dtype=ir.DataType.INT64)
    return None


def tensor_of(attribute: ir.Attr) -> ir.TensorProtocol | None:
    """The tensor that an attribute holds; None where it holds something else.

    ``as_tensor`` checks a protocol of many members each time, which takes half of loading a large graph.
    """
    found: ir.TensorProtocol | None = attribute.value if attribute.type == ir.AttributeType.TENSOR else None
    return found


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the value, those in subgraphs that capture it among them; each once."""
    return list(value.consumers())


def constants_to_quantize(model: ir.Model) -> int:
    """How many constants a QuantizeLinear reads: weights of a model from quantization-aware training."""
    return sum(
        node.op_type == "QuantizeLinear" and bool(node.inputs) and is_constant(node.inputs[0])
        for node in all_nodes(model.graph)
    )


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, once; None where there are more, or where it is an output of a graph."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is known to hold real numbers (float16, bfloat16, float32, float64)."""
    return value is not None and value.dtype in FLOATS


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions; None where it is not known."""
    return None if value is None or value.shape is None else value.shape.rank()


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape, with None for each dimension that is not a fixed number; None where the rank is not known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def opset(graph_or_model: ir.Graph | ir.Model) -> int:
    """Version of the default ONNX operator set that the model imports."""
    return graph_or_model.opset_imports.get("", 1)


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attr_int(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute or its default."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_int()


def attr_float(node: ir.Node, name: str, default: float = 0.0) -> float:
    """A float attribute or its default."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_float()


def attr_str(node: ir.Node, name: str, default: str = "") -> str:
    """A string attribute or its default."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_string()


def outputs_first(node: ir.Node) -> bool:
    """Whether the weight of a Gemm (input 1) lies as (outputs, inputs); that of a MatMul has its inputs first."""
    return node.op_type in ("Gemm", "QGemm", "FusedGemm") and attr_int(node, "transB") != 0


def attr_ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """A list-of-integers attribute or its default."""
    attribute = _attribute(node, name)
    return tuple(default) if attribute is None else tuple(attribute.as_ints())


def attr_floats(node: ir.Node, name: str, default: Sequence[float] = ()) -> tuple[float, ...]:
    """A list-of-floats attribute or its default."""
    attribute = _attribute(node, name)
    return tuple(default) if attribute is None else tuple(attribute.as_floats())


def _attribute(node: ir.Node, name: str) -> ir.Attr | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else attribute


class Names:
    """Names of values and nodes that are free in the whole model, subgraphs included.

    ONNX lets a body see the names outside it, so a name is free only if no graph of the model uses it.
    """

    def __init__(self, model: ir.Model | ir.Graph) -> None:
        graph = model.graph if isinstance(model, ir.Model) else model
        self._values = {value.name for value in all_values(graph) if value.name}
        self._nodes = {node.name for node in all_nodes(graph) if node.name}

    def value(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2``, …; taken from now on."""
        return _claim(base or "value", self._values)

    def node(self, base: str) -> str:
        """The same for a node's name."""
        return _claim(base or "node", self._nodes)


def _claim(base: str, taken: set[str]) -> str:
    name, n = base, 0
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name


def unique_name(model: ir.Model | ir.Graph, base: str) -> str:
    """A value name that nothing in the model uses yet; for many at once keep one `Names`."""
    return Names(model).value(base)


def is_turned_and_reshaped(node: ir.Node) -> bool:
    """Whether a Transpose moves the channels of what a node writes, and another shape is given to that right behind."""
    for turn in consumers(node.outputs[0]):
        order = attr_ints(turn, "perm") if turn.op_type == "Transpose" else ()
        if order and order[-1] != len(order) - 1:
            return any(user.op_type in traits.RESHAPING for user in consumers(turn.outputs[0]))
    return False
