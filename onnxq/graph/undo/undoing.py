"""A float model from any quantized one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph import edit, walk
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.prepare.whole import functions, initializer_inputs, shapes
from onnxq.graph.reading.ops import MICROSOFT
from onnxq.graph.undo.operators import QUANTIZED, rewrite
from onnxq.graph.undo.tracker import SMALL, Tracker


@dataclass
class Undone:
    """What came of a quantized model.

    Attributes:
        rewritten: quantized operators that were given a float form, Q and DQ nodes among them, by type.
        left: operators that are quantized still, by type.
        notes: one line each.
    """

    rewritten: dict[str, int]
    left: dict[str, int]
    notes: list[str] = field(default_factory=list)


def undo(model: ir.Model, where: str) -> Undone:
    """Give a model its floats back: weights as float constants, no rounding of activations.

    Inputs and outputs keep names and types, nodes and values their names without the endings of quantizers. A Relu or
    Clip that the range of a value did the work of is written again.

    Args:
        model: changed in place.
        where: what to call it in messages.

    Raises:
        ModelError: nothing in it is quantized.
    """
    notes: list[str] = []
    functions.inline(model, notes)
    initializer_inputs.remove_initializers(model)
    lift_constants.lift(model)
    shapes.infer(model, notes, folded=False)
    before = _quantized(model)
    stored = any(
        value.dtype in SMALL for graph in walk.all_graphs(model.graph) for value in graph.initializers.values()
    )
    if not before and not stored:
        raise ModelError(f"{where}: nothing in it is quantized, it is a float model; onnxq quantize takes it as it is")
    tracker = Tracker(model)
    for node in list(walk.all_nodes(model.graph)):
        if node.graph is not None:
            rewrite(tracker, node)
    _fold(tracker)
    _drop_copies(model)
    _drop_dead(model)
    left = _quantized(model)
    if not any(node.domain == MICROSOFT for node in walk.all_nodes(model.graph)):
        model.graph.opset_imports.pop(MICROSOFT, None)
    if tracker.done == 0 and not stored:
        raise ModelError(f"{where}: {', '.join(left)} are in forms that are not known; nothing was written")
    for graph in walk.all_graphs(model.graph):
        for node in graph:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = output.type = None  # what the file said was of integers
    return Undone(dict(before - left), dict(left), notes)


def _quantized(model: ir.Model) -> Counter[str]:
    return Counter(
        node.op_type
        for node in walk.all_nodes(model.graph)
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear")
    )


def _fold(tracker: Tracker) -> None:
    """Compute what is left of the way from constant integers to floats: Cast, tables, scales."""
    graphs = list(walk.all_graphs(tracker.model.graph))
    values = [value for graph in graphs for value in graph.initializers.values() if value.dtype in SMALL]
    derived = {id(value) for value in values}
    ways: dict[int, ir.Node] = {}
    for node in walk.all_nodes(tracker.model.graph):
        known = any(id(value) in derived for value in node.inputs)
        if known and node.outputs and all(tracker.array(output) is not None for output in node.outputs):
            derived.update(id(output) for output in node.outputs)
            ways[id(node)] = node
    for node in ways.values():
        for output in node.outputs:
            array = tracker.array(output)
            leaves = any(id(user) not in ways for user in output.consumers())
            if leaves and array is not None and array.dtype.kind == "f" and not output.is_graph_output():
                output.replace_all_uses_with(tracker.constant(output.name or "", array))
                tracker.done += 1


def _drop_copies(model: ir.Model) -> None:
    """Take away the Max of one input that quantizers put where a node is to stay float."""
    for node in walk.nodes_to_rewrite(model, "Max"):
        if len(node.inputs) == 1 and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(node.inputs[0])


def _drop_dead(model: ir.Model) -> None:
    again = True
    while again:
        again = False
        for graph in list(walk.all_graphs(model.graph)):
            for node in reversed(list(graph)):
                if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                    edit.remove_node(node)
                    again = True
    for graph in walk.all_graphs(model.graph):
        for value in list(graph.initializers.values()):
            edit.drop_unused_initializer(value)
