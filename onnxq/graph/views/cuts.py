"""A model cut into runs of nodes, one after the other, so that samples can be taken through it step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk


@dataclass(frozen=True)
class Segment:
    """What has to be computed for a value, once those before it are there.

    Attributes:
        value: the value.
        nodes: places of its nodes in the main graph.
        reads: values of earlier segments that it reads.
        gives: values that it computes and that are wanted: ``value``, and what later segments read.
        keeps: values, of this segment or of earlier ones, that later segments still read.
    """

    value: str
    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    keeps: tuple[str, ...]


def segments_of(model: ir.Model, values: Sequence[str]) -> list[Segment]:
    """Cut a model at values, each of whose segments computes what no earlier one did.

    Args:
        model: unchanged.
        values: names of values of the main graph, none of which depends on a later one; inputs have empty segments.
    """
    nodes = list(model.graph)
    place = {id(output): index for index, node in enumerate(nodes) for output in node.outputs}
    names = {output.name: output for node in nodes for output in node.outputs if output.name}
    reads = [_read_by(node) for node in nodes]
    stage_of: dict[int, int] = {}
    parts: list[tuple[set[int], set[str]]] = []
    for stage, name in enumerate(values):
        mine: set[int] = set()
        before: set[str] = set()
        waiting = [names[name]] if name in names else []
        while waiting:
            value = waiting.pop()
            index = place.get(id(value))
            if index is None or index in mine:
                continue
            if index in stage_of:
                before.add(value.name or "")
            else:
                mine.add(index)
                waiting += reads[index]
        stage_of |= dict.fromkeys(mine, stage)
        parts.append((mine, before))
    found: list[Segment] = []
    for stage, name in enumerate(values):
        mine, before = parts[stage]
        later = set().union(*(read for _, read in parts[stage + 1 :]))
        keeps = {value for value in later if stage_of[place[id(names[value])]] <= stage}
        made = {output.name for index in mine for output in nodes[index].outputs if output.name}
        gives = made & (keeps | {name})
        reads_here = before if mine else set()
        ordered = (tuple(sorted(each)) for each in (reads_here, gives, keeps))
        found.append(Segment(name, tuple(sorted(mine)), *ordered))
    return found


def segment_model(
    model: ir.Model,
    segment: Segment,
    constants: Mapping[str, tuple[int, Array]],
    dtypes: Mapping[str, np.dtype[Any]],
) -> tuple[ir.Model, dict[str, str]]:
    """A model of one segment, which takes the values that it reads.

    Args:
        model: unchanged; weights are shared with it.
        segment: of ``segments_of(model, …)``.
        constants: by name of a node, another constant for one of its inputs.
        dtypes: element types of the values that it reads.

    Returns:
        The model, and its input by name of each value that it reads.
    """
    copy = model.clone()
    graph = copy.graph
    names = walk.Names(copy)
    chosen = set(segment.nodes)
    nodes = list(graph)
    made = {output.name: output for node in nodes for output in node.outputs if output.name}
    for index in segment.nodes:
        changed = constants.get(nodes[index].name or "")
        if changed is not None:
            edit.set_constant(nodes[index], *changed, names, f"{nodes[index].name}.rounded")
    graph.outputs.clear()
    inputs: dict[str, str] = {}
    for name in segment.reads:
        kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtypes[name])))
        given = ir.Value(name=names.value(f"given {name}"), type=kind)
        made[name].replace_all_uses_with(given)
        graph.inputs.append(given)
        inputs[name] = given.name or ""
    for name in segment.gives:
        made[name].shape, made[name].type = None, None
        graph.outputs.append(made[name])
    for index in reversed(range(len(nodes))):
        if index not in chosen:
            edit.remove_node(nodes[index])
    for constant in list(graph.initializers.values()):
        edit.drop_unused_initializer(constant)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return copy, inputs


def _read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its subgraphs included."""
    inside: Iterable[ir.Node] = (inner for _, body in walk.subgraphs(node) for inner in walk.all_nodes(body))
    return [value for each in (node, *inside) for value in each.inputs if value is not None]
