"""Networks with a few channels of activations fifty times as large as the others, computing what they did before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

FACTOR = 50.0
CHANNELS = (5, 40, 77)


def with_outliers(
    model: onnx.ModelProto, factor: float = FACTOR, channels: Sequence[int] = CHANNELS
) -> onnx.ModelProto:
    """Let each LayerNormalization give some channels that are ``factor`` times as large, and the readers undo it.

    Rows of MatMul weights are divided; any other reader (a residual connection) reads the value through a Mul.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    touched: set[str] = set()
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "LayerNormalization":
            continue
        value = node.output[0]
        width = arrays[node.input[1]].size
        scale = np.ones(width, np.float32)
        scale[list(channels)] = factor
        for name in node.input[1:3]:
            assert name not in touched
            touched.add(name)
            arrays[name] = arrays[name] * scale
        undone = f"{value}_undone"
        others = False
        for user in graph.node:
            for position, name in enumerate(user.input):
                if name != value:
                    continue
                if user.op_type == "MatMul" and position == 0 and user.input[1] in arrays:
                    weight = user.input[1]
                    assert weight not in touched
                    touched.add(weight)
                    arrays[weight] = arrays[weight] / scale[:, None]
                else:
                    user.input[position] = undone
                    others = True
        if others:
            arrays[f"{undone}_factors"] = (1.0 / scale).astype(np.float32)
            nodes.append(helper.make_node("Mul", [value, f"{undone}_factors"], [undone], name=f"{node.name}_undone"))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return changed
