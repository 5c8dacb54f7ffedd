"""Each channel of a convolution's output has a grid of its own where only nodes in float read it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.recipe.recipe import FORMATS
from tests.graph.build import Array, build, session, weights

# A layer whose channels differ a thousandfold, a HardSwish and a depthwise layer that evens them out.
UNEVEN = """g (float[N,16,12,12] x) => (float[N,16,12,12] y) {
    [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) [gate] g = HardSigmoid (a) [act] h = Mul (a, g)
    [even] y = Conv <group = 16, pads = [1, 1, 1, 1]> (h, w1) }"""
EVEN_READER = """g (float[N,16,12,12] x) => (float[N,16,12,12] y) {
    [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) [second] y = Conv (a, w1) }"""
SIZES = (10.0 ** np.linspace(-2, 1, 16)).astype(np.float32)


def model(text: str = UNEVEN, sizes: Array = SIZES) -> onnx.ModelProto:
    column = sizes.reshape(-1, 1, 1, 1)
    w1 = weights(16, 1, 3, 3, seed=2) / column if text == UNEVEN else weights(16, 16, 1, 1, seed=2)
    return build(text, w0=weights(16, 16, 3, 3) * column / 3, b0=weights(16, seed=1) * sizes, w1=w1)


def feeds(count: int = 8) -> list[dict[str, Array]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.normal(size=(1, 16, 12, 12)).astype(np.float32)} for _ in range(count)]


def quantize(given: onnx.ModelProto, form: str = "qdq") -> onnx.ModelProto:
    layers = [node.name for node in given.graph.node if node.name in ("wide", "second")]
    result = onnxq.quantize(
        given, calibration=feeds(), preset="w8a8", format=form, include=layers, benchmark=False, force=True
    ).model
    assert result is not None
    return result


def channel_scales(quantized: onnx.ModelProto) -> list[int]:
    constants = {t.name: t for t in quantized.graph.initializer}
    return [
        constants[node.input[1]].dims[0]
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants and constants[node.input[1]].dims
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_channels_that_differ_in_size_keep_their_bits(form: str) -> None:
    given = model()
    quantized = quantize(given, form)
    assert channel_scales(quantized) == [16]
    for feed in feeds(12)[8:]:
        expected = session(given.SerializeToString()).run(None, feed)[0]
        assert sqnr_db(expected, session(quantized.SerializeToString()).run(None, feed)[0]) > 28


def test_channels_of_one_size_share_a_grid() -> None:
    assert channel_scales(quantize(model(sizes=np.ones(16, np.float32)))) == []


def test_an_integer_layer_reads_one_grid() -> None:
    quantized = quantize(model(EVEN_READER, np.ones(16, np.float32)))
    assert 16 not in channel_scales(quantized)[:1]


def test_the_name_of_the_output_keeps_its_numbers() -> None:
    given = model()
    quantized = quantize(given)
    for each in (given, quantized):
        each.graph.output.append(onnx.ValueInfoProto(name="a"))
    expected, got = (session(each.SerializeToString()).run(["a"], feeds(1)[0])[0] for each in (given, quantized))
    assert sqnr_db(np.maximum(expected, -2.5), np.maximum(got, -2.5)) > 28  # the gate reads nothing below


def test_diagnosis_sees_through_the_scales() -> None:
    given = model()
    found = onnxq.diagnose(given, quantize(given), calibration=feeds())
    wide = next(finding for finding in found.findings if finding.node == "wide")
    assert wide.weight_sqnr_db is not None and wide.weight_sqnr_db > 35
    assert wide.arriving_sqnr_db is not None and wide.arriving_sqnr_db > 28


@pytest.mark.parametrize("key", [{"zeros": True}, {"min_range": 1e-4}])
def test_an_output_that_was_zero_keeps_its_grid(key: dict[str, object]) -> None:
    given = build(
        "g (float[N,2,4,4] x) => (float[N,1,3,3] y) { y = Conv (x, w) }", w=np.zeros((1, 2, 2, 2), np.float32)
    )
    recipe = onnxq.Recipe.from_mapping(
        {"preset": "w8a8", "include": ["*"], "own_grids": True, "values": [{"match": "*", **key}]}
    )
    sample = {"x": np.zeros((1, 2, 4, 4), np.float32)}
    quantized = onnxq.quantize(given, calibration=[sample], recipe=recipe, benchmark=False).model
    assert quantized is not None
    assert not session(quantized.SerializeToString()).run(None, sample)[0].any()
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("_scale")}
    for name in ("x", "y"):
        np.testing.assert_allclose(scales[f"{name}_scale"], 1 if "zeros" in key else 1e-4 / 255)


def test_a_least_range_holds_for_channels_too() -> None:
    recipe = onnxq.Recipe.from_mapping(
        {"preset": "w8a8", "include": ["wide"], "values": [{"match": "a", "min_range": 0.001}]}
    )
    quantized = onnxq.quantize(model(), calibration=feeds(), recipe=recipe, benchmark=False, force=True).model
    assert quantized is not None
    assert channel_scales(quantized) == []
