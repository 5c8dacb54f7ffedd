"""Names of what quantization adds: those of the user's nodes may have hundreds of characters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph.emit.common import shortened
from tests.graph.build import build, weights

LONG = "model/" + "block/" * 50


def named(first: str, second: str) -> onnx.ModelProto:
    """A chain of three products, between which stand values of these names."""
    model = build(
        "g (float[N,64] x) => (float[N,64] y) {"
        " [n0] a = MatMul (x, w0) [n1] b = MatMul (a, w1) [n2] y = MatMul (b, w2) }",
        **{f"w{i}": weights(64, 64) for i in range(3)},
    )
    for node in model.graph.node:
        node.input[0] = {"a": first, "b": second}.get(node.input[0], node.input[0])
        node.output[0] = {"a": first, "b": second}.get(node.output[0], node.output[0])
    return model


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_what_is_added_to_long_names_is_short_and_still_unique(form: str) -> None:
    first, second = LONG + "1/MatMul;" + LONG, LONG + "2/MatMul;" + LONG  # alike at both ends
    samples = [{"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(8)]
    result = onnxq.quantize(named(first, second), calibration=samples, preset="w8a8", format=form, benchmark=False)
    assert result.model is not None
    onnx.checker.check_model(result.model)
    nodes = [node.name for node in result.model.graph.node]
    assert len(set(nodes)) == len(nodes)
    assert max(map(len, nodes)) <= 90
    scales = [tensor.name for tensor in result.model.graph.initializer if "scale" in tensor.name]
    assert scales and max(map(len, scales)) <= 90
    assert result.sqnr_db is not None and result.sqnr_db > 25


def test_names_of_usual_length_are_kept() -> None:
    assert shortened("/layer1/conv/Conv_output_0_scale") == "/layer1/conv/Conv_output_0_scale"
    assert shortened("h" * 60 + "t" * 60) == "h" * 40 + "~" + "t" * 32
