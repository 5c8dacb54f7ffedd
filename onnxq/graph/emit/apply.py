"""Apply a whole rewrite: the static format first, then what is quantized at inference, then packed weights."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.emit.at_inference import emit_dynamic
from onnxq.graph.emit.packed import emit_weight_only
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.qoperator import emit_qoperator
from onnxq.graph.emit.rewrite import Rewrite

STATIC = {"qdq": emit_qdq, "qoperator": emit_qoperator}


def emit(model: ir.Model, rewrite: Rewrite, form: str) -> None:
    """Rewrite the model in place.

    Args:
        model: the prepared model that the rewrite was made for.
        rewrite: what becomes of it.
        form: "qdq" or "qoperator".
    """
    STATIC[form](model, rewrite)
    emit_dynamic(model, rewrite)
    emit_weight_only(model, rewrite, form)
