"""Models of one layer that a runtime is asked whether it opens them, where versions differ in their kernels."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxq.core.dtypes import Array
from onnxq.graph.reading.ops import MICROSOFT


def pair(opset: int) -> bytes:
    """QuantizeLinear and DequantizeLinear of an operator set."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return _model(nodes, {"scale": np.ones((), np.float32), "zero": np.zeros((), np.uint8)}, opset)


def packed(bits: int) -> bytes:
    """MatMulNBits with weights of that many bits, a block of 32 of them."""
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scale"], ["y"], domain=MICROSOFT, K=32, N=1, bits=bits, block_size=32
    )
    return _model([node], {"packed": np.zeros((1, 1, 4 * bits), np.uint8), "scale": np.ones(1, np.float32)}, 21)


def _model(nodes: list[NodeProto], constants: dict[str, Array], opset: int) -> bytes:
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "asked", ends[:1], ends[1:], tensors)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return bytes(model.SerializeToString())
