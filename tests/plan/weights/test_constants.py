"""Weights and biases as integers: no overflow, each weight once, each bias at the scale of its own layer."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxq
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.error_measures import sqnr_db
from onnxq.core.spec import PerAxis, PerTensor, TensorSpec
from onnxq.graph.walk import const_array
from onnxq.plan.weights.constants import Weights, quantize_bias
from tests.graph.build import build, session, weights
from tests.plan.planning import Planned, plan_of, weight_of

FORMATS = ("qdq", "qoperator")
INT32 = np.iinfo(np.int32)
THREE = {"min_size": 3, "max_size": 3}


def conv(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    text = "g (float[N,16,6,6] x) => (float[N,M,6,6] y) { [conv] y = Conv (x, w, b) }"
    return build(text, w=weight.astype(np.float32), b=bias.astype(np.float32))


def gemm(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    text = "g (float[N,16] x) => (float[N,M] y) { [fc] y = Gemm (x, w, b) }"
    return build(text, w=weight.reshape(weight.shape[:2]).T.astype(np.float32), b=bias.astype(np.float32))


def run(model: onnx.ModelProto, x: np.ndarray, optimize: bool) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(None, {"x": x})[0])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("make", [conv, gemm])
@pytest.mark.parametrize("per_channel", [True, False])
def test_tiny_weights_under_a_huge_bias_do_not_overflow(make: object, form: str, per_channel: bool) -> None:
    weight = weights(16, 16, 1, 1)
    weight[3] *= 1e-8  # at its own scale the bias of this channel would be 10^11 steps
    bias = weights(16)
    bias[3] = 30.0
    if not per_channel:
        weight *= 1e-8
    proto = make(weight, bias)  # type: ignore[operator]
    shape = [4, *[d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]]
    feeds = [{"x": np.random.default_rng(i).normal(size=shape).astype(np.float32)} for i in range(5)]
    result = onnxq.quantize(
        proto, calibration=feeds, preset="w8a8", format=form, range="minmax", per_channel=per_channel,
        include=["*"], benchmark=False,
    )  # fmt: skip
    assert result.model is not None
    stored = [onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer]
    (integers,) = [array for array in stored if array.dtype == np.int32 and array.any()]
    assert INT32.min < integers.min() and integers.max() < INT32.max
    expected = run(proto, feeds[0]["x"], False)
    for optimize in (True, False):
        got = run(result.model, feeds[0]["x"], optimize)
        assert np.abs(got[:, 3] - expected[:, 3]).max() < 0.3  # one step of an output that reaches 30
        if per_channel:
            others = [i for i in range(16) if i != 3]
            assert sqnr_db(expected[:, others], got[:, others]) > 20


def test_only_the_channel_that_needs_it_gets_a_coarser_scale() -> None:
    weight, bias = weights(16, 16, 1, 1), weights(16)
    weight[3] *= 1e-8
    bias[3] = 30.0
    planned = plan_of(conv(weight, bias))
    solution = planned.solve()
    scale = solution.rewrite.nodes["conv"].constants[1].params.scale.reshape(-1)
    plain = np.abs(weight).max(axis=(1, 2, 3)) / 127
    others = np.arange(16) != 3
    np.testing.assert_allclose(scale[others], plain[others], rtol=1e-6)
    scale_x = float(solution.rewrite.values["x"].scale.reshape(()))
    assert scale[3] == pytest.approx(30.0 / (scale_x * 2**30), rel=1e-6)


@pytest.fixture(scope="module")
def layer() -> Planned:
    return plan_of(
        build("g (float[N,5] x) => (float[N,3] y) { [fc] y = Gemm (x, w, b) }", w=weights(5, 3), b=weights(3))
    )


@given(
    st.lists(st.sampled_from([0.0, 1e-30, -1e-3, 1.0, -7e4, 1e9, -1e9]), **THREE),
    st.lists(st.sampled_from([0.0, 1e-38, 1e-20, 1e-6, 1.0, 1e4]), **THREE),
    st.sampled_from([1e-30, 1e-6, 0.1, 1e3]),
    st.booleans(),
)
def test_no_bias_reaches_the_ends_of_int32(
    layer: Planned, bias: list[float], sizes: list[float], scale_x: float, per_channel: bool
) -> None:
    node = layer.node("fc")
    assert node.inputs[1] is not None
    node.inputs[1].const_value = onnx_ir.tensor((weights(5, 3) * np.array(sizes)).astype(np.float32))
    exact = np.array(bias)
    spec = TensorSpec(QType.INT8, PerAxis(1) if per_channel else PerTensor(), symmetric=True, narrow_range=True)
    tensor = Weights().of(node, 1, spec, exact, scale_x)
    added = quantize_bias(exact, scale_x, tensor.params.scale)
    assert added.values.dtype == np.int32 and added.values.shape == (3,)
    assert np.abs(added.values.astype(np.int64)).max() < INT32.max
    step = added.params.scale.astype(np.float64)
    assert (np.abs(added.values * step - exact) <= 0.5001 * step + 1e-12 * np.abs(exact)).all()


def test_the_bias_is_at_the_product_of_both_scales() -> None:
    bias = np.array([1.0, -0.25, 1e-9, 0.0])
    scales = np.array([0.01, 0.02, 0.5, 1.0], np.float32)
    added = quantize_bias(bias, 0.125, scales.reshape(4, 1, 1, 1))
    assert added.values.tolist() == [800, -100, 0, 0]
    assert added.params.scale.dtype == np.float32
    np.testing.assert_array_equal(added.params.scale, np.float32(0.125) * scales)
    assert not added.params.zero_point.any()
    one = quantize_bias(bias, 0.125, scales[:1])
    assert one.params.scale.shape == (1,) and one.values.tolist() == [800, -200, 0, 0]


SHARED = """g (float[N,16,6,6] x) => (float[N,16,6,6] y) {
    [one] a = Conv (x, w, b) [relu] r = Relu (a) [two] c = Conv (r, w, b) [three] y = Conv (c, w) }"""


def shared() -> onnx.ModelProto:
    return build(SHARED, w=weights(16, 16, 1, 1), b=weights(16))


def test_a_shared_weight_is_quantized_once_and_a_shared_bias_for_each_reader() -> None:
    planned = plan_of(shared())
    solution = planned.solve()
    nodes = solution.rewrite.nodes
    assert weight_of(solution.rewrite, "one") is weight_of(solution.rewrite, "two")
    assert weight_of(solution.rewrite, "one") is weight_of(solution.rewrite, "three")
    assert nodes["three"].bias is None
    bias = const_array(planned.node("one").inputs[2])
    for name, value in (("one", "x"), ("two", "r")):
        tensor = nodes[name].bias
        assert tensor is not None and bias is not None
        scale = solution.rewrite.values[value].scale.reshape(()) * nodes[name].constants[1].params.scale.reshape(-1)
        np.testing.assert_array_equal(tensor.params.scale, scale)
        np.testing.assert_allclose(dequantize(tensor.values, tensor.params), bias, atol=float(scale.max()) / 2 * 1.01)
    assert not np.array_equal(nodes["one"].bias.values, nodes["two"].bias.values)  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMATS)
def test_the_file_holds_a_shared_weight_once_and_no_float_copy(form: str) -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(2, 16, 6, 6)).astype(np.float32)} for i in range(5)]
    result = onnxq.quantize(
        shared(), calibration=feeds, preset="w8a8", format=form, bias_correct=False, benchmark=False, include=["*"]
    )
    assert result.model is not None and result.sqnr_db is not None and result.sqnr_db > 25
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert [a.dtype for a in stored.values() if a.ndim == 4] == [np.int8]
    assert "w" not in stored and "b" not in stored
    assert sum(a.dtype == np.int32 and a.any() for a in stored.values()) == 2
    names = [name for node in result.model.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert session(result.model.SerializeToString()) is not None


def test_readers_that_need_other_grids_get_tensors_of_their_own() -> None:
    text = SHARED.replace("[three] y = Conv (c, w)", "[three] y = Conv (c, w, huge)")
    weight = weights(16, 16, 1, 1)
    weight[5] *= 1e-9
    huge = np.zeros(16, np.float32)
    huge[5] = 100.0
    solution = plan_of(build(text, w=weight, b=weights(16, low=0, high=1e-9), huge=huge)).solve()
    one, two, three = (solution.rewrite.nodes[name].constants[1] for name in ("one", "two", "three"))
    assert one is two and one is not three
    assert three.params.scale[5] > one.params.scale[5]
    np.testing.assert_array_equal(np.delete(three.values, 5, 0), np.delete(one.values, 5, 0))


def test_constant_operands_take_the_grid_of_activations() -> None:
    text = "g (float[N,16,6,6] x) => (float[N,16,6,6] y) { [a] c = Conv (x, w) [t] d = Add (c, k) [b] y = Conv (d, w) }"
    planned = plan_of(build(text, w=weights(16, 16, 1, 1), k=weights(6)), include=("*",))
    tensor = planned.solve().rewrite.nodes["t"].constants[1]
    assert tensor.params.spec.dtype is QType.UINT8 and not tensor.params.spec.symmetric
    np.testing.assert_allclose(dequantize(tensor.values, tensor.params), weights(6), atol=2 / 255)
