"""Bias correction against the shift of the mean that is measured by running both weights in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerTensor, TensorSpec
from onnxq.graph.files import io
from onnxq.plan.weights.bias import correction, mean_kind
from tests.graph.build import build, weights

COARSE = TensorSpec(QType.INT8, PerTensor(), symmetric=True, narrow_range=True, grid_bits=3)
"""Three bits: rounding that can be seen."""


def layer(op_type: str, rank: int, channels: int, weight: np.ndarray, **attributes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node(op_type, ["x", "w"], ["y"], name="layer", **attributes)
    dims = ["N", channels, *["D"] * rank]
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, dims)],
        [onnx.helper.make_tensor_value_info("y", 1, None)], [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    opened = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(None, {"x": x})[0], np.float64)


CASES: dict[str, tuple[int, int, int, dict[str, object], tuple[int, ...]]] = {
    # dimensions, channels in and out, attributes, image
    "plain": (2, 6, 4, {}, (7, 9)),
    "padded": (2, 6, 4, {"pads": [1, 1, 1, 1]}, (7, 9)),
    "padded on one side": (2, 6, 4, {"pads": [0, 1, 2, 0]}, (7, 5)),
    "padded widely": (2, 6, 4, {"pads": [2, 2, 2, 2]}, (2, 3)),
    "strided": (2, 6, 4, {"pads": [1, 1, 1, 1], "strides": [2, 3]}, (8, 9)),
    "dilated": (2, 6, 4, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, (9, 7)),
    "strided and dilated": (2, 6, 4, {"pads": [2, 1, 0, 3], "dilations": [2, 3], "strides": [3, 2]}, (9, 11)),
    "grouped": (2, 6, 4, {"pads": [1, 1, 1, 1], "group": 2}, (6, 6)),
    "depthwise": (2, 6, 6, {"pads": [1, 1, 1, 1], "group": 6, "strides": [2, 2]}, (7, 7)),
    "depthwise with two outputs a channel": (2, 6, 12, {"pads": [1, 1, 1, 1], "group": 6}, (5, 5)),
    "SAME_UPPER": (2, 6, 4, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, (8, 10)),
    "SAME_LOWER": (2, 6, 4, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (8, 6)),
    "VALID": (2, 6, 4, {"auto_pad": "VALID", "strides": [2, 2]}, (8, 6)),
    "1-D": (1, 6, 4, {"pads": [1, 2], "strides": [2]}, (11,)),
    "3-D": (3, 6, 4, {"pads": [1, 0, 1, 1, 0, 2], "strides": [1, 2, 1]}, (4, 5, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_conv(case: str) -> None:
    rank, channels, filters, attributes, image = CASES[case]
    weight = weights(filters, channels // int(attributes.get("group", 1)), *[3] * rank)  # type: ignore[call-overload]
    proto = layer("Conv", rank, channels, weight, **attributes)
    mean = np.random.default_rng(1).uniform(0.5, 2, channels)
    # An image that has each channel's mean everywhere: the shift is the same for all images with that mean, up to
    # what happens at their edges.
    x = np.broadcast_to(mean.reshape(1, channels, *[1] * rank), (2, channels, *image)).astype(np.float32)
    quantized = rtn(weight, COARSE)
    rounded = dequantize(quantized.values, quantized.params)
    axes = (0, *range(2, 2 + rank))
    measured = run(proto, weight, x).mean(axis=axes) - run(proto, rounded, x).mean(axis=axes)
    (node,) = io.load(layer("Conv", rank, channels, weight, **attributes)).graph
    computed = correction(node, quantized, mean, x.shape)
    assert computed is not None and np.abs(measured).max() > 0.05
    np.testing.assert_allclose(computed, measured, rtol=1e-4, atol=1e-4)


def test_conv_on_images_that_vary() -> None:
    weight = weights(8, 6, 3, 3)
    proto = layer("Conv", 2, 6, weight, pads=[1, 1, 1, 1])
    generator = np.random.default_rng(3)
    x = (generator.uniform(0, 2, (400, 6, 1, 1)) * generator.uniform(0, 1, (400, 6, 8, 8))).astype(np.float32)
    quantized = rtn(weight, COARSE)
    shift = run(proto, weight, x) - run(proto, dequantize(quantized.values, quantized.params), x)
    (node,) = io.load(layer("Conv", 2, 6, weight, pads=[1, 1, 1, 1])).graph
    computed = correction(node, quantized, x.mean(axis=(0, 2, 3), dtype=np.float64), x.shape)
    assert computed is not None
    left = shift.mean(axis=(0, 2, 3)) - computed
    assert np.abs(left).max() < 0.05 * np.abs(computed).max()


def test_without_a_shape_padding_counts_as_the_mean() -> None:
    weight = weights(4, 6, 3, 3)
    mean = np.random.default_rng(1).uniform(0.5, 2, 6)
    quantized = rtn(weight, COARSE)
    padded, plain = (
        next(iter(io.load(layer("Conv", 2, 6, weight, pads=[p] * 4)).graph)) for p in (1, 0)
    )  # fmt: skip
    unknown = correction(padded, quantized, mean, None)
    inside = correction(plain, quantized, mean, (1, 6, 8, 8))
    assert unknown is not None and inside is not None
    np.testing.assert_allclose(unknown, inside)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    weight = weights(5, 7) if transposed else weights(7, 5)
    proto = layer("Gemm", 0, 7, weight, transB=transposed)
    x = np.random.default_rng(2).uniform(0, 3, (50, 7)).astype(np.float32)
    quantized = rtn(weight, COARSE)
    rounded = dequantize(quantized.values, quantized.params)
    measured = (run(proto, weight, x) - run(proto, rounded, x)).mean(axis=0)
    (node,) = io.load(layer("Gemm", 0, 7, weight, transB=transposed)).graph
    computed = correction(node, quantized, x.mean(axis=0, dtype=np.float64), x.shape)
    assert computed is not None
    np.testing.assert_allclose(computed, measured, rtol=1e-4, atol=1e-4)


def test_a_mean_that_does_not_fit_corrects_nothing() -> None:
    weight = weights(4, 6, 3, 3)
    (node,) = io.load(layer("Conv", 2, 6, weight)).graph
    assert correction(node, rtn(weight, COARSE), np.ones(5), (1, 6, 8, 8)) is None
    (node,) = io.load(layer("Gemm", 0, 7, weights(7, 5))).graph
    assert correction(node, rtn(weights(7, 5), COARSE), np.ones(5), None) is None


def test_which_layers_want_a_mean() -> None:
    text = """g (float[N,4,6,6] x, float[4,4,1,1] v) => (float[N,4,6,6] y) {
        [conv] a = Conv (x, w) [computed] b = Conv (a, v) [pool] c = MaxPool <kernel_shape = [1,1]> (b)
        [mm] y = MatMul (c, m) }"""
    model = io.load(build(text, w=weights(4, 4, 1, 1), m=weights(6, 6)))
    assert [mean_kind(node) for node in model.graph] == ["image", None, None, None]
    (gemm,) = io.load(layer("Gemm", 0, 7, weights(7, 5))).graph
    assert mean_kind(gemm) == "rows"


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_the_mean_of_the_output_comes_closer(form: str) -> None:
    generator = np.random.default_rng(5)
    proto = build(
        "g (float[N,16,8,8] x) => (float[N,8,8,8] y) { [c] a = Conv <pads = [1,1,1,1]> (x, w) [r] b = Relu (a)"
        " [d] y = Conv <pads = [1,1,1,1]> (b, v) }",
        w=weights(32, 16, 3, 3), v=weights(8, 32, 3, 3),
    )  # fmt: skip
    feeds = [{"x": generator.uniform(0, 1, (4, 16, 8, 8)).astype(np.float32)} for _ in range(30)]

    def shift(bias_correct: bool) -> float:
        result = onnxq.quantize(
            proto, calibration=feeds, preset="w8a8", format=form, per_channel=False, range="minmax",
            bias_correct=bias_correct, benchmark=False,
        )  # fmt: skip
        assert result.model is not None
        means = []
        for model in (proto, result.model):
            opened = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            means.append(np.mean([opened.run(None, feed)[0].mean(axis=(0, 2, 3)) for feed in feeds], axis=0))
        return float(np.abs(means[0] - means[1]).mean())

    assert shift(True) < 0.5 * shift(False)


def test_a_conv_without_an_axis_to_go_along_corrects_nothing() -> None:
    model = layer("Conv", 0, 3, np.ones((6, 3), np.float32))
    assert mean_kind(io.load(model).graph.node(0)) is None
