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


SPLIT = """g (float[1,8,9,9] x) => (float[1,8,9,9] y, float[1,8,9,9] z) {
    [one] a = Conv <pads = [1,1,1,1]> (x, w) [act] r = Relu (a) [two] y = Conv <pads = [1,1,1,1]> (r, v)
    [three] z = Conv <pads = [1,1,1,1]> (r, u) }"""


def split(values: Any, target: str = "qnn") -> onnx.ModelProto:
    proto = build(SPLIT, opset=21, w=weights(8, 8, 3, 3), v=weights(8, 8, 3, 3), u=weights(8, 8, 3, 3))
    recipe = onnxq.Recipe.from_mapping({"preset": "w8a8", "include": ["*"], "values": values})
    made = onnxq.quantize(proto, recipe=recipe, calibration=FEEDS, benchmark=False, threads=1, target=target).model
    assert made is not None
    return made


def read_as(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Types of the integers behind the first input of each Conv, from where they are read to where they came about."""
    writers = {name: node for node in proto.graph.node for name in node.output}
    zeros = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            kinds, before = [], writers.get(node.input[0])
            while before is not None and before.op_type in ("QuantizeLinear", "DequantizeLinear"):
                if before.op_type == "QuantizeLinear":
                    kinds.append(onnx.TensorProto.DataType.Name(zeros[before.input[2]]))
                before = writers.get(before.input[0])
            found[node.name] = kinds
    return found


@pytest.mark.parametrize("target", ["cpu", "qnn"])
def test_some_readers_take_a_second_grid(target: str) -> None:
    plain = split([], target)
    assert {tuple(kinds) for kinds in read_as(plain).values()} == {("UINT8",)}
    wish = {"match": "r", "bits": 8, "convert": 16, "readers": ["thr*"]}
    proto = split([wish], target)
    assert read_as(proto) == {"one": ["UINT8"], "two": ["UINT8"], "three": ["UINT16", "UINT8"]}
    everyone = split([{"match": "r", "convert": 16}], target)
    assert read_as(everyone) == {"one": ["UINT8"], "two": ["UINT16", "UINT8"], "three": ["UINT16", "UINT8"]}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    other = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    for one, two in zip(session.run(None, FEEDS[0]), other.run(None, FEEDS[0]), strict=True):
        # What the first grid left is exact on the second one to 1/256 of a step, and so are the outputs.
        assert np.abs(one - two).max() <= np.abs(two).max() * 0.01


def test_second_grids_that_make_no_sense() -> None:
    for values, said in (
        ([{"match": "r", "convert": 4}], "4 bits have no kernel for activations; write 8 or 16"),
        ([{"match": "r", "bits": 8, "convert": 8}], "bits and convert are both 8; a second grid has another width"),
        ([{"match": "r", "readers": ["two"]}], "readers say who reads a second grid; add convert, 8 or 16"),
        ([{"match": "r", "convert": 16, "readers": ["tow"]}], "readers: 'tow' matches no node; did you mean 'two'"),
        ([{"match": "w", "convert": 16}], "is of a weight"),
    ):
        with pytest.raises(RecipeError, match=said):
            split(values)
    with pytest.raises(TargetError, match="takes no activations of 16 bits"):
        split([{"match": "r", "convert": 16}], "tensorrt")
    recipe = onnxq.Recipe.from_mapping({"preset": "w8a8", "values": [{"match": "r", "convert": 8}]})
    proto = build(SPLIT, opset=21, w=weights(8, 8, 3, 3), v=weights(8, 8, 3, 3), u=weights(8, 8, 3, 3))
    result = onnxq.quantize(proto, recipe=recipe, calibration=FEEDS, benchmark=False, threads=1, target="qnn")
    assert any("'r' has 8 bits already, so that convert has no effect" in line for line in result.warnings)


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
