"""Layers that choose among experts are known by what reads their outputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph.experts import routers, small_layers
from onnxq.graph.files import io

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(behind: list[onnx.NodeProto], outputs: list[str], *, experts: int = 8) -> set[str]:
    nodes = [helper.make_node("MatMul", ["x", "gate.weight"], ["scores"], name="gate"), *behind]
    arrays = {
        "gate.weight": np.ones((16, experts), np.float32), "two": np.array([2]), "flat": np.array([-1]),
        "stack": np.ones((experts, 16, 16), np.float32), "factor": np.float32(2.0),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "gated", [helper.make_tensor_value_info("x", FLOAT, ["tokens", 16])],
        [helper.make_tensor_value_info(name, INT64 if name == "chosen" else FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    loaded = io.load(made).graph
    assert routers(loaded) == set(small_layers(loaded))
    return routers(loaded)


SOFTMAX = helper.make_node("Softmax", ["scores"], ["chances"])
SCALED = helper.make_node("Mul", ["chances", "factor"], ["scaled"])
TOP = helper.make_node("TopK", ["scaled", "two"], ["best", "chosen"])
TAKEN = helper.make_node("Gather", ["stack", "chosen"], ["matrices"])


def test_what_topk_reads_inside_chooses() -> None:
    assert model([SOFTMAX, SCALED, TOP, TAKEN], ["matrices", "best"]) == set()  # the shares are an answer
    assert model([SOFTMAX, SCALED, TOP, TAKEN], ["matrices"]) == {"gate"}


def test_an_answer_a_wide_layer_and_a_flat_list_do_not() -> None:
    assert model([SOFTMAX, SCALED, TOP], ["chosen", "best"]) == set()
    assert model([SOFTMAX, SCALED, TOP, TAKEN], ["matrices"], experts=16) == set()
    flat = helper.make_node("Reshape", ["chances", "flat"], ["scaled"])
    assert model([SOFTMAX, flat, TOP, TAKEN], ["matrices"]) == set()
    assert model([SOFTMAX], ["chances"]) == set()
