"""Packed weights: kernels and patterns that unpack them while they multiply."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.emit.rewrite import Rewrite


def emit_weight_only(model: ir.Model, rewrite: Rewrite, form: str) -> None:
    """Rewrite the nodes of ``rewrite.weights`` in place."""
