"""Apply a whole rewrite: the static format first, then what is quantized at inference, then packed weights."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import traits, walk
from onnxq.graph.emit.inference.at_inference import emit_dynamic
from onnxq.graph.emit.packed_weights.packed import emit_weight_only
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.qoperator import emit_qoperator
from onnxq.graph.emit.rewrite import USUAL, Rewrite, Style
from onnxq.graph.prepare.whole.lower_opset import NEWEST

_DOMAIN = "com.microsoft"
_SINCE = 21
"""The operator set from which on ONNX's own pair takes 16 and 4 bits."""

_ATTRIBUTES = frozenset({"axis"})
"""What the operators of that domain know; one scale a block they do not."""


def emit(model: ir.Model, rewrite: Rewrite, form: str, style: Style = USUAL) -> None:
    """Rewrite the model in place.

    Args:
        model: the prepared model that the rewrite was made for.
        rewrite: what becomes of it.
        form: "qdq" or "qoperator".
        style: how Q and DQ are written.
    """
    if form == "qdq":
        emit_qdq(model, rewrite, style)
    else:
        emit_qoperator(model, rewrite, style)
    emit_dynamic(model, rewrite)
    emit_weight_only(model, rewrite, form)
    if style.dedicated:
        dedicate(model)
    use_own_pair(model, everywhere=style.own_pairs, newest=style.pairs_until)


def use_own_pair(model: ir.Model, *, everywhere: bool = False, newest: int = NEWEST) -> int:
    """Move QuantizeLinear and DequantizeLinear into the runtime's domain where it has no kernel for the model's own.

    That is so beyond the newest operator set that it knows, and for 16 and 4 bits before the standard knew them.

    Args:
        model: changed in place.
        everywhere: move them all.
        newest: the newest operator set of which the runtime has both.

    Returns:
        How many were moved.
    """
    version = walk.opset(model)
    moved = 0
    for node in walk.all_nodes(model.graph):
        if node.op_type not in traits.CONVERSIONS or node.domain != "" or not node.attributes.keys() <= _ATTRIBUTES:
            continue
        zero_point = walk.input_at(node, 2)
        bits = zero_point.dtype.bitwidth if zero_point is not None and zero_point.dtype is not None else 8
        if everywhere or version > newest or (version < _SINCE and bits in (4, 16)):
            node.domain = _DOMAIN
            moved += 1
    if moved:
        for graph in walk.all_graphs(model.graph):
            graph.opset_imports.setdefault(_DOMAIN, 1)
        model.opset_imports.setdefault(_DOMAIN, 1)
    return moved


def dedicate(model: ir.Model) -> int:
    """Split the pairs that several nodes read, in place; the numbers stay the same.

    The first reader, and an output of the graph, keep the pair that is there. What reads a value in a body keeps the
    pair outside, too.

    Returns:
        How many pairs were added.
    """
    names = walk.Names(model)
    added = 0
    for node in list(walk.all_nodes(model.graph)):
        if node.op_type != "DequantizeLinear" or node.graph is None:
            continue
        source = node.inputs[0]
        quantize = source.producer() if source is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.graph is not node.graph:
            continue
        output = node.outputs[0]
        readers = [user for user in dict.fromkeys(output.consumers()) if user.graph is node.graph]
        outside = output.is_graph_output() or any(user.graph is not node.graph for user in output.consumers())
        for reader in readers if outside else readers[1:]:
            pair = _copy(quantize, node, names)
            node.graph.insert_after(node, pair)
            for position, value in enumerate(reader.inputs):
                if value is output:
                    reader.replace_input_with(position, pair[1].outputs[0])
            added += 1
    return added


def _copy(quantize: ir.Node, dequantize: ir.Node, names: walk.Names) -> list[ir.Node]:
    pair: list[ir.Node] = []
    for old in (quantize, dequantize):
        inputs = list(old.inputs)
        if pair:
            inputs[0] = pair[0].outputs[0]
        new = ir.Node(
            old.domain,
            old.op_type,
            inputs,
            list(old.attributes.values()),
            name=names.node(f"{old.name}_dedicated"),
            outputs=[ir.Value(name=names.value(f"{old.outputs[0].name}_dedicated"))],
        )
        new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
        pair.append(new)
    return pair
