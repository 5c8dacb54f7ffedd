"""The operators that are let compute in bfloat16 are those that ONNX Runtime's CPU provider has kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.runtime.session import open_session
from onnxq.targets import cpu
from tests.graph.build import build, weights
from tests.runtime_version import needs_runtime

OPERATORS = sorted(cpu.HALVES["bfloat16"].names)
X = np.arange(16, dtype=np.float32).reshape(4, 4)
INDICES: dict[str, list[Any]] = {
    "Gather": [[0, 1]], "GatherElements": [[[0, 1, 2, 3]]], "GatherND": [[[0, 1]]], "Reshape": [[16]], "Squeeze": [[0]],
    "Unsqueeze": [[0]], "Slice": [[0], [2]],
}  # fmt: skip
ATTRIBUTES: dict[str, dict[str, Any]] = {"Cast": {"to": TensorProto.FLOAT}, "Concat": {"axis": 1}}


def model_of(op_type: str, opset: int) -> bytes:
    """An operator between Casts."""
    reads = ["u" if op_type == "Squeeze" else "x"]
    constants = [
        numpy_helper.from_array(np.array(array, np.int64), f"i{n}") for n, array in enumerate(INDICES.get(op_type, []))
    ]
    reads += [constant.name for constant in constants]
    if op_type == "Concat":
        reads.append("x")
    elif op_type == "ScatterElements":
        constants.append(numpy_helper.from_array(np.zeros((4, 4), np.int64), "i"))
        reads += ["i", "x"]
    elif op_type == "ScatterND":
        constants.append(numpy_helper.from_array(np.array([[0], [1], [2], [3]], np.int64), "i"))
        reads += ["i", "x"]
    elif op_type.endswith("LayerNormalization"):
        constants.append(helper.make_tensor("one", TensorProto.BFLOAT16, [4], [1.0] * 4))
        reads.append("one")
    gives = ["y", "rest"] if op_type == "Split" else ["y"]
    nodes = [
        helper.make_node("Cast", ["f"], ["x"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["g"], ["u"], to=TensorProto.BFLOAT16),
        helper.make_node(op_type, reads, gives, **ATTRIBUTES.get(op_type, {})),
    ]
    last = "y"
    if op_type != "Cast":
        last = "z"
        nodes.append(helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT))
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("f", [4, 4]), ("g", [1, 4, 4]))
    ]
    out = onnx.ValueInfoProto(name=last)
    out.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", floats, [out], constants)
    if op_type == "Split" and opset >= 18:
        nodes[2].attribute.append(helper.make_attribute("num_outputs", 2))
        graph = helper.make_graph(nodes, "g", floats, [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


@needs_runtime("1.30", "has fewer kernels for bfloat16")
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_the_runtime_has_its_kernel(op_type: str, optimize: bool) -> None:
    for opset in (17, 21):
        session = open_session(model_of(op_type, opset), optimize=optimize)
        (found,) = session.run({"f": X, "g": X[None]})
        assert np.asarray(found).dtype == np.float32


def test_a_node_without_a_kernel_stays_float32_and_the_model_is_written() -> None:
    text = """g (float[1, 64] x) => (float[8, 64] y) {
        [m] h = MatMul (x, w) [e] k = Expand (h, shape) [r] y = Reshape (k, to) }"""
    numbers = {"w": weights(64, 64), "shape": np.array([8, 64]), "to": np.array([8, 64])}
    result = onnxq.quantize(build(text, **numbers), preset="bf16", benchmark=False)
    assert {name: reason for name, _, reason in result.kept_float}["e"].startswith("cpu has no bfloat16 kernel")
