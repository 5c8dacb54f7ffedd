"""Read a model as a runtime has optimized it: which layers multiply in float although their weights are integers."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxq.graph.names import scopes

_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


def dequantized_layers(path: Path) -> list[str]:
    """Names of the layers whose weight is dequantized to float at every inference.

    Args:
        path: a model that ONNX Runtime saved after its optimizations.

    Returns:
        The names, in graph order, layers in bodies behind those around them; an unnamed layer gives its output's name.
    """
    graphs = scopes(onnx.load(path, load_external_data=False).graph)
    constants = {tensor.name for graph in graphs for tensor in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    unfolded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    return [
        node.name or node.output[0]
        for node in nodes
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in unfolded
    ]
