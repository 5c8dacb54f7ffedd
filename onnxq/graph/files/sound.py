"""Whether a model message can be what it says, before anything is built from it.

Every name is written once, everything that is read is written, nodes stand in an order in which they can run,
attributes hold what their operator takes, functions end and loops do. What the runtime loads passes; the rest is one
line that says where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from onnxq.errors import ModelError

_Fields = onnx.AttributeProto

_FIELD_OF: dict[int, str] = {
    _Fields.FLOAT: "f", _Fields.INT: "i", _Fields.STRING: "s", _Fields.TENSOR: "t", _Fields.GRAPH: "g",
    _Fields.SPARSE_TENSOR: "sparse_tensor", _Fields.TYPE_PROTO: "tp", _Fields.FLOATS: "floats", _Fields.INTS: "ints",
    _Fields.STRINGS: "strings", _Fields.TENSORS: "tensors", _Fields.GRAPHS: "graphs",
    _Fields.SPARSE_TENSORS: "sparse_tensors", _Fields.TYPE_PROTOS: "type_protos",
}  # fmt: skip

_DEEPEST = 30
"""Bodies within bodies; protobuf reads 100 messages within messages, and each body takes three."""

_INLINED = 10_000
_INLINED_OF_WRITTEN = 100
"""Nodes that calls of functions may stand for, as a number and for each node that is written."""

_CALLS_DEEP = 200

_TRIPS = 1 << 20
"""Turns of a loop that cannot end before; each takes some microseconds at least."""


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
    _check_depth(proto.graph, where)
    _check_functions(proto, where)
    _check_graph(proto.graph, _Scope(where, versions, calls), frozenset())
    for function in proto.functions:
        own = versions | {entry.domain: entry.version for entry in function.opset_import}
        scope = _Scope(f"{where}: function '{function.name}'", own, calls)
        _check_names(function.input, scope, "is twice among its inputs")
        _check_nodes(function.node, set(function.input), function.output, scope)
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


def nesting(content: bytes) -> int:
    """How deep bodies lie within bodies in the bytes of a model, which need not be one; stops early at damage."""
    path = {0: 7, 1: 1, 2: 5}  # model → graph → node → attribute → graph (6) or graphs (11) → node …
    pending, deepest = [(0, len(content), 0, 0)], 0
    while pending:
        start, end, kind, depth = pending.pop()
        deepest = max(deepest, depth)
        wanted = (path[kind],) if kind in path else (6, 11)
        for field, low, high in _fields(content, start, end):
            if field in wanted:
                pending.append((low, high, 1, depth + 1) if kind in (0, 3) else (low, high, kind + 1, depth))
    return max(deepest - 1, 0)


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and place of each field of a message that has a length."""
    place = start
    while place < end:
        tag, place = _varint(content, place, end)
        match tag & 7:
            case 0:
                _, place = _varint(content, place, end)
            case 1:
                place += 8
            case 5:
                place += 4
            case 2:
                length, place = _varint(content, place, end)
                if length > end - place:
                    return
                yield tag >> 3, place, place + length
                place += length
            case _:
                return


def _varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if place >= end:
            return number, end
        byte = content[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
    return number, place


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = []
    for attribute in node.attribute:
        if attribute.type == _Fields.GRAPH:
            found.append(attribute.g)
        elif attribute.type == _Fields.GRAPHS:
            found.extend(attribute.graphs)
    return found


def _node_lists(proto: onnx.ModelProto) -> Iterator[Sequence[onnx.NodeProto]]:
    """The nodes of every graph, body and function, inner ones last."""
    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    while pending:
        nodes = pending.pop()
        yield nodes
        pending.extend(body.node for node in nodes for body in _bodies(node))


def _check_depth(graph: onnx.GraphProto, where: str) -> None:
    level, depth = [graph], 0
    while level:
        level = [body for one in level for node in one.node for body in _bodies(node)]
        depth += bool(level)
        if depth > _DEEPEST:
            raise ModelError(f"{where}: {too_deep(depth)}")


def too_deep(depth: int) -> str:
    """What to say of bodies within bodies that protobuf does not read."""
    return (
        f"bodies of If, Loop or Scan lie more than {_DEEPEST} deep within one another (at least {depth}), and readers "
        "of protobuf stop there, the runtime's too; export the model with fewer levels"
    )


def _check_functions(proto: onnx.ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or that together stand for more nodes than can be handled."""
    callees: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    own: dict[tuple[str, str], int] = {}
    known = {(function.domain, function.name) for function in proto.functions}
    for function in proto.functions:
        key = (function.domain, function.name)
        if key in own:
            raise ModelError(f"{where}: function '{function.name}' is there twice; export the model again")
        own[key], callees[key] = _counted(function.node, known)
    written, called = _counted(proto.graph.node, known)
    total: dict[tuple[str, str], int] = {}
    depth: dict[tuple[str, str], int] = {}
    waiting = {key: len(calls) for key, calls in callees.items()}
    callers: dict[tuple[str, str], list[tuple[str, str]]] = {key: [] for key in callees}
    for key, calls in callees.items():
        for callee in calls:
            callers[callee].append(key)
    ready = [key for key, count in waiting.items() if not count]
    while ready:
        key = ready.pop()
        total[key] = own[key] + sum(count * total[callee] for callee, count in callees[key].items())
        depth[key] = 1 + max((depth[callee] for callee in callees[key]), default=0)
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    stuck = [key for key in callees if key not in total]
    if stuck:
        raise ModelError(f"{where}: function '{stuck[0][1]}' calls itself, directly or through others; export it again")
    limit = _INLINED + _INLINED_OF_WRITTEN * (written + sum(own.values()))
    inlined = written + sum(count * total[callee] for callee, count in called.items())
    if inlined > limit:
        raise ModelError(
            f"{where}: its functions stand for {inlined if inlined < 10**15 else 'more than 10^15'} nodes, written out, "
            f"and {limit} are the most that are taken; export the model without functions that call each other"
        )
    if max(depth.values(), default=0) > _CALLS_DEEP:
        raise ModelError(f"{where}: functions call each other more than {_CALLS_DEEP} deep; export it without functions")


def _counted(
    nodes: Sequence[onnx.NodeProto], known: set[tuple[str, str]]
) -> tuple[int, Counter[tuple[str, str]]]:
    """Nodes with those in bodies, and the calls of functions among them."""
    count, calls, pending = 0, Counter[tuple[str, str]](), [nodes]
    while pending:
        for node in pending.pop():
            count += 1
            if (node.domain, node.op_type) in known:
                calls[node.domain, node.op_type] += 1
            pending.extend(body.node for body in _bodies(node))
    return count, calls


def _check_graph(graph: onnx.GraphProto, scope: _Scope, outer: frozenset[str]) -> None:
    inputs = [value.name for value in graph.input]
    _check_names(inputs, scope, "is twice among the inputs of a graph")
    given = {*inputs, *(tensor.name for tensor in graph.initializer)}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    _check_nodes(graph.node, given, [value.name for value in graph.output], scope, outer)
    _check_loops(graph, scope)


def _check_names(names: Sequence[str], scope: _Scope, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"{scope.label}: value '{_short(name)}' {what}; export the model again")
        seen.add(name)


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    given: set[str],
    outputs: Sequence[str],
    scope: _Scope,
    outer: frozenset[str] = frozenset(),
) -> None:
    """Check names, attributes and bodies of the nodes of one graph or function."""
    known = set(given)
    for node in nodes:
        for name in filter(None, node.output):
            if name in known:
                raise ModelError(
                    f"{scope.label}: value '{_short(name)}' is written twice, the second time by {_called(node)}; "
                    "export the model again"
                )
            known.add(name)
    visible = outer | known
    for node in nodes:
        for name in filter(None, node.input):
            if name not in visible:
                raise ModelError(
                    f"{scope.label}: {_called(node)} reads '{_short(name)}', which nothing writes; export it again"
                )
        _check_attributes(node, scope)
        for body in _bodies(node):
            _check_graph(body, scope, visible)
    for name in outputs:
        if name not in visible:
            raise ModelError(f"{scope.label}: output '{_short(name)}' is written by nothing; export the model again")


def _check_attributes(node: onnx.NodeProto, scope: _Scope) -> None:
    schema = _schema(node, scope)
    _check_names([attribute.name for attribute in node.attribute], scope, f"is twice among attributes of {_called(node)}")
    for attribute in node.attribute:
        what = f"{scope.label}: attribute '{_short(attribute.name)}' of {_called(node)}"
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
        if wanted is not None and int(wanted.type.value) != attribute.type:
            raise ModelError(
                f"{what} is {_type(attribute.type)}, the operator takes {_type(wanted.type.value)}; export it again"
            )
    if schema is None:
        return
    for kind, names, low, high in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not low <= len(names) <= high:
            bound = f"at least {low}" if len(names) < low else f"at most {high}"
            raise ModelError(f"{scope.label}: {_called(node)} has {len(names)} {kind}, and takes {bound}; export it again")


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


def _type(number: int) -> str:
    return f"a {_Fields.AttributeType.Name(number).lower()}"


def _called(node: onnx.NodeProto) -> str:
    named = f" '{_short(node.name)}'" if node.name else f" that writes '{_short(next(iter(node.output), ''))}'"
    return f"{_short(node.op_type)}{named}"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:76]} ..."


def _check_loops(graph: onnx.GraphProto, scope: _Scope) -> None:
    """Refuse a Loop of very many turns whose condition stays what it is."""
    loops = [node for node in graph.node if node.op_type == "Loop" and node.domain in ("", "ai.onnx")]
    if not loops:
        return
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {node.output[0]: entry.t for entry in node.attribute if entry.name == "value" and entry.t.dims}
            constants |= {node.output[0]: entry.t for entry in node.attribute if entry.name == "value"}
    for node in loops:
        trips, start = (_number(constants.get(name)) if name else None for name in [*node.input[:2], "", ""][:2])
        if node.input[0] and trips is None:
            continue  # found at inference
        if (trips is None or trips > _TRIPS) and start != 0 and all(_stays(body) for body in _bodies(node)):
            turns = "without end" if trips is None else f"{int(trips)} times"
            raise ModelError(
                f"{scope.label}: {_called(node)} runs {turns} and nothing in its body ends it; the model is damaged, "
                "export it again"
            )


def _number(tensor: onnx.TensorProto | None) -> float | None:
    if tensor is None:
        return None
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:  # damaged; said of it where tensors are read
        return None
    return array.reshape(-1)[0] if array.size == 1 and array.dtype.kind in "iub" else None


def _stays(body: onnx.GraphProto) -> bool:
    """Whether the condition that a body of a Loop hands on is the one it was given, or always true."""
    if len(body.input) < 2 or not body.output:
        return False
    made = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while (node := made.get(name)) is not None and node.op_type in ("Identity", "Cast") and node.input:
        made.pop(name)
        name = node.input[0]
    if name == body.input[1].name:
        return True
    held = {tensor.name: tensor for tensor in body.initializer}.get(name)
    if node is not None and node.op_type == "Constant":
        held = next((entry.t for entry in node.attribute if entry.name == "value"), held)
    return bool(_number(held))


def _is_sorted(nodes: Sequence[onnx.NodeProto]) -> bool:
    written = {name for node in nodes for name in node.output}
    for node in nodes:
        if any(name in written for name in _reads(node)):  # still to come
            return False
        written.difference_update(node.output)
    return True


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, what its bodies take from outside included."""
    found = set(filter(None, node.input))
    for body in _bodies(node):
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
        raise ModelError(f"{where}: {_called(node)} needs its own result, through a cycle of nodes; export it again")
    return ordered
