"""Apply a whole rewrite: the static format first, then what is quantized at inference, then packed weights."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.emit.inference.at_inference import emit_dynamic
from onnxq.graph.emit.packed import emit_weight_only
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.qoperator import emit_qoperator
from onnxq.graph.emit.rewrite import Rewrite, Style
from onnxq.graph.prepare.whole.lower_opset import NEWEST

_DOMAIN = "com.microsoft"
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SINCE = 21
"""The operator set from which on ONNX's own pair takes 16 and 4 bits."""

_ATTRIBUTES = frozenset({"axis"})
"""What the operators of that domain know; one scale a block they do not."""


_STYLE = Style()


def emit(model: ir.Model, rewrite: Rewrite, form: str, style: Style = _STYLE) -> None:
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
        emit_qoperator(model, rewrite)
    emit_dynamic(model, rewrite)
    emit_weight_only(model, rewrite, form)
    use_own_pair(model)


def use_own_pair(model: ir.Model) -> int:
    """Move QuantizeLinear and DequantizeLinear into the runtime's domain where it has no kernel for the model's own.

    That is so beyond the newest operator set that it knows, and for 16 and 4 bits before the standard knew them.

    Returns:
        How many were moved.
    """
    version = walk.opset(model)
    moved = 0
    for node in walk.all_nodes(model.graph):
        if node.op_type not in _PAIR or node.domain != "" or not node.attributes.keys() <= _ATTRIBUTES:
            continue
        zero_point = walk.input_at(node, 2)
        bits = zero_point.dtype.bitwidth if zero_point is not None and zero_point.dtype is not None else 8
        if version > NEWEST or (version < _SINCE and bits in (4, 16)):
            node.domain = _DOMAIN
            moved += 1
    if moved:
        for graph in walk.all_graphs(model.graph):
            graph.opset_imports.setdefault(_DOMAIN, 1)
        model.opset_imports.setdefault(_DOMAIN, 1)
    return moved
