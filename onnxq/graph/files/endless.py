"""What in a model message would never end, or not soon: deep nesting, functions that double, loops without an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import numpy_helper

from onnxq.errors import ModelError

_DEEPEST = 30
"""Subgraphs within subgraphs; protobuf reads 100 messages within messages, and each body takes three."""

_INLINED = 10_000
_INLINED_OF_WRITTEN = 100
"""Nodes that calls of functions may stand for, as a number and for each node that is written."""

_CALLS_DEEP = 200

_TRIPS = 1 << 20
"""Turns of a loop that cannot end before; each takes some microseconds at least."""


def nesting(content: bytes) -> int:
    """How deep subgraphs lie within subgraphs in the bytes of a model, which need not be one; stops early at damage."""
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


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds."""
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def check_depth(graph: onnx.GraphProto, where: str) -> None:
    """Refuse subgraphs that lie deeper within one another than readers of protobuf go.

    Raises:
        ModelError: they do.
    """
    level, depth = [graph], 0
    while level:
        level = [body for one in level for node in one.node for body in bodies(node)]
        depth += bool(level)
        if depth > _DEEPEST:
            raise ModelError(f"{where}: {too_deep(depth)}")


def too_deep(depth: int) -> str:
    """What to say of subgraphs within subgraphs that protobuf does not read."""
    return (
        f"subgraphs of If, Loop or Scan lie more than {_DEEPEST} deep within one another (at least {depth}), and "
        "readers of protobuf stop there, the runtime's too; export the model with fewer levels"
    )


def check_functions(proto: onnx.ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or that together stand for more nodes than can be handled.

    Raises:
        ModelError: names the function, or the number of nodes.
    """
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
            f"{where}: its functions stand for {inlined if inlined < 10**15 else 'more than 10^15'} nodes, written "
            f"out, and {limit} are the most that are taken; export the model without functions that call each other"
        )
    if max(depth.values(), default=0) > _CALLS_DEEP:
        raise ModelError(
            f"{where}: functions call each other more than {_CALLS_DEEP} deep; export it without functions"
        )


def _counted(nodes: Sequence[onnx.NodeProto], known: set[tuple[str, str]]) -> tuple[int, Counter[tuple[str, str]]]:
    """Nodes with those in subgraphs, and the calls of functions among them."""
    count, calls, pending = 0, Counter[tuple[str, str]](), [nodes]
    while pending:
        for node in pending.pop():
            count += 1
            if (node.domain, node.op_type) in known:
                calls[node.domain, node.op_type] += 1
            pending.extend(body.node for body in bodies(node))
    return count, calls


def called(node: onnx.NodeProto) -> str:
    """A node as messages call it: its operator and its name, or what it writes."""
    named = f" '{short(node.name)}'" if node.name else f" that writes '{short(next(iter(node.output), ''))}'"
    return f"{short(node.op_type)}{named}"


def short(name: str) -> str:
    """A name, or the beginning of a long one."""
    return name if len(name) <= 80 else f"{name[:76]} ..."


def check_loops(nodes: Sequence[onnx.NodeProto], constants: Iterable[onnx.TensorProto], where: str) -> None:
    """Refuse a Loop of very many turns whose condition stays what it is.

    Args:
        nodes: of one graph or function.
        constants: its initializers.
        where: what messages call the model.

    Raises:
        ModelError: names the node.
    """
    loops = [node for node in nodes if node.op_type == "Loop" and node.domain in ("", "ai.onnx")]
    if not loops:
        return
    known = {tensor.name: tensor for tensor in constants}
    for node in nodes:
        held = _value_of(node)
        if held is not None and node.output:
            known[node.output[0]] = held
    for node in loops:
        limit, condition = [*node.input[:2], "", ""][:2]
        trips, start = _number(known.get(limit)), _number(known.get(condition))
        if limit and trips is None:
            continue  # found at inference
        if (trips is None or trips > _TRIPS) and start != 0 and all(_stays(body) for body in bodies(node)):
            turns = "without end" if trips is None else f"{int(trips)} times"
            raise ModelError(
                f"{where}: {called(node)} runs {turns} and nothing in its subgraph ends it; the model is damaged, "
                "export it again"
            )


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node."""
    if node.op_type != "Constant":
        return None
    return next((entry.t for entry in node.attribute if entry.name == "value"), None)


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
    if node is not None:
        held = _value_of(node) or held
    return bool(_number(held))
