"""What is said of a model: how its nodes compute, why not on integers, and what its weights look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from tests.graph.build import build, weights

S, U0, U128, I0 = np.float32(0.1), np.uint8(0), np.uint8(128), np.int8(0)


def look(model: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Each node of a model as `onnxq.inspect` describes it, by name."""
    return {node["name"]: node for node in onnxq.inspect(model).nodes}


def states(model: onnx.ModelProto) -> dict[str, tuple[str, str, str]]:
    return {name: (node["state"], node["how"], node["reason"]) for name, node in look(model).items()}


CNN = """g (float[N,16,8,8] x) => (float[N,10] y) {
    [conv1] a = Conv <pads = [1,1,1,1]> (x, w1) [relu1] b = Relu (a) [conv2] c = Conv <pads = [1,1,1,1]> (b, w2)
    [tanh] t = Tanh (c) [pool] d = GlobalAveragePool (t) [flat] e = Flatten (d) [fc] y = Gemm <transB = 1> (e, w3) }"""
FEEDS = [{"x": np.random.default_rng(i).normal(size=(1, 16, 8, 8)).astype(np.float32)} for i in range(5)]


def cnn() -> onnx.ModelProto:
    return build(CNN, w1=weights(32, 16, 3, 3), w2=weights(32, 32, 3, 3), w3=weights(10, 32))


def test_a_float_model() -> None:
    result = onnxq.inspect(cnn())
    assert result.facts["quantized"] == []
    assert {node["state"] for node in result.nodes} == {"float"}
    assert {node["name"]: node["reason"] for node in result.nodes if node["reason"]} == {"tanh": "no integer kernel"}
    assert result.coverage["Conv"] == {"quantized": 0, "total": 2}
    assert [weight["shape"] for weight in result.weights] == [[32, 16, 3, 3], [32, 32, 3, 3], [10, 32]]
    assert all(weight["dtype"] == "float32" and weight["sqnr_db"] > 40 for weight in result.weights)
    assert result.facts["inputs"] == ["x: float32 (N, 16, 8, 8)"]


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_what_onnxq_writes_is_what_it_reads(form: str) -> None:
    done = onnxq.quantize(cnn(), calibration=FEEDS, preset="w8a8", format=form, benchmark=False, threads=1)
    found = onnxq.inspect(done.model)
    assert found.facts["quantized"] == [{"qdq": "QDQ", "qoperator": "QOperator"}[form]]
    by_name = {node["name"]: node for node in found.nodes}
    kept = {name for name, _, _ in done.kept_float}
    assert {name for name, node in by_name.items() if node["state"] == "float"} == kept
    assert by_name["conv2"]["how"].endswith(", weights per channel")
    quantized = {weight["name"]: weight for weight in found.weights if weight["dtype"] == "int8"}
    low, high = float(weights(32, 32, 3, 3).min()), float(weights(32, 32, 3, 3).max())
    (second,) = [weight for weight in quantized.values() if weight["shape"] == [32, 32, 3, 3]]
    assert second["granularity"] == "per channel"
    assert (second["low"], second["high"]) == pytest.approx((low, high), abs=0.01)


def test_stored_weights() -> None:
    done = onnxq.quantize(cnn(), preset="w8", benchmark=False, threads=1)
    found = look(done.model)
    assert {name for name, node in found.items() if node["state"] == "stored"} == {"conv1", "conv2"}
    assert found["conv1"]["how"] == "int8 weights per channel (Cast, Mul)"
    assert found["relu1"]["reason"] == "no quantized neighbour"
    assert set(found) == {"conv1", "relu1", "conv2", "tanh", "pool", "flat", "fc"}  # and not the Mul that unfolds
    assert onnxq.inspect(done.model).facts["quantized"] == ["weights only"]


QDQ = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) {{
    xq = QuantizeLinear (x, s, z) xf = DequantizeLinear (xq, s, z) wf = DequantizeLinear <axis = 0> (w, ws, wz)
    [conv] a = Conv <pads = [1,1,1,1]> (xf, wf) {middle} yq = QuantizeLinear ({last}, s, {zero})
    y = DequantizeLinear (yq, s, {zero}) }}"""


def qdq(middle: str, last: str, zero: str, **more: Any) -> onnx.ModelProto:
    w = np.random.default_rng(0).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    ws, wz = np.full(4, 0.01, np.float32), np.zeros(4, np.int8)
    text = QDQ.format(middle=middle, last=last, zero=zero)
    return build(text, s=np.asarray(S), z=np.asarray(U128), z0=np.asarray(U0), w=w, ws=ws, wz=wz, **more)


def test_a_relu_is_done_by_the_range_behind_it() -> None:
    found = states(qdq("[relu] b = Relu (a)", "b", "z0"))
    assert found["conv"] == ("integer", "QDQ, weights per channel", "")
    assert found["relu"] == ("integer", "QDQ", "")


def test_a_relu_that_still_has_work_to_do_keeps_its_layer_float() -> None:
    found = states(qdq("[relu] b = Relu (a)", "b", "z"))
    assert found["conv"] == ("stored", "int8 weights per channel (DequantizeLinear)", "only its inputs are quantized")
    assert found["relu"] == ("float", "", "only its output is quantized")


def test_a_clip_is_folded_where_the_grid_ends_at_its_bounds() -> None:
    def clip(high: float) -> tuple[str, str, str]:
        bounds = {"lo": np.float32(0), "hi": np.float32(high)}
        model = qdq("[clip] b = Clip (a, lo, hi)", "b", "z0", **{k: np.asarray(v) for k, v in bounds.items()})
        return states(model)["clip"]

    assert clip(25.5)[0] == "integer"
    assert clip(6.0) == ("float", "", "only its output is quantized")


def test_a_moved_value_needs_one_scale() -> None:
    text = """g (float[2,3] x) => (float[3,2] y) {
        xq = QuantizeLinear (x, s, z) xf = DequantizeLinear (xq, s, z) [move] t = Transpose (xf)
        tq = QuantizeLinear (t, r, z) y = DequantizeLinear (tq, r, z) }"""
    same = build(text, s=np.asarray(S), r=np.asarray(S), z=np.asarray(U0))
    other = build(text, s=np.asarray(S), r=np.asarray(2 * S), z=np.asarray(U0))
    assert states(same)["move"] == ("integer", "QDQ", "")
    assert states(other)["move"] == ("float", "", "its input and its output have different scales")


def test_why_nodes_between_quantized_ones_are_float() -> None:
    text = """g (float[1,3] x, float[1,3] z) => (float[1,3] y, float[1,3] v, float[1,3] u) {
        xq = QuantizeLinear (x, s, o) xf = DequantizeLinear (xq, s, o)
        [open] y = Mul (xf, xf) [half] h = Add (xf, z) hq = QuantizeLinear (h, s, o) v = DequantizeLinear (hq, s, o)
        [after] n = Add (z, z) nq = QuantizeLinear (n, s, o) u = DequantizeLinear (nq, s, o) }"""
    found = states(build(text, s=np.asarray(S), o=np.asarray(U0)))
    assert {name: reason for name, (_, _, reason) in found.items()} == {
        "open": "only its inputs are quantized",
        "half": "only some of its inputs are quantized",
        "after": "only its output is quantized",
    }


def test_float_weights_between_integers_do_not_stay_float() -> None:
    text = QDQ.replace("wf = DequantizeLinear <axis = 0> (w, ws, wz)", "").replace("(xf, wf)", "(xf, w)")
    text = text.format(middle="", last="a", zero="z")
    model = build(text, s=np.asarray(S), z=np.asarray(U128), w=weights(4, 4, 3, 3))
    assert states(model)["conv"] == ("integer", "QDQ, float weights that are rounded at load, per tensor", "")
    # a vector of scales on the activation keeps the runtime from doing that
    vector = text.replace("xf = DequantizeLinear (xq, s, z)", "xf = DequantizeLinear <axis = 1> (xq, sv, zv)")
    model = build(
        vector, s=np.asarray(S), z=np.asarray(U128), sv=np.full(4, S), zv=np.full(4, U128), w=weights(4, 4, 3, 3)
    )
    assert states(model)["conv"] == ("float", "", "only its output is quantized")


def test_a_dynamic_layer_is_one_node() -> None:
    text = """g (float[M,8] x) => (float[M,4] y) {
        xq, xs, xz = DynamicQuantizeLinear (x) [scales] ss = Mul (xs, ws) [mm] i = MatMulInteger (xq, w, xz)
        f = Cast <to = 1> (i) [rescale] p = Mul (f, ss) [bias] y = Add (p, b) }"""
    w = np.arange(32, dtype=np.int8).reshape(8, 4)
    model = build(text, ws=np.asarray(S), w=w, b=weights(4))
    found = look(model)
    assert set(found) == {"mm", "bias"}
    assert (found["mm"]["op_type"], found["mm"]["state"]) == ("MatMul", "integer")
    assert found["mm"]["how"] == "MatMulInteger, activations quantized at run time, weights per tensor"
    result = onnxq.inspect(model)
    assert result.facts["quantized"] == ["dynamic"]
    assert result.weights[0]["dtype"] == "int8"


def test_weights_in_blocks() -> None:
    text = """g (float[M,32] x) => (float[M,2] y) {
        wf = DequantizeLinear <axis = 0, block_size = 16> (w, s) [mm] y = MatMul (x, wf) }"""
    w = np.tile(np.arange(-8, 8, dtype=np.int8), 4).reshape(2, 32).T
    model = build(text, opset=21, ir=10, w=w, s=np.array([[0.5, 1.0], [2.0, 0.25]], np.float32))
    assert states(model)["mm"][:2] == ("stored", "int8 weights in blocks of 16 (DequantizeLinear)")
    (weight,) = onnxq.inspect(model).weights
    assert (weight["low"], weight["high"], weight["granularity"]) == (-16.0, 14.0, "in blocks of 16")


def test_packed_weights() -> None:
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "mm", domain="com.microsoft", K=32, N=4, bits=4, block_size=16
    )
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["M", 32])],
        [onnx.helper.make_tensor_value_info("y", 1, ["M", 4])],
        [
            onnx.numpy_helper.from_array(np.zeros((4, 2, 8), np.uint8), "w"),
            onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), "s"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = look(model)["mm"]
    assert (found["op_type"], found["state"], found["how"]) == (
        "MatMul",
        "stored",
        "MatMulNBits: 4 bits in blocks of 16, accuracy level 0",
    )
    (weight,) = onnxq.inspect(model).weights
    assert (weight["low"], weight["high"], weight["granularity"]) == (-8.0, -8.0, "in blocks of 16")
    assert (weight["shape"], weight["dtype"]) == ([4, 32], "uint4")


@pytest.mark.parametrize(
    ("options", "how", "dtype"),
    [
        ({"preset": "w4"}, "MatMulNBits: 4 bits in blocks of 32, accuracy level 4", "uint4"),
        ({"preset": "w2"}, "MatMulNBits: 2 bits in blocks of 32, zero points, accuracy level 4", "uint2"),
        ({"preset": "w4", "format": "qdq"}, "int4 weights in blocks of 32 (DequantizeLinear)", "int4"),
        ({"preset": "nf4"}, "MatMulBnb4: nf4 in blocks of 64", "nf4"),
        (
            {"preset": "nf4", "format": "qdq"},
            "uint4 weights in 64 groups (index of 16 values, looked up at load)",
            "uint4 index of 16 values",
        ),
        (
            {"preset": "lut4"},
            "uint4 weights in 32 groups (index of 16 values, looked up at load)",
            "uint4 index of 16 values",
        ),
        (
            {"preset": "lut8"},
            "uint8 weights per tensor (index of 256 values, looked up at load)",
            "uint8 index of 256 values",
        ),
    ],
    ids=str,
)
def test_every_form_of_packed_weights(options: dict[str, str], how: str, dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal((128, 32)).astype(np.float32)
    model = build("g (float[B, 128] x) => (float[B, 32] y) { [mm] y = MatMul(x, w) }", w=weight)
    made = onnxq.quantize(model, benchmark=False, force=True, **options).model
    found = onnxq.inspect(made)
    (node,) = [node for node in found.nodes if node["name"] == "mm"]
    assert (node["op_type"], node["state"], node["how"]) == ("MatMul", "stored", how)
    (facts,) = found.weights
    assert facts["dtype"] == dtype
    if facts["low"] is not None:
        assert -6 < facts["low"] < -2 and 2 < facts["high"] < 6


def test_shape_arithmetic_is_not_counted() -> None:
    text = """g (float[N,4] x) => (float[M,2] y) {
        s = Shape (x) i = Constant <value = int64[1] {0}> () n = Gather (s, i) m = Concat <axis = 0> (n, k)
        [out] y = Reshape (x, m) }"""
    assert set(look(build(text, k=np.array([-1, 2][1:], np.int64)))) == {"out"}


def test_bodies_are_looked_into() -> None:
    text = """g (bool c, float[1,4] x) => (float[1,4] y) {
        [choose] y = If (c) <then_branch = t () => (float[1,4] a) { [inner] a = MatMul (x, w) },
                             else_branch = e () => (float[1,4] b) { [other] b = Relu (x) }> }"""
    assert set(look(build(text, w=weights(4, 4)))) == {"choose.then_branch/inner", "choose.else_branch/other"}


def test_initializers_that_are_inputs_are_weights() -> None:
    model = cnn()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = onnxq.inspect(model)
    assert len(result.weights) == 3
    assert result.facts["inputs"] == ["x: float32 (N, 16, 8, 8)"]


def test_weights_that_are_not_finite_are_shown_without_their_error() -> None:
    model = cnn()
    array = weights(32, 16, 3, 3).copy()
    array[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    first = onnxq.inspect(model).weights[0]
    assert first["sqnr_db"] is None
    assert -1 <= first["low"] < first["high"] <= 1


def test_the_summary_has_it_all() -> None:
    done = onnxq.quantize(cnn(), calibration=FEEDS, preset="w8a8", benchmark=False, threads=1)
    text = onnxq.inspect(done.model).summary()
    for part in ("quantized", "QDQ, weights per channel", "float because", "no integer kernel", "per channel", "tanh"):
        assert part in text
