"""Models that ONNX Runtime wrote after optimizing them, told from models that an exporter wrote."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph import walk

_BLOCKED = "com.microsoft.nchwc"
"""Operators on channels in blocks, which fit one kind of processor."""

_FUSED = frozenset({"FusedConv", "FusedGemm", "NhwcFusedConv", "NhwcMaxPool"})
"""Operators of ``com.microsoft`` that no exporter writes."""

_REMEDY = "quantize the model that it was made from (in ONNX Runtime's words, without optimized_model_filepath)"


def refuse_blocked(model: ir.Model, where: str) -> None:
    """Refuse a model with layers in the processor's own layout: nothing in it could be quantized.

    Raises:
        ModelError: names the first such node and the remedy.
    """
    for node in walk.all_nodes(model.graph):
        if node.domain == _BLOCKED:
            raise ModelError(
                f"{where}: {node.op_type} '{node.name}' is in the layout of one kind of processor: ONNX Runtime saved "
                f"this model with all optimizations; {_REMEDY}"
            )


def note_of_fused(model: ir.Model) -> str | None:
    """What to say of a model with layers that the runtime has fused; None where there are none."""
    found = [n for n in walk.all_nodes(model.graph) if n.domain == "com.microsoft" and n.op_type in _FUSED]
    if not found:
        return None
    return (
        f"{found[0].op_type} '{found[0].name}'{f' and {len(found) - 1} more' if len(found) > 1 else ''}: ONNX Runtime "
        f"saved this model after optimizing it, and has no integer kernel for what it fused; {_REMEDY}"
    )
