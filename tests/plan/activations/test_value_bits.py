"""Values of 16 bits beside others of 8, read from the model that is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.errors import RecipeError, TargetError
from tests.graph.build import build, weights

TEXT = """g (float[1,8,9,9] x) => (float[1,16,9,9] y) {
    [one] a = Conv <pads = [1,1,1,1]> (x, w) [act] r = Relu (a) [two] b = Conv <pads = [1,1,1,1]> (r, v)
    [sig] s = Sigmoid (b) [join] y = Concat <axis = 1> (r, s) }"""
FEEDS = [{"x": np.random.default_rng(i).normal(size=(1, 8, 9, 9)).astype(np.float32)} for i in range(6)]


def model() -> onnx.ModelProto:
    return build(TEXT, opset=17, w=weights(8, 8, 3, 3), v=weights(8, 8, 3, 3))


def quantized(values: Any, **keys: Any) -> onnx.ModelProto:
    recipe = onnxq.Recipe.from_mapping({"preset": "w8a8", "include": ["*"], "values": values, **keys})
    made = onnxq.quantize(model(), recipe=recipe, calibration=FEEDS, benchmark=False, threads=1).model
    assert made is not None
    return made


def types_of(proto: onnx.ModelProto) -> dict[str, str]:
    """Type of the integers of each activation."""
    zeros = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: onnx.TensorProto.DataType.Name(zeros[node.input[2]]) for node in nodes}


@pytest.mark.parametrize("target", ["cpu", "qnn"])
def test_one_value_has_sixteen_bits(target: str) -> None:
    proto = quantized([{"match": "r", "bits": 16}], target=target)
    types = types_of(proto)
    assert types["x"] == "UINT8" and "UINT16" in types.values()
    wide = {name for name, kind in types.items() if kind == "UINT16"}
    assert wide <= {"a", "r"}
    float_session = onnxruntime.InferenceSession(model().SerializeToString())
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (one,), (other,) = float_session.run(None, FEEDS[0]), session.run(None, FEEDS[0])
        assert 10 * np.log10(np.square(one).sum() / np.square(one - other).sum()) > 20


def test_engines_that_take_every_value_heed_rules() -> None:
    plain = quantized([], target="qnn")
    ranged = quantized([{"match": "x", "range": [-10, 10]}, {"match": "w", "range": [-2, 2]}], target="qnn")
    for proto, expected in ((plain, False), (ranged, True)):
        scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        first = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
        assert (scales[first.input[1]].reshape(()) == pytest.approx(20 / 255)) is expected
        weight = next(node for node in proto.graph.node if node.input[0] == "w_quantized")
        assert (scales[weight.input[1]].size == 1 and bool(scales[weight.input[1]].reshape(-1)[0] > 0.0156)) is expected


def test_widths_that_make_no_sense() -> None:
    for keys, said in (
        ({"values": [{"match": "r", "bits": 4}]}, "4 bits have no kernel for activations; write 8 or 16"),
        (
            {"values": [{"match": "r", "bits": 16}], "format": "qoperator"},
            "value rule of 16 bits, which is for Q and DQ",
        ),
        ({"values": [{"match": "w", "bits": 16}]}, "is of a weight, whose bits a rule for its node says"),
    ):
        with pytest.raises(RecipeError, match=said):
            quantized(**keys)
    with pytest.raises(TargetError, match="takes no activations of 16 bits"):
        quantized([{"match": "r", "bits": 16}], target="tensorrt")
