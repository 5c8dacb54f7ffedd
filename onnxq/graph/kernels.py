"""Read a model as a runtime has optimized it: which layers multiply in float although their weights are integers."""

from __future__ import annotations

from pathlib import Path

import onnx

_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


def unfolded_layers(path: Path) -> list[str]:
    """Names of the layers whose weight is unfolded to float at every inference.

    Args:
        path: a model that ONNX Runtime saved after its optimizations.

    Returns:
        The names, in graph order; an unnamed layer gives its output's name.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    unfolded = {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return [
        node.name or node.output[0]
        for node in graph.node
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in unfolded
    ]
