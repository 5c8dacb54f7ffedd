"""LLM.int8(): outlier channels in float, the rest on integers, run at both levels and compared with numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import CalibrationError, RecipeError
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build, weights
from tests.graph.emit.at_inference import Array, by_row, close, ops, outputs, rows_of, weight

K, N = 160, 192
OUTLIERS = np.array([2, 77, 150])
W = weights(K, N)
B = weights(N, seed=1)


def drawn(*lead: int, seed: int = 0, factor: float = 40.0) -> Array:
    """Rows that stay below 6 in all channels but a few, where they do not."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*lead, K)).clip(-4, 4)
    x[..., OUTLIERS] = np.sign(x[..., OUTLIERS]) * factor * (1 + np.abs(x[..., OUTLIERS]) / 4)
    return x.astype(np.float32)


def split(x: Array, w: Array, channels: Array = OUTLIERS) -> Array:
    """The reference: the product by rows without some channels, and these in float."""
    rest, lower = x.copy(), w.copy()
    rest[..., channels] = 0
    lower[channels] = 0
    return np.asarray(by_row(rest, lower) + x[..., channels].astype(np.float64) @ w[channels].astype(np.float64))


def quantized(model: onnx.ModelProto, *lead: int, factor: float = 40.0, **options):
    data = [{"x": drawn(*lead, seed=seed, factor=factor)} for seed in range(5)]
    options = {"preset": "llm-int8", **options}
    result = onnxq.quantize(model, calibration=data, benchmark=False, threads=1, **options)
    assert result.model is not None
    return result


@pytest.mark.parametrize("lead", [(7,), (2, 5), (2, 1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_split_is_one_integer_kernel_and_one_small_product(lead: tuple[int, ...], bias: bool) -> None:
    axes = ", ".join("ABC"[: len(lead)])
    body = "[fc] m = MatMul (x, w) \n y = Add (m, b)" if bias else "[fc] y = MatMul (x, w)"
    text = f"g (float[{axes}, {K}] x) => (float[{axes}, {N}] y) {{ {body} }}"
    result = quantized(build(text, w=W, **({"b": B} if bias else {})), *lead)
    x = drawn(*lead, seed=9)
    (y,), graph = outputs(result.model, {"x": x})
    close(y, split(x, W) + (B if bias else 0.0))
    count = ops(graph)
    assert count["MatMulIntegerToFloat"] == 1
    assert count["Gather"] == 1
    assert not count.keys() & {"MatMulInteger", "Cast"}
    (entry,) = result.to_dict()["at_inference"]
    assert (entry["form"], entry["outlier_channels"], entry["channels"]) == ("split", 3, K)
    plain = np.abs(by_row(x, W) - x.astype(np.float64) @ W).mean()
    assert np.abs(y - (B if bias else 0.0) - x.astype(np.float64) @ W).mean() < plain / 5


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_keeps_alpha_and_bias(transposed: int) -> None:
    model = build(
        f"g (float[A, {K}] x) => (float[A, {N}] y) {{ [fc] y = Gemm <transB = {transposed}, alpha = 0.5> (x, w, b) }}",
        w=np.ascontiguousarray(W.T) if transposed else W,
        b=B,
    )
    x = drawn(6, seed=9)
    (y,), graph = outputs(quantized(model, 7).model, {"x": x})
    close(y, split(x, np.asarray(W * np.float32(0.5))) + B)
    assert ops(graph)["MatMulIntegerToFloat"] == 1


def test_readers_of_a_value_share_its_parts() -> None:
    model = build(
        f"g (float[A, S, {K}] x) => (float[A, S, {N}] y) "
        "{ a = MatMul (x, v) \n b = MatMul (x, w) \n y = Add (a, b) }",
        v=weights(K, N, seed=3),
        w=W,
    )
    x = drawn(2, 3, seed=9)
    (y,), graph = outputs(quantized(model, 2, 4).model, {"x": x})
    close(y, split(x, W) + split(x, weights(K, N, seed=3)))
    count = ops(graph)
    assert count["MatMulIntegerToFloat"] == 2
    assert count["Gather"] == 1
    assert count["QuantizeLinear"] == 1


def test_groups_of_weights() -> None:
    model = build(f"g (float[A, {K}] x) => (float[A, {N}] y) {{ [fc] y = MatMul (x, w) }}", w=W)
    result = quantized(model, 7, block_size=64)
    x = drawn(6, seed=9)
    (y,), _ = outputs(result.model, {"x": x})
    rest, lower = x.copy(), W.copy()
    rest[:, OUTLIERS], lower[OUTLIERS] = 0, 0
    steps, scale = rows_of(rest)
    want = x[:, OUTLIERS].astype(np.float64) @ W[OUTLIERS]
    for start in range(0, K, 64):
        integers, scales = weight(lower[start : start + 64])
        want += steps[:, start : start + 64] @ integers * scales.reshape(-1) * scale
    close(y, want)


def test_layers_without_outliers_are_plain() -> None:
    model = build(f"g (float[A, {K}] x) => (float[A, {N}] y) {{ [fc] y = MatMul (x, w) }}", w=W)
    result = quantized(model, 7, factor=2.0)
    assert [entry["form"] for entry in result.to_dict()["at_inference"]] == ["token"]
    x = drawn(6, seed=9, factor=2.0)
    (y,), _ = outputs(result.model, {"x": x})
    close(y, by_row(x, W))
    assert "outliers" not in result.summary()


def test_a_layer_with_many_outliers_stays_float_and_says_why() -> None:
    model = build(
        f"g (float[A, {K}] x) => (float[A, {K}] y) "
        "{ [fc] m = MatMul (x, w) \n k = Tanh (m) \n [fd] y = MatMul (k, v) }",
        w=weights(K, K),
        v=weights(K, K, seed=2),
    )
    result = quantized(model, 7, outliers=1.5)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert "of its 160 input channels" in kept["fc"]
    assert "above 5% splitting them off would be slower" in kept["fc"]


def test_rules_and_presets_that_split() -> None:
    model = build(f"g (float[A, {K}] x) => (float[A, {N}] y) {{ [fc] y = MatMul (x, w) }}", w=W)
    recipe = Recipe(preset="w8", rules=(Rule("fc", preset="llm-int8"),))
    assert quantized(model, 7, preset=None, recipe=recipe).to_dict()["at_inference"][0]["form"] == "split"
    assert quantized(model, 7, preset="w8a8-token", outliers=6.0).to_dict()["at_inference"][0]["form"] == "split"
    with pytest.raises(RecipeError, match="--outliers 6: preset w8a8 does not split layers; use llm-int8"):
        quantized(model, 7, preset="w8a8", outliers=6.0)


def test_saved_statistics_need_magnitudes(tmp_path) -> None:
    model = build(f"g (float[A, {K}] x) => (float[A, {N}] y) {{ [fc] y = MatMul (x, w) }}", w=W)
    data = [{"x": drawn(7, seed=seed)} for seed in range(3)]
    for moments in (False, True):
        onnxq.calibrate(model, tmp_path / "s.npz", calibration=data, moments=moments)
        given = {"preset": "llm-int8", "statistics": tmp_path / "s.npz", "benchmark": False}
        if moments:
            result = onnxq.quantize(model, **given)
            assert result.to_dict()["at_inference"][0]["outlier_channels"] == 3
        else:
            with pytest.raises(CalibrationError, match="'x' has no channel magnitudes"):
                onnxq.quantize(model, **given)
