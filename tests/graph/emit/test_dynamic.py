"""Products with activations quantized at inference, run at both levels and compared with numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.algorithms.rtn import rtn
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, TensorSpec
from onnxq.graph.emit.inference.at_inference import emit_dynamic
from onnxq.graph.emit.rewrite import DynamicRewrite, Rewrite
from onnxq.graph.files import io
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build, weights
from tests.graph.emit.at_inference import Array, by_row, by_tensor, close, ops, outputs, quantized, rows_of, weight
from tests.runtime_version import before

FORMS = {"w8a8-dynamic": by_tensor, "w8a8-token": by_row}
FUSED = {"w8a8-dynamic": "DynamicQuantizeMatMul", "w8a8-token": "MatMulIntegerToFloat"}
both = pytest.mark.parametrize("preset", FORMS)
W = weights(128, 160)
B = weights(160, seed=1)
IR = {8: 3, 11: 6, 13: 7, 15: 8, 18: 8, 20: 9, 21: 10, 23: 11}


def drawn(*shape: int, seed: int = 0) -> Array:
    """Correlated rows of very different magnitudes."""
    rng = np.random.default_rng([seed, *shape])
    base = rng.normal(size=shape) + rng.normal(size=shape[-1])
    magnitudes = 10.0 ** rng.uniform(-2, 1, (*shape[:-1], 1)) if len(shape) > 1 else 1.0
    return np.asarray(base * magnitudes, np.float32)


def only_integers(model: onnx.ModelProto) -> None:
    """No large float weight is left, and nothing unfolds one at inference."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        assert array.dtype == np.int8 or array.size < 1024, tensor.name
    assert not ops(model.graph)["DequantizeLinear"]


@both
@pytest.mark.parametrize("shape", [(128,), (5, 128), (2, 5, 128), (2, 1, 3, 128), (0, 4, 128)])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_of_any_rank_becomes_one_kernel(preset: str, shape: tuple[int, ...], bias: bool) -> None:
    lead = ", ".join(["N", "S", "T"][: len(shape) - 1])
    i, o = (f"float[{lead}{', ' if lead else ''}{n}]" for n in (128, 160))
    body = "m = MatMul (x, w) y = Add (m, b)" if bias else "y = MatMul (x, w)"
    model = build(f"g ({i} x) => ({o} y) {{ {body} }}", w=W, **({"b": B} if bias else {}))
    result = quantized(model) if preset == "w8a8-dynamic" else quantized(model, preset)
    assert result.model is not None
    only_integers(result.model)
    if 0 in shape and before("1.32"):
        pytest.skip("onnxruntime before 1.32 does not multiply what has no elements by its scales")
    x = drawn(*shape)
    (y,), graph = outputs(result.model, {"x": x})
    close(y, FORMS[preset](x, W) + (B if bias else 0.0))
    assert ops(graph)[FUSED[preset]] == 1
    assert not ops(graph).keys() & {"MatMul", "Gemm", "MatMulInteger", "Cast"}


@pytest.mark.parametrize("preset", FORMS)
@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    ("bias", "alpha", "beta"),
    [
        ((160,), 1.0, 1.0),
        ((1, 160), 0.5, 2.0),
        ((6, 1), 1.5, -1.0),
        ((6, 160), 1.0, 0.5),
        ((), 1.0, 3.0),
        (None, 2.0, 1.0),
    ],
)
def test_gemm_in_every_spelling(
    preset: str, flags: tuple[int, int], bias: tuple[int, ...] | None, alpha: float, beta: float
) -> None:
    a, b = flags
    operands = "x, w, b" if bias is not None else "x, w"
    given = {"b": np.asarray(weights(*bias, seed=3), np.float32)} if bias is not None else {}
    model = build(
        f"g (float[{'128, 6' if a else '6, 128'}] x) => (float[6, 160] y) {{ y = Gemm <transA = {a}, transB = {b}, "
        f"alpha = {alpha}, beta = {beta}> ({operands}) }}",
        w=np.ascontiguousarray(W.T) if b else W,
        **given,
    )
    result = quantized(model, preset)
    assert result.model is not None
    only_integers(result.model)
    x = drawn(6, 128)
    (y,), graph = outputs(result.model, {"x": np.ascontiguousarray(x.T) if a else x})
    scaled = FORMS[preset](x, np.asarray(W * np.float32(alpha)))
    close(y, scaled + (np.float32(beta) * given["b"] if given else 0.0))
    assert ops(graph)[FUSED[preset]] == 1


def test_ort_25890_gemm_that_was_not_prepared_keeps_transb_alpha_and_a_bias_at_run_time() -> None:
    model = build(
        "g (float[6, 128] x, float[160] b) => (float[6, 160] y) "
        "{ [fc] y = Gemm <transB = 1, alpha = -2.0, beta = 0.5> (x, w, b) }",
        w=np.ascontiguousarray(W.T),
    )
    loaded = io.load(model)
    tensor = rtn(np.ascontiguousarray(W.T), TensorSpec(QType.INT8, PerAxis(0), symmetric=True, narrow_range=True))
    emit_dynamic(loaded, Rewrite(dynamic={"fc": DynamicRewrite("tensor", {1: tensor})}))
    x, b = drawn(6, 128), drawn(160)
    (y,), graph = outputs(io.to_proto(loaded), {"x": x, "b": b})
    close(y, -2.0 * by_tensor(x, W) + 0.5 * b)
    assert ops(graph)["DynamicQuantizeMatMul"] == 1


@both
def test_one_quantized_input_serves_query_key_and_value(preset: str) -> None:
    ws = {name: weights(128, 160, seed=seed) for seed, name in enumerate("qkv")}
    model = build(
        "g (float[N, S, 128] x) => (float[N, S, 160] y) "
        "{ a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v) d = Add (a, b) y = Add (d, c) }",
        **ws,
    )
    result = quantized(model, preset)
    x = drawn(2, 5, 128)
    assert result.model is not None
    (y,), graph = outputs(result.model, {"x": x})
    close(y, sum(FORMS[preset](x, w) for w in ws.values()))
    assert ops(result.model.graph)["DynamicQuantizeLinear" if preset == "w8a8-dynamic" else "QuantizeLinear"] == 1
    assert ops(graph)["MatMulIntegerToFloat"] == 3


def test_a_shared_weight_is_stored_once() -> None:
    model = build(
        "g (float[N, 128] x) => (float[N, 128] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }", w=W[:, :128]
    )
    result = quantized(model)
    assert result.model is not None
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in result.model.graph.initializer) == 1


@pytest.mark.parametrize("first", [False, True])
def test_a_bias_behind_rows_is_not_scaled_with_them(first: bool) -> None:
    """ONNX Runtime 1.32 joins an Add to the product and multiplies the bias by each row's scale."""
    add = "Add (b, m)" if first else "Add (m, b)"
    model = build(f"g (float[N, S, 128] x) => (float[N, S, 160] y) {{ m = MatMul (x, w) [add] y = {add} }}", w=W, b=B)
    result = quantized(model, "w8a8-token")
    assert result.model is not None
    assert {n.name: n.op_type for n in result.model.graph.node}["add"] == "Sum"
    x = drawn(2, 3, 128)
    (y,), graph = outputs(result.model, {"x": x})
    close(y, by_row(x, W) + B)
    assert ops(graph)["MatMulIntegerToFloat"] == 1


def test_a_constant_of_more_dimensions_than_the_product_keeps_them() -> None:
    model = build(
        "g (float[N, 128] x) => (float[1, 1, N, 160] y) { m = MatMul (x, w) y = Add (m, b) }",
        w=W,
        b=B.reshape(1, 1, 1, -1),
    )
    result = quantized(model)
    x = drawn(3, 128)
    assert result.model is not None
    (y,), _ = outputs(result.model, {"x": x})
    close(y, (by_tensor(x, W) + B)[None, None])


@both
@pytest.mark.parametrize("count", [1, 2])
def test_a_stack_of_matrices_has_scales_for_each(preset: str, count: int) -> None:
    w = weights(count, 128, 160) * np.arange(1, count + 1, dtype=np.float32).reshape(-1, 1, 1)
    model = build("g (float[N, S, 128] x) => (float[N, S, 160] y) { m = MatMul (x, w) y = Add (m, b) }", w=w, b=B)
    result = quantized(model, preset)
    x = drawn(count, 5, 128)
    assert result.model is not None
    (y,), graph = outputs(result.model, {"x": x})
    scale = np.abs(w).max(axis=1, keepdims=True).astype(np.float64) / 127
    rounded = np.rint(w / scale.astype(np.float32)) * scale
    if preset == "w8a8-token":
        steps, rows = rows_of(x)
        close(y, steps @ rounded * rows + B)
    else:
        want = np.stack([by_tensor(x, part)[i] for i, part in enumerate(w)])
        close(y, want + B)
    assert ops(graph)[FUSED[preset]] == 1


@both
def test_rows_of_zeros_give_zeros(preset: str) -> None:
    model = build("g (float[N, 128] x) => (float[N, 160] y) { y = MatMul (x, w) }", w=W)
    result = quantized(model, preset)
    assert result.model is not None
    x = drawn(4, 128)
    x[1] = 0
    for feed in (x, np.zeros_like(x)):
        (y,), _ = outputs(result.model, {"x": feed})
        assert np.isfinite(y).all()
        assert not y[1].any()


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    model = build("g (float[N, 128] x) => (float[N, 160] y) { m = MatMul (x, w) y = Add (m, b) }", w=W, b=B)
    result = quantized(model, "w8a8-token")
    assert result.model is not None
    x = drawn(4, 128)
    broken = x.copy()
    broken[2, 5] = np.nan
    loaded = outputs(result.model, {"x": x})[0][0]
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": broken})
    np.testing.assert_array_equal(y[[0, 1, 3]], loaded[[0, 1, 3]])


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(FORMS)),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(2, 70),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape_agrees_with_numpy(preset: str, m: int, k: int, n: int, bias: bool, seed: int) -> None:
    w, b = weights(k, n, seed=seed), weights(n, seed=seed)
    body = "m = MatMul (x, w) y = Add (m, b)" if bias else "y = MatMul (x, w)"
    model = build(
        f"g (float[1, {m}, {k}] x) => (float[1, {m}, {n}] y) {{ [fc] {body} }}".replace("[fc] m", "[fc] m"), w=w, b=b
    )
    result = quantized(model, preset, include=["fc"])
    x = drawn(1, m, k, seed=seed)
    assert result.model is not None
    (y,), _ = outputs(result.model, {"x": x})
    close(y, FORMS[preset](x, w) + (b if bias else 0.0))


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("gemm", [False, True])
def test_groups_of_weights_have_scales_of_their_own(size: int, gemm: bool) -> None:
    """ZeroQuant, arXiv:2206.01861: a sum of one integer product a group; the last may be shorter."""
    w = weights(144, 160)
    body = "y = Gemm <alpha = 2.0> (x, w, b)" if gemm else "m = MatMul (x, w) y = Add (m, b)"
    model = build(f"g (float[N, 144] x) => (float[N, 160] y) {{ {body} }}", w=w, b=B)
    result = quantized(model, "w8a8-token", recipe=Recipe(block_size=size))
    x = drawn(4, 144)
    assert result.model is not None
    (y,), graph = outputs(result.model, {"x": x})
    steps, scale = rows_of(x)
    want = np.zeros((4, 160))
    for start in range(0, 144, size):
        integers, scales = weight(w[start : start + size] * np.float32(2 if gemm else 1))
        want += steps[:, start : start + size] @ integers * scales.reshape(-1) * scale
    close(y, want + B)
    assert ops(graph)["MatMulIntegerToFloat"] == -(-144 // size)


@both
@pytest.mark.parametrize("opset", IR)
def test_operator_sets(preset: str, opset: int) -> None:
    model = build(
        "g (float[N, 128] x) => (float[N, 160] y) { m = MatMul (x, w) y = Add (m, b) }",
        opset=opset,
        ir=IR[opset],
        w=W,
        b=B,
    )
    if opset == 23 and before("1.28"):
        pytest.skip("onnxruntime before 1.28 has no QuantizeLinear of operator set 23")
    result = quantized(model, preset)
    x = drawn(3, 128)
    assert result.model is not None
    (y,), graph = outputs(result.model, {"x": x})
    close(y, FORMS[preset](x, W) + B)
    assert ops(graph)[FUSED[preset]] == 1


@pytest.mark.parametrize(
    ("before", "zero"), [("h = Relu (x)", 0), ("s = Sigmoid (x) h = Mul (x, s)", 16), ("h = Tanh (x)", 128)]
)
def test_rows_that_are_hardly_negative_use_the_whole_grid(before: str, zero: int) -> None:
    model = build(f"g (float[N, 128] x) => (float[N, 128] h, float[N, 160] y) {{ {before} y = MatMul (h, w) }}", w=W)
    result = quantized(model, "w8a8-token")
    x = drawn(4, 128)
    x[0] = -3
    assert result.model is not None
    (h, y), graph = outputs(result.model, {"x": x})
    close(y, by_row(h, W, zero))
    assert ops(graph)["MatMulIntegerToFloat"] == 1


def test_weights_for_avx2_use_seven_bits() -> None:
    model = build("g (float[N, 128] x) => (float[N, 160] y) { y = MatMul (x, w) }", w=W)
    result = quantized(model, target="cpu-avx2")
    assert result.model is not None
    largest = max(
        np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()
        for t in result.model.graph.initializer
        if t.data_type == 3
    )
    assert largest == 63
    x = drawn(3, 128)
    close(outputs(result.model, {"x": x})[0][0], by_tensor(x, W, bits=7))


def test_static_and_dynamic_layers_in_one_model() -> None:
    model = build(
        "g (float[N, 128] x) => (float[N, 160] y) { [a] h = MatMul (x, v) r = Relu (h) [b] y = MatMul (r, w) }",
        v=weights(128, 128), w=W,
    )  # fmt: skip
    recipe = Recipe(preset="w8a8", rules=(Rule("b", preset="w8a8-dynamic"),))
    feeds = [{"x": weights(4, 128, seed=i)} for i in range(4)]
    result = quantized(model, "w8a8", recipe=recipe, calibration=feeds)
    assert result.model is not None
    assert {n: p.action for n, p in result.plan.nodes.items() if n in "ab"} == {"a": "integer", "b": "dynamic"}
    assert result.to_dict()["at_inference"] == [{"node": "b", "op_type": "MatMul", "form": "tensor"}]
    outputs(result.model, feeds[0])
