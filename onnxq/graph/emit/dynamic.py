"""Activations quantized at inference: integer products in the patterns that ONNX Runtime joins to one kernel."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.emit.rewrite import Rewrite


def emit_dynamic(model: ir.Model, rewrite: Rewrite) -> None:
    """Rewrite the nodes of ``rewrite.dynamic`` in place."""
