"""BatchNormalization and per-channel arithmetic disappear into the layer before them, and only where that is exact."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import Array, build, ops, prepared, weights


def bn(channels: int) -> dict[str, Array]:
    return {
        "scale": weights(channels, seed=1, low=0.5, high=2.0),
        "shift": weights(channels, seed=2),
        "mean": weights(channels, seed=3),
        "var": weights(channels, seed=4, low=0.5, high=2.0),
    }


BN = "BatchNormalization (c, scale, shift, mean, var)"

# (type of x, type of y, layer that makes c, its weight's shape)
LAYERS = {
    "conv1d": ("float[N,3,9]", "float[N,6,7]", "c = Conv (x, w)", (6, 3, 3)),
    "conv2d": ("float[N,3,8,8]", "float[N,6,6,6]", "c = Conv (x, w)", (6, 3, 3, 3)),
    "conv3d": ("float[N,3,5,5,5]", "float[N,6,3,3,3]", "c = Conv (x, w)", (6, 3, 3, 3, 3)),
    "padded": ("float[N,3,8,8]", "float[N,6,8,8]", "c = Conv <pads = [1, 1, 1, 1]> (x, w)", (6, 3, 3, 3)),
    "grouped": ("float[N,4,8,8]", "float[N,6,6,6]", "c = Conv <group = 2> (x, w)", (6, 2, 3, 3)),
    "depthwise": ("float[N,6,8,8]", "float[N,6,6,6]", "c = Conv <group = 6> (x, w)", (6, 1, 3, 3)),
    "transpose": ("float[N,4,5,5]", "float[N,6,7,7]", "c = ConvTranspose (x, w)", (4, 6, 3, 3)),
    "transpose_grouped": ("float[N,4,5,5]", "float[N,6,7,7]", "c = ConvTranspose <group = 2> (x, w)", (4, 3, 3, 3)),
    "gemm": ("float[N,4]", "float[N,6]", "c = Gemm (x, w)", (4, 6)),
    "gemm_transposed": ("float[N,4]", "float[N,6]", "c = Gemm <transB = 1, alpha = 0.5> (x, w)", (6, 4)),
    "matmul": ("float[N,4]", "float[N,6]", "c = MatMul (x, w)", (4, 6)),
}
OP = {"conv": "Conv", "padded": "Conv", "grouped": "Conv", "depthwise": "Conv", "transpose": "ConvTranspose"}


def layer(name: str, after: str, **constants: Array) -> object:
    kind, result, node, shape = LAYERS[name]
    used = {
        key: array for key, array in constants.items() if f"{key})" in after or f"{key}," in after or f"({key}" in after
    }
    return build(f"g ({kind} x) => ({result} y) {{ {node} y = {after} }}", w=weights(*shape), **used)


@pytest.mark.parametrize("name", LAYERS)
def test_batch_normalization_is_folded(name: str) -> None:
    model, report = prepared(layer(name, BN, **bn(6)))
    assert ops(model).total() == (2 if name == "matmul" and report.changes["gemm"] == 0 else 1)
    assert not ops(model)["BatchNormalization"]
    assert model.graph[-1].outputs[0].name == "y"


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "matmul"])
def test_a_bias_that_is_there_takes_it_up(name: str) -> None:
    kind, result, node, shape = LAYERS[name]
    text = f"g ({kind} x) => ({result} y) {{ {node.replace('w)', 'w, b)')} y = {BN} }}"
    model, _ = prepared(build(text, w=weights(*shape), b=weights(6), **bn(6)))
    assert ops(model).total() == 1
    assert sorted(model.graph.initializers) == ["b", "w"]


ARITHMETIC = [
    ("Add (c, k)", ()), ("Add (k, c)", (1,)), ("Sub (c, k)", ()), ("Sub (k, c)", ()), ("Mul (c, k)", ()),
    ("Mul (k, c)", ()), ("Div (c, k)", ()), ("Add (c, k)", "C"), ("Sub (k, c)", "C"), ("Mul (c, k)", "C"),
    ("Div (c, k)", "C"), ("Add (k, c)", "1C"),
]  # fmt: skip


@pytest.mark.parametrize(("after", "shape"), ARITHMETIC)
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "transpose_grouped", "gemm", "matmul"])
def test_constant_arithmetic_is_folded(name: str, after: str, shape: object) -> None:
    rank = len(LAYERS[name][3])
    dims = shape if isinstance(shape, tuple) else (6,) + (1,) * (rank - 2)
    if shape == "1C":
        dims = (1, *dims)
    model, _ = prepared(layer(name, after, k=weights(*dims, low=0.5, high=2.0)))
    assert ops(model).total() == 1
    assert set(ops(model)) <= {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@pytest.mark.parametrize(
    ("name", "after", "shape"),
    [
        ("conv2d", "Add (c, k)", (6,)),  # numpy broadcasting: along the width
        ("conv2d", "Mul (c, k)", (1, 1, 6)),
        ("conv2d", "Add (c, k)", (2, 6, 1, 1)),
        ("conv2d", "Add (c, k)", (1, 1, 6, 1, 1)),
        ("gemm", "Add (c, k)", (2, 1)),
        ("gemm", "Div (k, c)", (6,)),
        ("matmul", "Mul (c, k)", (2, 1)),
    ],
)
def test_other_broadcasting_stays(name: str, after: str, shape: tuple[int, ...]) -> None:
    kind, _, node, weight = LAYERS[name]
    text = f"g ({kind.replace('N', '2')} x) => (float y) {{ {node} y = {after} }}"
    proto = build(text, w=weights(*weight), k=weights(*shape, low=0.5))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model, _ = prepared(proto)
    assert ops(model).total() == 2


def test_one_channel_is_not_widened() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv (x, w) y = Add (c, k) }"
    model, _ = prepared(build(text, w=weights(1, 3, 3, 3), k=weights(1, 4, 1, 1)))
    assert ops(model) == {"Conv": 1, "Add": 1}


def test_matmul_of_unknown_rank_keeps_its_bias_as_add() -> None:
    text = """g (float[N,S,4] x) => (float[N,S,6] y) {
        c = MatMul (x, w) a = Add (c, b) m = Mul (a, s) y = Add (t, m)
    }"""
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(6), s=weights(6, seed=1), t=weights(6, seed=2)))
    assert ops(model) == {"MatMul": 1, "Add": 1}
    assert set(model.graph.initializers) == {"w", "b"}


def test_matmul_chain_becomes_one_gemm() -> None:
    text = "g (float[N,4] x) => (float[N,6] y) { [fc] c = MatMul (x, w) a = Add (c, b) m = Mul (a, s) y = Sub (m, t) }"
    model, _ = prepared(build(text, w=weights(4, 6), b=weights(6), s=weights(6, seed=1), t=weights(6, seed=2)))
    assert ops(model) == {"Gemm": 1}
    assert model.graph[0].name == "fc"


def test_lone_matmul_gets_an_add_from_batch_normalization_only_on_matrices() -> None:
    text = "g (float[N,6,6] x) => (float[N,6,6] y) { c = MatMul (x, w) y = " + BN + " }"
    model, _ = prepared(build(text, w=weights(6, 6), **bn(6)))
    assert ops(model) == {"MatMul": 1, "BatchNormalization": 1}


def test_batch_normalization_without_a_layer_stays() -> None:
    text = "g (float[N,6,8,8] x) => (float[N,6,8,8] y) { c = Relu (x) y = " + BN + " }"
    model, _ = prepared(build(text, **bn(6)))
    assert ops(model) == {"Relu": 1, "BatchNormalization": 1}


@pytest.mark.parametrize(
    ("outputs", "rest"),
    [("float[N,6,6,6] y, float[N,6,6,6] c", ""), ("float[N,6,6,6] y, float[N,6,6,6] z", "z = Relu (c)")],
)
def test_a_layer_that_something_else_reads_stays(outputs: str, rest: str) -> None:
    text = f"g (float[N,3,8,8] x) => ({outputs}) {{ c = Conv (x, w) y = {BN} {rest} }}"
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3), **bn(6)))
    assert ops(model)["BatchNormalization"] == 1


def test_a_layer_that_a_body_reads_stays() -> None:
    text = f"""g (float[N,3,8,8] x, bool flag) => (float[N,6,6,6] y, float[N,6,6,6] z) {{
        c = Conv (x, w)
        y = {BN}
        z = If (flag) <then_branch = t () => (float[N,6,6,6] p) {{ p = Relu (c) }},
                       else_branch = e () => (float[N,6,6,6] q) {{ q = Neg (c) }}>
    }}"""
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3), **bn(6)))
    assert ops(model)["BatchNormalization"] == 1


def test_computed_weights_and_parameters_stay() -> None:
    text = "g (float[N,3,8,8] x, float[6,3,3,3] w) => (float[N,6,6,6] y) { c = Conv (x, w) y = " + BN + " }"
    model, _ = prepared(build(text, **bn(6)))
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}
    text = "g (float[N,3,8,8] x, float[6] mean) => (float[N,6,6,6] y) { c = Conv (x, w) y = " + BN + " }"
    constants = bn(6)
    del constants["mean"]
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3), **constants))
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}


def test_training_batch_normalization_stays() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,6,6,6] y) {
        c = Conv (x, w)
        y, m, v = BatchNormalization <training_mode = 1> (c, scale, shift, mean, var)
    }"""
    model = io.load(build(text, w=weights(6, 3, 3, 3), **bn(6)))
    prepare(model)
    assert ops(model)["BatchNormalization"] == 1


def test_a_shared_weight_is_copied_for_each_normalization() -> None:
    text = """g (float[N,3,8,8] x, float[N,3,8,8] x2) => (float[N,6,6,6] y, float[N,6,6,6] z, float[N,6,6,6] u) {
        c = Conv (x, w)
        y = BatchNormalization (c, scale, shift, mean, var)
        d = Conv (x2, w)
        z = BatchNormalization (d, shift, scale, mean, var)
        u = Conv (x2, w, shift)
    }"""
    proto = build(text, w=weights(6, 3, 3, 3), **bn(6))
    model, _ = prepared(proto)
    assert ops(model) == {"Conv": 3}
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weights(6, 3, 3, 3))
    assert np.array_equal(model.graph.initializers["shift"].const_value.numpy(), bn(6)["shift"])


def test_a_large_shared_weight_is_not_copied_for_a_factor() -> None:
    text = """g (float[N,200] x) => (float[N,200] y, float[N,200] z) {
        c = MatMul (x, w)
        y = Mul (c, k)
        d = MatMul (y, w)
        z = Mul (d, k)
    }"""
    model, _ = prepared(build(text, w=weights(200, 200), k=np.float32(3.0).reshape(1)))
    assert ops(model) == {"MatMul": 2, "Mul": 2}


def test_a_factor_that_overflows_stays() -> None:
    text = "g (float[N,4] x) => (float[N,6] y) { c = MatMul (x, w) y = Mul (c, k) }"
    model = io.load(build(text, w=weights(4, 6) * np.float32(1e30), k=np.float32(1e30).reshape(1)))
    prepare(model)
    assert ops(model) == {"MatMul": 1, "Mul": 1}


def test_bodies_are_folded_like_the_main_graph() -> None:
    text = f"""g (float[N,3,8,8] x, bool flag) => (float[N,6,6,6] y) {{
        y = If (flag) <
            then_branch = t () => (float[N,6,6,6] p) {{ c = Conv (x, w) p = {BN} }},
            else_branch = e () => (float[N,6,6,6] q) {{ c = Conv (x, w) d = {BN} q = Relu (d) }}>
    }}"""
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3), **bn(6)))
    assert ops(model) == {"If": 1, "Conv": 2, "Relu": 1}


def test_loop_bodies_are_folded() -> None:
    text = """g (float[2,6] x) => (float[2,6] y) {
        n = Constant <value_int = 3> ()
        go = Constant <value = bool {1}> ()
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[2,6] s) => (bool c2, float[2,6] t) {
            c2 = Identity (c)
            m = MatMul (s, w)
            a = Add (m, k)
            t = Mul (a, k)
        }>
    }"""
    model, _ = prepared(build(text, w=weights(6, 6), k=weights(6, low=0.1, high=0.9)))
    assert ops(model)["Mul"] == 0
    assert ops(model)["MatMul"] + ops(model)["Gemm"] == 1


def test_scan_bodies_are_folded() -> None:
    text = """g (float[2,6] h, float[5,2,6] x) => (float[2,6] y, float[5,2,6] z) {
        y, z = Scan <num_scan_inputs = 1, body = b (float[2,6] s, float[2,6] e) => (float[2,6] t, float[2,6] o) {
            m = Gemm <transB = 1> (e, w, k)
            v = Mul (m, k)
            t = Add (s, v)
            o = Identity (t)
        }> (h, x)
    }"""
    model, _ = prepared(build(text, w=weights(6, 6), k=weights(6, low=0.1, high=0.9)))
    assert ops(model) == {"Scan": 1, "Gemm": 1, "Add": 1, "Identity": 1}


def test_names_and_outputs_are_those_of_the_last_folded_node() -> None:
    text = f"""g (float[N,3,8,8] x) => (float[N,6,6,6] y, float[N,6,6,6] r) {{
        [conv] c = Conv (x, w)
        [bn] y = {BN}
        [act] r = Relu (y)
    }}"""
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3), **bn(6)))
    assert [node.name for node in model.graph] == ["conv", "act"]
    assert [value.name for value in model.graph.outputs] == ["y", "r"]
    assert walk.dims(model.graph.outputs[0]) == (None, 6, 6, 6)


def test_float16_stays_float16() -> None:
    text = "g (float16[N,3,8,8] x) => (float16[N,6,6,6] y) { c = Conv (x, w) y = Mul (c, k) }"
    k = weights(6, 1, 1, low=0.5).astype(np.float16)
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3).astype(np.float16), k=k), rtol=5e-3)
    assert ops(model) == {"Conv": 1}
    assert model.graph.initializers["w"].const_value.numpy().dtype == np.float16
