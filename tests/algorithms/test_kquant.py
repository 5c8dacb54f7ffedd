"""GGML's formats against the gguf package, its scale search against loops over one block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms import kquant as module
from onnxq.algorithms.groups import split
from onnxq.algorithms.kquant import KQuantConfig, kquant
from onnxq.algorithms.rtn import rtn
from onnxq.core import in_order
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QTensor, TensorSpec
from onnxq.errors import RecipeError
from tests.algorithms.correlated import SPECS, name

Array = npt.NDArray[Any]
LEGACY = KQuantConfig(method="legacy", float16_scale=True)
BLOCK = PerBlock(1, 32)


def heavy(seed: int, shape: tuple[int, int] = (24, 72)) -> Array:
    """A weight with long tails."""
    return np.asarray(np.random.default_rng(seed).standard_t(4, size=shape) * 0.03, np.float32)


def real(result: QTensor) -> Array:
    """The dequantized weight, float32."""
    return dequantize(result.values, result.params)


FORMATS = [
    ("Q4_0", TensorSpec(QType.INT4, BLOCK, symmetric=True)),
    ("Q4_0", TensorSpec(QType.UINT4, BLOCK, symmetric=True)),
    ("Q5_0", TensorSpec(QType.INT8, BLOCK, symmetric=True, grid_bits=5)),
    ("Q5_0", TensorSpec(QType.UINT8, BLOCK, symmetric=True, grid_bits=5)),
    ("Q8_0", TensorSpec(QType.INT8, BLOCK, symmetric=True)),
]


def awkward() -> Array:
    """Blocks of every kind: random, zeros, one sign, ties, large and small."""
    weight = heavy(0, (80, 128))
    weight[0] = 0
    weight[1] = np.abs(weight[1])
    weight[2] = -np.abs(weight[2])
    weight[3] = np.round(weight[3] * 100) / 8
    weight[4] *= 1e5
    weight[5] *= 1e-3
    weight[6, :32] = 0.25
    return weight


@pytest.mark.parametrize(("kind", "spec"), FORMATS, ids=lambda value: value if isinstance(value, str) else name(value))
def test_symmetric_formats_are_those_of_gguf_bit_for_bit(kind: str, spec: TensorSpec) -> None:
    gguf = pytest.importorskip("gguf")
    weight, kind_of = awkward(), gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind_of), kind_of)
    result = kquant(weight, spec, LEGACY)
    assert np.array_equal(real(result), expected)
    assert result.values.dtype == spec.dtype.numpy


def slow_search(x: Array, weights: Array, half: int, start: float) -> tuple[float, float]:
    """(scale, weighted error) of the best symmetric grid of one block, in the way of make_qx_quants, in float64."""

    def levels_of(scale: float) -> Array:
        return np.clip(np.rint(x / scale), -half, half - 1)

    tried = [start]
    peak = np.abs(x).max()
    for step in range(-10, 11):
        scale = peak / (half + 0.1 * step)
        levels = levels_of(scale)
        tried += [scale, float((weights * x * levels).sum() / (weights * levels * levels).sum())]
    errors = [float((weights * (x - s * levels_of(s)) ** 2).sum()) for s in tried]
    return tried[int(np.argmin(errors))], min(errors)


def weights_of(x: Array, importance: Array | None = None) -> Array:
    """What each element counts in k-quants."""
    mean = (x * x).mean()
    return np.sqrt(mean) + np.abs(x) if importance is None else importance * np.sqrt(mean + x * x)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_symmetric_search_is_the_slow_one(bits: int, weighted: bool) -> None:
    weight = heavy(1, (12, 64))
    importance = np.random.default_rng(1).uniform(0.1, 3, 64) if weighted else None
    spec = TensorSpec(QType.INT8, BLOCK, symmetric=True, grid_bits=bits)
    result, plain = kquant(weight, spec, importance=importance), rtn(weight, spec)
    for row in range(12):
        for block in range(2):
            x = weight[row, block * 32 : block * 32 + 32].astype(np.float64)
            counts = weights_of(x, importance[block * 32 : block * 32 + 32] if importance is not None else None)
            _, least = slow_search(x, counts, 1 << (bits - 1), float(plain.params.scale[row, block]))
            found = (counts * (real(result)[row, block * 32 : block * 32 + 32] - x) ** 2).sum()
            np.testing.assert_allclose(found, least, rtol=1e-3)


def exhaustive(x: Array, weights: Array, top: int, low: float, high: float) -> float:
    """The least weighted error of a block over a fine net of scales and every integer zero point."""
    least = np.inf
    for zero_point in range(top + 1):
        for scale in np.linspace(0.5, 1.1, 121) * (high - low) / top:
            levels = np.clip(np.rint(x / scale) + zero_point, 0, top) - zero_point
            squares = (weights * levels * levels).sum()
            fitted = (weights * levels * x).sum() / squares if squares else scale
            least = min(least, float((weights * (x - fitted * levels) ** 2).sum()))
    return least


def test_the_affine_search_is_near_the_best_there_is() -> None:
    weight = heavy(2, (5, 32))
    spec = TensorSpec(QType.UINT4, BLOCK)
    ratios = []
    for row, found in enumerate(real(kquant(weight, spec))):
        x = weight[row].astype(np.float64)
        counts = weights_of(x)
        best = exhaustive(x, counts, 15, min(x.min(), 0.0), max(x.max(), 0.0))
        ratios.append((counts * (found - x) ** 2).sum() / best)
    assert min(ratios) > 0.999
    assert np.mean(ratios) < 1.15


@pytest.mark.parametrize("config", [KQuantConfig(), KQuantConfig(float16_scale=True)])
@pytest.mark.parametrize("importance", [None, np.linspace(0, 2, 72)])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_no_block_is_worse_than_rounded_to_nearest(
    spec: TensorSpec, importance: Array | None, config: KQuantConfig
) -> None:
    weight = heavy(3)
    result, plain = kquant(weight, spec, config, importance), rtn(weight, spec)
    after, before = (weighted_error(weight, found, spec, importance) for found in (result, plain))
    slack = 1.02 if config.float16_scale else 1.001
    assert (after <= before * slack).all()
    if spec.bits < 8:
        assert after.sum() < 0.97 * before.sum()
    assert spec.mirrored or (result.params.scale > 0).all()
    if config.float16_scale:
        assert np.array_equal(result.params.scale, result.params.scale.astype(np.float16))


def weighted_error(weight: Array, result: QTensor, spec: TensorSpec, importance: Array | None) -> Array:
    """Σ weights · error² of each group, float64."""
    x = split(weight.astype(np.float64), spec.granularity)
    error = split(real(result).astype(np.float64) - weight, spec.granularity)
    mean = (x * x).mean(axis=1, keepdims=True)
    if importance is None:
        return np.asarray(((np.sqrt(mean) + np.abs(x)) * error**2).sum(axis=1))
    columns = split(np.broadcast_to(importance, weight.shape), spec.granularity)
    return np.asarray((columns * np.sqrt(mean + x * x) * error**2).sum(axis=1))


def test_a_negative_scale_serves_blocks_whose_largest_element_is_positive() -> None:
    weight, spec = np.abs(heavy(4)) + heavy(5) / 4, TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True)
    either = kquant(weight, replace(spec, mirrored=True))
    positive = kquant(weight, spec)
    assert (either.params.scale < 0).any()
    assert np.mean((real(either) - weight) ** 2) < 0.95 * np.mean((real(positive) - weight) ** 2)


@pytest.mark.parametrize("spec", [PerAxis(0), PerTensor(), PerBlock(1, 16)])
def test_legacy_scales_serve_any_granularity(spec: Any) -> None:
    weight = heavy(6)
    grid = TensorSpec(QType.UINT4, spec, symmetric=True)
    result = kquant(weight, grid, KQuantConfig(method="legacy"))
    assert np.abs(real(result) - weight).max() <= np.abs(result.params.scale).max() * 1.001


def test_what_scales_float16_cannot_hold_stay_float32() -> None:
    weight = np.full((2, 32), 1e-9, np.float32)
    weight[1] = 1e30
    result = kquant(weight, TensorSpec(QType.INT8, BLOCK, symmetric=True), LEGACY)
    np.testing.assert_allclose(real(result), weight, rtol=1e-2)


def test_what_cannot_be_asked_for_is_refused() -> None:
    weight = heavy(7)
    with pytest.raises(RecipeError, match="no integer zero point"):
        kquant(weight, TensorSpec(QType.UINT4, BLOCK), LEGACY)
    with pytest.raises(RecipeError, match="steps 0"):
        KQuantConfig(steps=0)
    assert kquant(weight[:0], TensorSpec(QType.UINT4, BLOCK)).values.shape == (0, 72)


@pytest.mark.parametrize("spec", [SPECS[0], TensorSpec(QType.UINT4, BLOCK), TensorSpec(QType.UINT4, PerAxis(0))])
def test_threads_change_nothing(spec: TensorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(6, (70, 96))
    monkeypatch.setattr(module, "_SLAB", 500)  # 14 slabs of 5 rows
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(in_order, "_THREADS", threads)
        found.append(kquant(weight, spec))
    one, several = found
    assert np.array_equal(one.values, several.values)
    assert np.array_equal(one.params.scale, several.params.scale)
    assert np.array_equal(one.params.zero_point, several.params.zero_point)


@pytest.mark.parametrize("bits", [2, 4])
def test_long_and_short_groups_are_searched_alike(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which axis groups lie along in memory is a matter of speed alone."""
    spec = TensorSpec(QType.UINT4 if bits == 4 else QType.UINT2, PerBlock(1, 64), symmetric=bits == 4)
    weight = heavy(7, (30, 128))
    short = kquant(weight, spec)
    monkeypatch.setattr(module, "_SHORT", 1)
    np.testing.assert_allclose(real(kquant(weight, spec)), real(short), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quick_searches_lose_little(bits: int, symmetric: bool) -> None:
    weight = heavy(9, (256, 512))
    spec = TensorSpec(QType.UINT4 if bits == 4 else QType.UINT2, BLOCK, symmetric=symmetric, mirrored=symmetric)

    def noise(result: QTensor) -> float:
        return float(np.mean((weight - real(result)) ** 2))

    full, quick, plain = (
        noise(q) for q in (kquant(weight, spec), kquant(weight, spec, module.QUICK), rtn(weight, spec))
    )
    assert quick < plain
    assert quick < 10**0.01 * full + (0.25 if bits == 2 else 0.0) * (plain - full)  # 0.1 dB at 4 bits


def test_large_weights_are_searched_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(9, (64, 64))
    spec = TensorSpec(QType.UINT4, BLOCK)
    assert_same(module.kquant_by_size(weight, spec), kquant(weight, spec))
    monkeypatch.setattr(module, "LARGE", weight.size)
    assert_same(module.kquant_by_size(weight, spec), kquant(weight, spec, module.QUICK))


def assert_same(one: QTensor, other: QTensor) -> None:
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.params.scale, other.params.scale)


def test_a_transposed_view_gives_the_same() -> None:
    weight = heavy(3, (96, 64))
    spec = TensorSpec(QType.UINT4, BLOCK)
    assert_same(kquant(np.ascontiguousarray(weight.T).T, spec), kquant(weight, spec))
