"""What a file need not say twice."""

from __future__ import annotations

import onnx


def without_types_of_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the types that onnx_ir writes for initializers: their tensors say the same."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in constants]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return model
