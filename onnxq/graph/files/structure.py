"""The ONNX checker for models of any size."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model


def check_structure(model: ir.Model) -> None:
    """As `check_model`, for a model of any size, of which large weights are looked at by type and shape alone.

    Raises:
        ModelError: what is wrong, in one line.
    """
    with io.detached(model, "weights") as (proto, _):
        external = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        given = {value.name for value in proto.graph.input}
        typed = [onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in external]
        inside = [t for t in proto.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in inside]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(value for value in typed if value.name not in given)
    check_model(proto)
