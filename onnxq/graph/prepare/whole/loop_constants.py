"""Values that a Loop or Scan carries from step to step and never changes, read from outside instead.

TensorFlow's recurrent layers carry their weights that way. Read from outside they are constants, which can be quantized
and are stored once, and no step copies them.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk

_FIRST = {"Loop": (2, 2, 1), "Scan": (0, 0, 0)}
"""Where the carried values begin: among the inputs of the node, the inputs and the outputs of its body."""

_LONGEST = 8
"""Identity nodes in a row that are looked through."""


def run(model: ir.Model) -> int:
    """Let subgraphs read what they hand on unchanged from where it comes. Exact, however often the body runs.

    Stays where it is what the node gives as an output of a graph, or what the body hands on in another place too.

    Returns:
        How many values were taken out.
    """
    if walk.opset(model) < 9:
        return 0  # before, Scan had an axis of batches
    return sum(
        _take_out(node) for kind in _FIRST for node in walk.nodes_to_rewrite(model, kind) if "body" in node.attributes
    )


def _take_out(node: ir.Node) -> int:
    body = node.attributes["body"].as_graph()
    first, entering, leaving = _FIRST[node.op_type]
    states = len(body.inputs) - entering
    if node.op_type == "Scan":
        states -= walk.attr_int(node, "num_scan_inputs")
    if len(node.inputs) < first + states or len(node.outputs) < states or len(body.outputs) < leaving + states:
        return 0  # not a valid node
    done = 0
    for index in reversed(range(states)):
        source, inside, given = node.inputs[first + index], body.inputs[entering + index], node.outputs[index]
        handed_on = body.outputs[leaving + index]
        if source is None or len(node.outputs) == 1 or given.is_graph_output() or not _is_same(handed_on, inside):
            continue
        if any(value is inside for i, value in enumerate(body.outputs) if i != leaving + index):
            continue
        body.outputs.pop(leaving + index)
        inside.replace_all_uses_with(source)
        body.inputs.pop(entering + index)
        given.replace_all_uses_with(source)
        _drop_input(node, first + index)
        _drop_output(node, index)
        done += 1
    return done


def _is_same(handed_on: ir.Value, inside: ir.Value) -> bool:
    """Whether a body hands on what it was given, as it is or through Identity."""
    value: ir.Value | None = handed_on
    for _ in range(_LONGEST):
        if value is inside:
            return True
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "Identity" or producer.domain != "":
            return False
        value = producer.inputs[0]
    return False


def _drop_input(node: ir.Node, index: int) -> None:
    for place in range(index, len(node.inputs) - 1):
        node.replace_input_with(place, node.inputs[place + 1])
    node.resize_inputs(len(node.inputs) - 1)


def _drop_output(node: ir.Node, index: int) -> None:
    """Take out an output that nothing reads; those behind it move up, with their names."""
    node.outputs[index].name = None
    for place in range(index, len(node.outputs) - 1):
        node.outputs[place].shape = node.outputs[place].type = None
        edit.take_over(node.outputs[place + 1], node.outputs[place])
    node.resize_outputs(len(node.outputs) - 1)
