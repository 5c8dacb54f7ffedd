"""Take post-processing off: what stands behind the last layers and is no work for an engine of integers."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph import edit, walk
from onnxq.graph.prepare.whole import shapes

POSTPROCESSING = frozenset("Compress If Loop NonMaxSuppression NonZero Scan TopK Unique".split())
"""Operators whose results have sizes that depend on the data, or that choose among them."""

_NAMED = 4


def drop_tail(model: ir.Model, also: Container[str] = ()) -> str:
    """Remove the operators of post-processing and all that depends on them; the model gives what they read instead.

    Inputs of the model stay, those that nothing reads any more too.

    Args:
        model: changed in place.
        also: further operators to cut at.

    Returns:
        What was removed, and what the model gives now, as one line.

    Raises:
        RecipeError: there is no such operator, or nothing would be left.
    """
    graph = model.graph
    cut = [node for node in graph if node.op_type in POSTPROCESSING or node.op_type in also]
    if not cut:
        raise RecipeError("--drop-tail: there is no post-processing in this model; leave it out")
    shapes.infer(model, [], folded=False)  # files seldom say what inner values hold
    gone: dict[int, ir.Node] = {}
    for node in graph:  # in topological order
        inputs = [value.producer() for value in _reads(node)]
        if node in cut or any(source is not None and id(source) in gone for source in inputs):
            gone[id(node)] = node
    kept = [value for value in graph.outputs if id(value.producer()) not in gone]
    read = {id(value): value for node in gone.values() for value in _reads(node)}
    given = [value for node in graph if id(node) not in gone for value in node.outputs if id(value) in read]
    given = [value for value in given if value.dtype == ir.DataType.FLOAT and value not in kept]
    if not given and not kept:
        raise RecipeError(f"--drop-tail: nothing is left in front of {cut[0].op_type} {cut[0].name!r}; leave it out")
    before = [value.name or "" for value in graph.outputs]
    graph.outputs[:] = [*kept, *given]
    for node in reversed(list(gone.values())):
        edit.remove_node(node)
    _drop_idle(graph)
    named = ", ".join(f"{node.op_type} {node.name!r}" for node in cut[:_NAMED])
    more = f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else ""
    now = ", ".join(repr(value.name) for value in graph.outputs)
    lost = ", ".join(repr(name) for name in before if name not in {value.name for value in graph.outputs})
    return f"--drop-tail: {len(gone)} nodes from {named}{more} on were removed; the model gives {now} instead of {lost}"


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node and its subgraphs read."""
    inside = [inner for _, body in walk.subgraphs(node) for inner in walk.all_nodes(body)]
    return [value for each in (node, *inside) for value in each.inputs if value is not None]


def _drop_idle(graph: ir.Graph) -> None:
    """Remove nodes of which nothing is read any more, and constants with them."""
    wanted = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        if not any(output.uses() or id(output) in wanted for output in node.outputs):
            edit.remove_node(node)
    for value in list(graph.initializers.values()):
        edit.drop_unused_initializer(value)
