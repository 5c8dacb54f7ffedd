"""Grids of weights that a recipe gives, read from the model that is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.errors import RecipeError
from tests.graph.build import build

RNG = np.random.default_rng(5)
CONV, DENSE = RNG.normal(0.2, 0.5, (16, 8, 3, 3)).astype(np.float32), RNG.normal(0, 0.3, (16, 4)).astype(np.float32)
BIAS = RNG.normal(0, 1, 16).astype(np.float32)
TEXT = """g (float[N,8,9,9] x) => (float[N,4] y) {
    [conv] a = Conv <pads = [1,1,1,1]> (x, w, b) [act] r = Relu (a)
    [pool] p = GlobalAveragePool (r) f = Flatten (p) [fc] y = Gemm (f, v) }"""
FEEDS = [{"x": RNG.normal(size=(2, 8, 9, 9)).astype(np.float32)} for _ in range(6)]


def quantized(values: Any = (), **keys: Any) -> onnx.ModelProto:
    model = build(TEXT, w=CONV, b=BIAS, v=DENSE)
    recipe = {"preset": "w8a8", "include": ["*"], "bias_correct": False, "values": list(values), **keys}
    options: dict[str, Any] = {"calibration": FEEDS, "benchmark": False, "threads": 1}
    made = onnxq.quantize(model, recipe=onnxq.Recipe.from_mapping(recipe), **options).model
    assert made is not None
    return made


def grid_of(model: onnx.ModelProto, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """(integers, scale, zero point) of the weight of a shape, of a QDQ or QOperator model."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            array = arrays.get(name)
            if array is not None and array.shape == shape and array.dtype in (np.int8, np.uint8):
                return array, arrays[node.input[index + 1]], arrays[node.input[index + 2]]
    raise AssertionError(f"no integers of {shape}")


def agrees(model: onnx.ModelProto, at_least: float = 20.0) -> None:
    """The runtime computes, at both levels, what the integers stand for."""
    float_session = onnxruntime.InferenceSession(build(TEXT, w=CONV, b=BIAS, v=DENSE).SerializeToString())
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        pairs = [[s.run(None, feed)[0] for s in (float_session, session)] for feed in FEEDS]
        noise = sum(float(np.square(one - other).sum()) for one, other in pairs)
        signal = sum(float(np.square(one).sum()) for one, _ in pairs)
        assert 10 * np.log10(signal / noise) > at_least


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_range_is_that_of_the_whole_weight(form: str) -> None:
    model = quantized([{"match": "w", "range": [-1, 1.5]}], format=form)
    integers, scale, zero = grid_of(model, CONV.shape)
    assert scale.size == 1 and scale.reshape(()) == pytest.approx(2.5 / 255) and zero.reshape(()) == -26
    expected = np.clip(np.rint(CONV / scale.reshape(())) - 26, -128, 127)
    np.testing.assert_array_equal(integers, expected)
    agrees(model)
    _, other, _ = grid_of(model, DENSE.shape)
    assert other.size == 4


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_scales_are_given_for_all_or_for_each_channel(form: str) -> None:
    scales = [0.02 + 0.001 * i for i in range(16)]
    model = quantized([{"match": "w", "scale": scales, "zero_point": 0}], format=form)
    integers, scale, zero = grid_of(model, CONV.shape)
    np.testing.assert_allclose(scale.reshape(-1), scales, rtol=1e-6)
    assert zero.size == 16 and not zero.any()
    expected = np.clip(np.rint(CONV / np.float32(scales).reshape(-1, 1, 1, 1)), -128, 127)
    np.testing.assert_array_equal(integers, expected)
    agrees(model)
    one = quantized([{"match": "v", "scale": 0.01, "zero_point": 3}], format=form)
    integers, scale, zero = grid_of(one, DENSE.shape)
    assert (scale.size, float(scale.reshape(())), int(zero.reshape(()))) == (1, pytest.approx(0.01), 3)
    agrees(one)


def test_a_least_width_and_a_zero_point_of_its_own() -> None:
    model = quantized([{"match": "w", "symmetric": False}, {"match": "v", "min_range": 25.4}])
    integers, scale, zero = grid_of(model, CONV.shape)
    assert scale.reshape(()) == pytest.approx((CONV.max() - CONV.min()) / 255, rel=1e-5) and zero.reshape(()) != 0
    assert (int(integers.min()), int(integers.max())) == (-128, 127)
    _, scale, zero = grid_of(model, DENSE.shape)
    assert scale.reshape(()) == pytest.approx((25.4 + DENSE.min()) / 127, rel=1e-4) and zero.reshape(()) == 0


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_all_weights_are_unsigned_or_asymmetric(form: str) -> None:
    for keys, kind in (({"unsigned_weights": True}, np.uint8), ({"asymmetric_weights": True}, np.int8)):
        model = quantized(format=form, **keys)
        for shape in (CONV.shape, DENSE.shape):
            integers, scale, zero = grid_of(model, shape)
            assert integers.dtype == kind
            if kind is np.uint8:
                assert set(zero.reshape(-1).tolist()) == {128} and scale.size > 1
            else:
                assert scale.size == 1
                assert (int(integers.min()), int(integers.max())) == (-128, 127)
        agrees(model)


def test_wishes_for_weights_that_make_no_sense() -> None:
    wrong = [
        ({"match": "w", "method": "mse"}, "is of a weight, whose range is that of its elements; leave method out"),
        ({"match": "w", "quantize": False}, "is of a weight, which stays float where a rule for its node says so"),
        ({"match": "w", "scale": [0.1, 0.2], "zero_point": 0}, "with 16 channels, and has 2 scales and 1 zero points"),
        ({"match": "w", "scale": 0.1, "zero_point": 200}, r"zero_point \[200\] is not in -128…127"),
        ({"match": "x", "scale": [0.1, 0.2], "zero_point": 0}, "is of an activation, which has one scale"),
        ({"match": "w", "scale": "large", "zero_point": 0}, "scale is 'large'; it takes a number"),
        ({"match": "w", "scale": [0.1, -1], "zero_point": 0}, "is not a positive number"),
        ({"match": "w", "scale": 0.1, "zero_point": [1.5]}, "zero_point is .*; it takes a whole number"),
        ({"match": "ww", "range": [0, 1]}, "'ww' matches no value of the model"),
    ]
    for rule, said in wrong:
        with pytest.raises(RecipeError, match=said):
            quantized([rule])
    with pytest.raises(RecipeError, match="unsigned_weights: is for targets that run on this processor"):
        quantized(unsigned_weights=True, target="qnn")


def test_a_pattern_is_of_activations_and_a_bias_has_no_grid_of_its_own() -> None:
    plain, pattern = quantized(), quantized([{"match": "[wx]", "min_range": 0.001}])
    np.testing.assert_array_equal(grid_of(plain, CONV.shape)[0], grid_of(pattern, CONV.shape)[0])
    result = onnxq.quantize(
        build(TEXT, w=CONV, b=BIAS, v=DENSE),
        recipe=onnxq.Recipe.from_mapping({"preset": "w8a8", "values": [{"match": "b", "range": [0, 1]}]}),
        calibration=FEEDS, benchmark=False, include=["*"], threads=1,
    )  # fmt: skip
    assert any("'b' is not quantized as a weight here" in line for line in result.warnings)


def test_rules_of_weights_go_through_yaml() -> None:
    recipe = onnxq.Recipe.from_mapping(
        {"values": [{"match": "w", "scale": [0.5, 0.25], "zero_point": [1, 2]}], "unsigned_weights": True}
    )
    assert onnxq.Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert onnxq.ValueRule("w", scale=np.array([0.5, 0.25], np.float32), zero_point=0).scale == (0.5, 0.25)
