"""Fully connected layers have one form afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import build, ops, prepared, weights


@pytest.mark.parametrize("transpose", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("beta", [1.0, -2.0])
@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,), ()])
def test_gemm_has_one_form(transpose: int, alpha: float, beta: float, bias: tuple[int, ...]) -> None:
    node = f"y = Gemm <transB = {transpose}, alpha = {alpha}, beta = {beta}> (x, w, b)"
    text = f"g (float[N,4] x) => (float[N,6] y) {{ {node} }}"
    model, _ = prepared(build(text, w=weights(*((6, 4) if transpose else (4, 6))), b=weights(*bias)))
    gemm = model.graph[0]
    assert dict(gemm.attributes) == {} or all(walk.attr_int(gemm, name) == 0 for name in ("transB", "transA"))
    assert walk.attr_float(gemm, "alpha", 1.0) == walk.attr_float(gemm, "beta", 1.0) == 1.0
    assert walk.const_array(gemm.inputs[1]).shape == (4, 6)
    assert walk.const_array(gemm.inputs[2]).shape == (6,)
    assert set(model.graph.initializers) == {"w", "b"}


def test_a_transposed_activation_is_transposed_by_a_node() -> None:
    text = "g (float[4,N] x) => (float[N,6] y) { y = Gemm <transA = 1, transB = 1> (x, w) }"
    model, _ = prepared(build(text, w=weights(6, 4)))
    assert [node.op_type for node in model.graph] == ["Transpose", "Gemm"]
    assert not walk.attr_int(model.graph[1], "transA")
    assert not walk.attr_int(model.graph[1], "transB")


def test_a_computed_weight_stays_as_it_is() -> None:
    text = "g (float[N,4] x, float[6,4] w) => (float[N,6] y) { y = Gemm <transB = 1, alpha = 0.5> (x, w) }"
    model, _ = prepared(build(text))
    assert walk.attr_int(model.graph[0], "transB") == 1
    assert walk.attr_float(model.graph[0], "alpha") == 0.5


def test_a_bias_matrix_stays() -> None:
    text = "g (float[2,4] x) => (float[2,6] y) { y = Gemm <beta = 0.5> (x, w, b) }"
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(2, 6)))
    assert walk.const_array(model.graph[0].inputs[2]).shape == (2, 6)
    assert walk.attr_float(model.graph[0], "beta", 1.0) == 1.0


def test_a_shared_weight_is_transposed_once_and_its_other_reader_keeps_it() -> None:
    text = """g (float[N,16] x, int64[K] ids) => (float[N,32] y, float[N,32] z, float[K,16] e) {
        y = Gemm <transB = 1> (x, w, b)
        z = Gemm <transB = 1> (x, w)
        e = Gather (w, ids)
    }"""
    model, _ = prepared(build(text, w=weights(32, 16), b=weights(32)), dims=3)
    assert ops(model) == {"Gemm": 2, "Gather": 1}
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    assert gemms[0].inputs[1] is gemms[1].inputs[1]
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weights(32, 16))
    assert len(model.graph.initializers) == 3


def test_matmul_and_add_become_gemm_on_matrices() -> None:
    text = "g (float[N,4] x) => (float[N,6] y) { [fc] m = MatMul (x, w) [fc_add] y = Add (b, m) }"
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(1, 6)))
    assert ops(model) == {"Gemm": 1}
    assert model.graph[0].name == "fc"
    assert [value.name for value in model.graph[0].inputs] == ["x", "w", "b"]


def test_the_rank_may_be_inferred() -> None:
    text = """g (float[N,2,2] x) => (float[N,6] y) {
        f = Flatten (x)
        m = MatMul (f, w)
        y = Add (m, b)
    }"""
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(6)))
    assert ops(model) == {"Flatten": 1, "Gemm": 1}


@pytest.mark.parametrize("kind", ["float[N,S,4]", "float[4]"])
def test_other_ranks_stay_matmul(kind: str) -> None:
    result = kind.replace("4", "6")
    text = f"g ({kind} x) => ({result} y) {{ m = MatMul (x, w) y = Add (m, b) }}"
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(6)))
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_an_unknown_rank_stays_matmul() -> None:
    proto = build("g (float[N,4] x) => (float y) { m = MatMul (x, w) y = Add (m, b) }", w=weights(4, 6), b=weights(6))
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.type.tensor_type.ClearField("shape")
    model = io.load(proto)
    prepare(model)
    assert ops(model) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    "nodes",
    ["m = MatMul (x, w) y = Add (m, k)", "m = MatMul (x, w) y = Add (m, x)", "m = MatMul (v, x) y = Add (m, b)"],
)
def test_other_adds_stay(nodes: str) -> None:
    text = f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}"
    constants = {"w": weights(4, 4), "k": weights(4, 1), "v": weights(4, 4, seed=1), "b": weights(4)}
    model, _ = prepared(
        build(text, **{name: a for name, a in constants.items() if f"({name}," in nodes or f" {name})" in nodes})
    )
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_int_matmul_stays() -> None:
    text = "g (int64[N,4] x) => (int64[N,6] y) { m = MatMul (x, w) y = Add (m, b) }"
    model, _ = prepared(build(text, w=np.ones((4, 6), np.int64), b=np.ones(6, np.int64)))
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_a_body_is_changed_and_an_outer_weight_shared() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        y = If (flag) <
            then_branch = t () => (float[N,4] p) { p = Gemm <transB = 1> (x, w, b) },
            else_branch = e () => (float[N,4] q) { m = MatMul (x, w) q = Add (m, b) }>
    }"""
    model, _ = prepared(build(text, w=weights(4, 4), b=weights(4)))
    assert ops(model) == {"If": 1, "Gemm": 2}
