"""Model files without the shapes that they state."""

from __future__ import annotations

import onnx


def of_any_shape(content: bytes) -> bytes:
    """A model file without the shapes of its values, so that it runs on samples of other shapes.

    Args:
        content: a model file, weights included.
    """
    proto = onnx.ModelProto.FromString(content)
    for values in (proto.graph.input, proto.graph.output, proto.graph.value_info):
        for value in values:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return bytes(proto.SerializeToString())
