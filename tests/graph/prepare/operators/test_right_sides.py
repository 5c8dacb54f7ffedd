"""Products with their constant on the left, or with a vector, get it on the right as a matrix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.affine import params_for, quantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerTensor, QTensor, TensorSpec
from onnxq.graph.emit.apply import emit
from onnxq.graph.emit.rewrite import NodeRewrite, Rewrite
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.neighbours.right_sides import run as turn
from onnxq.graph.prepare.neighbours.right_sides import turn_back
from tests.graph.build import build, ops, prepared, run, same, weights

LEFT = "g (float[N, 48, 7] x) => (float[N, 40, 7] y) { [p] y = MatMul (w, x) }"


@pytest.mark.parametrize("shape", [(40, 48), (2, 40, 48)])
def test_a_constant_on_the_left(shape: tuple[int, ...]) -> None:
    model, report = prepared(build(LEFT, w=weights(*shape)))
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "Transpose"]
    assert report.changes["right_sides"] == 1
    assert model.graph[1].name == "p"
    assert "w" in model.graph.initializers


def test_the_input_is_turned_once_for_all_readers() -> None:
    text = """g (float[N, 48, 7] x) => (float[N, 40, 7] y, float[N, 48, 7] z) {
        y = MatMul (w, x) z = MatMul (v, x) }"""
    model, _ = prepared(build(text, w=weights(40, 48), v=weights(48, 48)))
    assert ops(model) == Counter({"Transpose": 3, "MatMul": 2})


def test_a_vector_on_the_right_of_a_constant_needs_no_transposition() -> None:
    text = "g (float[48] x) => (float[40] y) { y = MatMul (w, x) }"
    model, _ = prepared(build(text, w=weights(40, 48)))
    assert ops(model) == Counter({"MatMul": 1})
    assert model.graph.initializers["w"].shape == (48, 40)


def test_a_constant_vector_on_the_right_becomes_a_column() -> None:
    text = "g (float[N, 9, 48] x) => (float[N, 9] y) { m = MatMul (x, v) y = Relu (m) }"
    model, report = prepared(build(text, v=weights(48)))
    assert ops(model) == Counter({"MatMul": 1, "Squeeze": 1, "Relu": 1})
    assert report.changes["right_sides"] == 1


def test_a_shared_constant_keeps_its_other_readers() -> None:
    text = """g (float[N, 48, 40] x) => (float[N, 40, 40] y, float[N, 48, 48] z, float[N, 48] u, float[48] t) {
        y = MatMul (w, x) z = MatMul (x, w) u = MatMul (x, v) t = Neg (v) }"""
    model, _ = prepared(build(text, w=weights(40, 48), v=weights(40)))
    assert {"w", "v"} <= set(model.graph.initializers)
    assert model.graph.initializers["v"].shape == (40,)


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("g (float[N, 8, 7] x) => (float[N, 8, 7] y) { y = MatMul (w, x) }", weights(8, 8)),
        ("g (float[N, 40, 7] x) => (float[N, 7] y) { y = MatMul (w, x) }", weights(40)),
        ("g (float[40, 7] x) => (float[3, 30, 7] y) { y = MatMul (w, x) }", weights(3, 30, 40)),
        ("g (float[48] x) => (float y) { y = MatMul (x, w) }", weights(48)),
    ],
)
def test_what_would_gain_nothing_stays(text: str, constant: np.ndarray) -> None:
    _, report = prepared(build(text, w=constant))
    assert not report.changes["right_sides"]


def test_gemm_with_a_transposed_input() -> None:
    text = """g (float[12, N] x) => (float[N, 6] y, float[N, 5] z) {
        y = Gemm <transA = 1> (x, w, b) z = Gemm <transA = 1, transB = 1> (x, v) }"""
    model, _ = prepared(build(text, w=weights(12, 6), b=weights(6), v=weights(5, 12)))
    assert ops(model) == Counter({"Transpose": 1, "Gemm": 2})


def test_inside_a_body() -> None:
    text = """g (float[48, 7] x, bool k) => (float[40, 7] y) {
        y = If (k) <
            then_branch = t () => (float[40, 7] p) { p = MatMul (w, x) },
            else_branch = e () => (float[40, 7] q) { n = Neg (x) q = MatMul (w, n) }
        >
    }"""
    model, report = prepared(build(text, w=weights(40, 48)))
    assert report.changes["right_sides"] == 2
    assert ops(model)["Transpose"] == 4


@pytest.mark.parametrize("shape", [(40, 48), (2, 40, 48)])
def test_what_stays_float_is_turned_back(shape: tuple[int, ...]) -> None:
    proto = build(LEFT, w=weights(*shape))
    model = io.load(proto)
    assert turn(model) == 1
    assert turn_back(model) == 1
    assert turn_back(model) == 0
    assert [(node.op_type, [v.name for v in node.inputs if v is not None]) for node in model.graph] == [
        ("MatMul", ["w", "x"])
    ]
    feeds = {"x": weights(2, 48, 7)}
    same(run(proto.SerializeToString(), feeds), run(io.to_bytes(model), feeds), 1e-6)


def test_a_transposed_input_that_others_read_is_not_turned_back() -> None:
    text = """g (float[N, 48, 7] x) => (float[N, 40, 7] y, float[N, 48, 7] z) {
        y = MatMul (w, x) z = MatMul (v, x) }"""
    model = io.load(build(text, w=weights(40, 48), v=weights(48, 48)))
    prepare(model)
    assert turn_back(model) == 0


def nodes(model: onnx.ModelProto | None) -> Counter[str]:
    assert model is not None
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("preset", ["w8", "lut4"])
def test_weights_that_are_unfolded_at_load_lie_on_the_left(preset: str) -> None:
    proto = build(LEFT.replace("48", "96").replace("40", "80"), w=weights(80, 96))
    result = onnxq.quantize(proto, preset=preset, benchmark=False)
    assert result.model is not None
    assert [node.op_type for node in result.model.graph.node][-2:] == ["Transpose", "MatMul"]
    assert result.model.graph.node[-1].input[1] == "x"
    found = onnxq.inspect(result.model)
    assert [weight["node"] for weight in found.weights] == ["p"]
    back = onnxq.dequantize(result.model).model
    assert nodes(back) == Counter({"MatMul": 1})


@pytest.mark.parametrize("preset", ["w4", "w8a8-dynamic", "w8a8-token"])
def test_every_kernel_takes_it_on_the_right(preset: str) -> None:
    rng = np.random.default_rng(0)
    proto = build(LEFT.replace("48", "256").replace("40", "192"), w=weights(192, 256))
    data = {"x": rng.normal(size=(8, 256, 7)).astype(np.float32)}
    result = onnxq.quantize(proto, calibration=[data], preset=preset, benchmark=False)
    made = nodes(result.model)
    assert made["MatMulNBits"] + made["MatMulInteger"] == 1
    assert result.model is not None
    expected = run(proto.SerializeToString(), data)["y"]
    got = run(result.model.SerializeToString(), data)["y"]
    assert np.abs(got - expected).max() < (0.2 if preset == "w4" else 0.02) * np.abs(expected).max()


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_the_integer_kernel_transposes_its_input_where_nothing_else_has(form: str) -> None:
    x, w = weights(12, 5), weights(12, 6)
    proto = build("g (float[12, 5] x) => (float[5, 6] y) { [p] y = Gemm <transA = 1> (x, w) }", w=w)
    model = io.load(proto)
    grid, narrow = TensorSpec(QType.UINT8, PerTensor()), TensorSpec(QType.INT8, PerTensor(), symmetric=True)
    of_weight = params_for(w, narrow)
    change = NodeRewrite({1: QTensor(quantize(w, of_weight), of_weight)})
    emit(model, Rewrite({"x": params_for(x, grid), "y": params_for(x.T @ w, grid)}, {"p": change}), form)
    got = run(io.to_bytes(model), {"x": x})["y"]
    assert got.shape == (5, 6)
    assert np.abs(got - x.T @ w).max() < 0.1
