"""Whether a model message can be what it says, before anything is built from it.

Every name is written once, everything that is read is written, nodes stand in an order in which they can run,
attributes hold what their operator takes, functions end and loops do. What the runtime loads passes; the rest is one
line that says where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxq.errors import ModelError
from onnxq.graph.files.endless import bodies, called, check_depth, check_functions, check_loops, short

_Fields = onnx.AttributeProto

_FIELD_OF: dict[int, str] = {
    _Fields.FLOAT: "f", _Fields.INT: "i", _Fields.STRING: "s", _Fields.TENSOR: "t", _Fields.GRAPH: "g",
    _Fields.SPARSE_TENSOR: "sparse_tensor", _Fields.TYPE_PROTO: "tp", _Fields.FLOATS: "floats", _Fields.INTS: "ints",
    _Fields.STRINGS: "strings", _Fields.TENSORS: "tensors", _Fields.GRAPHS: "graphs",
    _Fields.SPARSE_TENSORS: "sparse_tensors", _Fields.TYPE_PROTOS: "type_protos",
}  # fmt: skip


@dataclass(frozen=True)
class _Scope:
    """A graph or function as its nodes see it."""

    label: str
    versions: dict[str, int]
    calls: frozenset[tuple[str, str]]


def sound(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Check a model message and put its nodes into an order in which they can run.

    Args:
        proto: unchanged.
        where: what messages call the model.

    Returns:
        The message itself, or a copy whose nodes are sorted where they were not: each after what it reads, else in
        the order that they had.

    Raises:
        ModelError: what is wrong, and at which node.
    """
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    calls = frozenset((function.domain, function.name) for function in proto.functions)
    check_depth(proto.graph, where)
    check_functions(proto, where)
    _check_graph(proto.graph, _Scope(where, versions, calls), frozenset())
    for function in proto.functions:
        own = versions | {entry.domain: entry.version for entry in function.opset_import}
        scope = _Scope(f"{where}: function '{function.name}'", own, calls)
        _check_names(function.input, scope, "is twice among its inputs")
        _check_nodes(function.node, set(function.input), function.output, scope)
        check_loops(function.node, (), scope.label)
    if all(_is_sorted(nodes) for nodes in _node_lists(proto)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for nodes in _node_lists(copy):
        if not _is_sorted(nodes):
            ordered = _in_order(nodes, where)
            del nodes[:]
            nodes.extend(ordered)
    return copy


def _node_lists(proto: onnx.ModelProto) -> Iterator[Any]:
    """The nodes of every graph, body and function, inner ones last."""
    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    while pending:
        nodes = pending.pop()
        yield nodes
        pending.extend(body.node for node in nodes for body in bodies(node))


def _check_graph(graph: onnx.GraphProto, scope: _Scope, outer: frozenset[str]) -> None:
    inputs = [value.name for value in graph.input]
    _check_names(inputs, scope, "is twice among the inputs of a graph")
    given = {*inputs, *(tensor.name for tensor in graph.initializer)}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    _check_nodes(graph.node, given, [value.name for value in graph.output], scope, outer)
    check_loops(graph.node, graph.initializer, scope.label)


def _check_names(names: Sequence[str], scope: _Scope, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"{scope.label}: value '{short(name)}' {what}; export the model again")
        seen.add(name)


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    given: set[str],
    outputs: Sequence[str],
    scope: _Scope,
    outer: frozenset[str] = frozenset(),
) -> None:
    """Check names, attributes and subgraphs of the nodes of one graph or function."""
    known = set(given)
    for node in nodes:
        for name in filter(None, node.output):
            if name in known:
                raise ModelError(
                    f"{scope.label}: value '{short(name)}' is written twice, the second time by {called(node)}; "
                    "export the model again"
                )
            known.add(name)
    visible = outer | known
    for node in nodes:
        for name in filter(None, node.input):
            if name not in visible:
                raise ModelError(
                    f"{scope.label}: {called(node)} reads '{short(name)}', which nothing writes; export it again"
                )
        _check_attributes(node, scope)
        for body in bodies(node):
            _check_graph(body, scope, visible)
    for name in outputs:
        if name not in known:
            raise ModelError(f"{scope.label}: output '{short(name)}' is written by nothing; export the model again")


def _check_attributes(node: onnx.NodeProto, scope: _Scope) -> None:
    schema = _schema(node, scope)
    _check_names(
        [attribute.name for attribute in node.attribute], scope, f"is twice among attributes of {called(node)}"
    )
    for attribute in node.attribute:
        what = f"{scope.label}: attribute '{short(attribute.name)}' of {called(node)}"
        if attribute.ref_attr_name:
            continue
        field = _FIELD_OF.get(attribute.type)
        if field is None:
            raise ModelError(f"{what} has no type; the model is damaged, export it again")
        held = {descriptor.name for descriptor, _ in attribute.ListFields()} & set(_FIELD_OF.values())
        if held - {field}:
            raise ModelError(
                f"{what} says that it is {_type(attribute.type)} and holds something else; the model is damaged, "
                "export it again"
            )
        wanted = schema.attributes.get(attribute.name) if schema is not None else None
        if wanted is not None and _number_of(wanted) != attribute.type:
            raise ModelError(
                f"{what} is {_type(attribute.type)}, the operator takes {_type(_number_of(wanted))}; export it again"
            )
    if schema is None:
        return
    for kind, names, low, high in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not low <= len(names) <= high:
            bound = f"at least {low}" if len(names) < low else f"at most {high}"
            raise ModelError(
                f"{scope.label}: {called(node)} has {len(names)} {kind}, and takes {bound}; export it again"
            )


def _schema(node: onnx.NodeProto, scope: _Scope) -> onnx.defs.OpSchema | None:
    """What the operator takes; None for one of a domain, or a version, that onnx does not know."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = scope.versions.get(domain, scope.versions.get("ai.onnx") if domain == "" else None)
    if version is None or (node.domain, node.op_type) in scope.calls or not 0 < version < 1 << 31:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, version, domain)
    except Exception:  # onnx's own error class has moved between versions
        return None


def _number_of(attribute: Any) -> int:
    """Number of the type that a schema gives an attribute; onnx's own annotations do not know it."""
    return int(attribute.type.value)


def _type(number: int) -> str:
    name = _Fields.AttributeType.Name(number).lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _is_sorted(nodes: Sequence[onnx.NodeProto]) -> bool:
    written = {name for node in nodes for name in node.output}
    for node in nodes:
        if any(name in written for name in _reads(node)):  # still to come
            return False
        written.difference_update(node.output)
    return True


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, what its subgraphs take from outside included."""
    found = set(filter(None, node.input))
    for body in bodies(node):
        inner = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        inner |= {name for entry in body.node for name in entry.output}
        reads = {value.name for value in body.output}.union(*(_reads(entry) for entry in body.node))
        found |= reads - inner
    return found


def _in_order(nodes: Sequence[onnx.NodeProto], where: str) -> list[onnx.NodeProto]:
    """The nodes, each after those whose outputs it reads, else in their order."""
    import heapq

    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in _reads(node) if name in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, wanted in enumerate(needs):
        for other in wanted:
            readers[other].append(index)
    ready = [index for index, wanted in enumerate(needs) if not wanted]
    missing = [len(wanted) for wanted in needs]
    heapq.heapify(ready)
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[index])
        ordered.append(copy)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        node = nodes[next(index for index, count in enumerate(missing) if count)]
        raise ModelError(f"{where}: {called(node)} needs its own result, through a cycle of nodes; export it again")
    return ordered
