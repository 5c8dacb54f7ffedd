"""Initializers that are also graph inputs (required before IR version 4) stop being inputs."""

from __future__ import annotations

import onnx_ir as ir


def remove_initializers(model: ir.Model) -> int:
    """Take every initializer out of the graph's inputs, so that it is constant and can be folded or quantized.

    Returns:
        How many there were.
    """
    graph = model.graph
    shared = [value for value in graph.inputs if value.is_initializer()]
    if not shared:
        return 0
    kept = [value for value in graph.inputs if not value.is_initializer()]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for value in shared:
        if value.name not in graph.initializers:
            graph.initializers.add(value)
    return len(shared)
