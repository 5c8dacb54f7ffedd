"""The part of a model behind a value, to be run with another number in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk


@dataclass(frozen=True)
class Tail:
    """The part of a float model behind a value.

    Attributes:
        model: takes the value, and what else its nodes read from before.
        given: input that takes the value.
        beside: input by name of each other value that is read.
        outputs: name in the float model by name of each output here.
    """

    model: ir.Model
    given: str
    beside: dict[str, str]
    outputs: dict[str, str]


def tail(model: ir.Model, name: str) -> Tail:
    """Cut a float model off in front of a value of its main graph: only what depends on it is left.

    Args:
        model: unchanged.
        name: of the value.
    """
    copy = model.clone()
    graph = copy.graph
    names = walk.Names(copy)
    value = next(v for node in graph for v in node.outputs if v.name == name)
    behind = _dependents(graph, value)
    start = _input_for(graph, names, f"given {name}")
    outputs: dict[str, str] = {}
    if value.is_graph_output():
        same = ir.Node("", "Identity", [start], outputs=[ir.Value(name=names.value(f"same {name}"))])
        graph.append(same)
        behind.add(id(same))
        outputs[same.outputs[0].name or ""] = name
    ends = [v for v in graph.outputs if v is not value and v.producer() is not None and id(v.producer()) in behind]
    graph.outputs.clear()
    value.replace_all_uses_with(start)
    beside: dict[str, str] = {}
    starts: dict[int, ir.Value] = {}
    for node in list(graph):
        if id(node) not in behind:
            continue
        for inner in (node, *(n for _, body in walk.subgraphs(node) for n in walk.all_nodes(body))):
            for index, read in enumerate(inner.inputs):
                if read is None or read is start or read.is_initializer() or read.graph is not graph:
                    continue
                writer = read.producer()
                if writer is not None and id(writer) in behind:
                    continue
                if id(read) not in starts:
                    starts[id(read)] = _input_for(graph, names, f"given {read.name}", read)
                    beside[read.name or ""] = starts[id(read)].name or ""
                inner.replace_input_with(index, starts[id(read)])
    for end in [*(v for node in graph for v in node.outputs if v.name in outputs), *ends]:
        outputs.setdefault(end.name or "", end.name or "")
        end.shape, end.type = None, None
        graph.outputs.append(end)
    for node in reversed(list(graph)):
        if id(node) not in behind:
            edit.remove_node(node)
    for given in [v for v in graph.inputs if not v.uses()]:  # first: an initializer may be an input too
        graph.inputs.remove(given)
    for constant in list(graph.initializers.values()):
        edit.drop_unused_initializer(constant)
    return Tail(copy, start.name or "", beside, outputs)


def typed(model: ir.Model, dtypes: Mapping[str, np.dtype[Any]]) -> ir.Model:
    """A copy of a model whose values have the element types that they were seen with, where the file says none.

    Args:
        model: unchanged.
        dtypes: by name of the value.
    """
    copy = model.clone()
    for node in copy.graph:
        for value in node.outputs:
            if value.type is None and (dtype := dtypes.get(value.name or "")) is not None:
                with contextlib.suppress(TypeError):  # strings and the like
                    value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
    return copy


def _dependents(graph: ir.Graph, value: ir.Value) -> set[int]:
    """Ids of the nodes of a graph that depend on a value; subgraphs count with the node that holds them."""
    reached = {id(value)}
    found: set[int] = set()
    for node in graph:
        inside = [n for _, body in walk.subgraphs(node) for n in walk.all_nodes(body)]
        if any(id(read) in reached for n in (node, *inside) for read in n.inputs if read is not None):
            found.add(id(node))
            reached.update(id(output) for output in node.outputs)
    return found


def _input_for(graph: ir.Graph, names: walk.Names, base: str, like: ir.Value | None = None) -> ir.Value:
    """A new input of a graph."""
    kind = like.type if like is not None and like.type is not None else ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name=names.value(base), type=kind)
    graph.inputs.append(value)
    return value
