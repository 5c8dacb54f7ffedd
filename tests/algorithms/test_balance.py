"""SmoothQuant's scales against the paper's formula, and the search against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.channels.balance import search_balance, smooth_scales
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.errors import CalibrationError

SPEC = TensorSpec(QType.INT8, PerAxis(0), symmetric=True, narrow_range=True)


def drawn(outliers: float = 50.0, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Correlated rows with a few large channels, and two layers that read them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 48))
    rows[:, [3, 17, 40]] *= outliers
    weights = [rng.normal(size=(n, 48)).astype(np.float32) for n in (20, 31)]
    for weight in weights:
        weight[:, [3, 17, 40]] /= outliers
    return rows.astype(np.float32), weights


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_follow_the_formula_up_to_one_factor(alpha: float) -> None:
    rows, weights = drawn()
    peaks = np.abs(rows).max(axis=0)
    read = np.abs(np.concatenate(weights)).max(axis=0)
    want = peaks.astype(float) ** alpha / read.astype(float) ** (1 - alpha)
    found = smooth_scales(peaks, weights, alpha)
    np.testing.assert_allclose(found / found[0], want / want[0], rtol=1e-6)
    assert np.log(found).mean() == pytest.approx(0.0, abs=1e-12)


def test_channels_that_are_not_used_are_left_alone() -> None:
    weight = np.ones((3, 4), np.float32)
    weight[:, 2] = 0
    assert smooth_scales(np.array([1.0, 0.0, 9.0, 4.0]), [weight], 0.5)[[1, 2]].tolist() == [1.0, 1.0]
    assert smooth_scales(np.zeros(4), [weight], 0.5).tolist() == [1.0] * 4


def test_tied_channels_share_the_scale_of_the_largest() -> None:
    rows, weights = drawn()
    peaks = np.abs(rows).max(axis=0)
    tied = np.arange(48) % 24
    found = smooth_scales(peaks, weights, 0.5, tied)
    np.testing.assert_array_equal(found[:24], found[24:])
    read = np.abs(np.concatenate(weights)).max(axis=0)
    want = np.sqrt(peaks.reshape(2, 24).max(0) / read.reshape(2, 24).max(0))
    np.testing.assert_allclose(found[:24] / found[0], want / want[0], rtol=1e-5)


def reference(rows, weights, alpha, by_row) -> float:
    """The mean over both halves of the error on rows that made neither scales nor range."""
    half = len(rows) // 2
    halves = rows[:half], rows[half:]
    return (_error(*halves, weights, alpha, by_row) + _error(*halves[::-1], weights, alpha, by_row)) / 2


def _error(seen, judged, weights, alpha, by_row) -> float:
    """Both operands rounded in float64, activations of a tensor by the best of the search's ranges."""
    scales = np.ones(seen.shape[1])
    if alpha is not None:
        scales = smooth_scales(np.abs(seen).max(axis=0), weights, alpha)
    x, other = judged.astype(np.float64) / scales, seen.astype(np.float64) / scales
    if by_row:
        step = np.abs(x).max(axis=1, keepdims=True) / 127
        moved = np.rint(x / step) * step
    else:
        low, high, tried = other.min(), other.max(), []
        for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
            step = (high - low) * share / 255
            first = np.rint(low * share / step)
            tried.append(
                [np.clip(np.rint(part / step), first, first + 255) * step for part in (other, x)],
            )
        moved = min(tried, key=lambda t: ((t[0] - other) ** 2).sum())[1]
    total = 0.0
    for weight in weights:
        w = weight.astype(np.float64) * scales
        step = np.abs(w).max(axis=1, keepdims=True) / 127
        target = judged.astype(np.float64) @ weight.T
        total += ((moved @ (np.rint(w / step) * step).T - target) ** 2).sum() / (target**2).sum()
    return total


@pytest.mark.parametrize("by_row", [False, True])
def test_the_search_measures_the_error_of_the_outputs(by_row: bool) -> None:
    rows, weights = drawn()
    peaks = np.abs(rows).max(axis=0)
    found = search_balance(weights, [SPEC, SPEC], rows, peaks, by_row=by_row)
    assert found.alpha is not None
    assert found.plain == pytest.approx(reference(rows, weights, None, by_row), rel=0.02)
    assert found.error == pytest.approx(reference(rows, weights, found.alpha, by_row), rel=0.02)
    np.testing.assert_array_equal(found.scales, smooth_scales(peaks, weights, found.alpha))
    errors = [reference(rows, weights, a / 10, by_row) for a in range(1, 10)]
    assert found.error < 1.15 * min(errors)
    assert found.error < found.plain / 20


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("count", [1, 2, 14])
def test_a_few_rows_without_outliers_are_not_smoothed_to_fit_themselves(count: int, by_row: bool) -> None:
    """What is chosen on few rows must not be much worse on the many that follow."""
    rng = np.random.default_rng(count)
    weight = rng.normal(size=(32, 64)).astype(np.float32)
    rows, later = (np.maximum(rng.normal(size=(n, 64)), 0).astype(np.float32) for n in (count, 500))
    found = search_balance([weight], [SPEC], rows, np.abs(rows).max(axis=0), by_row=by_row)
    if count > 1:
        plain = _error(rows, later, [weight], None, by_row)
        assert _error(rows, later, [weight], found.alpha, by_row) < 1.6 * plain


def test_where_nothing_is_gained_nothing_is_scaled() -> None:
    rng = np.random.default_rng(1)
    rows = np.sign(rng.normal(size=(200, 32))).astype(np.float32)  # all channels alike, on any grid exactly
    weight = np.sign(rng.normal(size=(8, 32))).astype(np.float32)
    found = search_balance([weight], [SPEC], rows, np.ones(32), by_row=True)
    assert found.alpha is None
    np.testing.assert_array_equal(found.scales, np.ones(32))


@pytest.mark.parametrize("granularity", [PerTensor(), PerBlock(1, 32)])
def test_other_grids_of_weights(granularity) -> None:
    rows, weights = drawn()
    spec = TensorSpec(QType.INT8, granularity, symmetric=True)
    found = search_balance(weights, [spec, spec], rows, np.abs(rows).max(axis=0), by_row=False)
    assert found.error < found.plain / 10


def test_statistics_that_do_not_fit_are_refused() -> None:
    rows, weights = drawn()
    with pytest.raises(CalibrationError, match="do not fit weights"):
        smooth_scales(np.ones(5), weights, 0.5)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        smooth_scales(np.full(48, np.inf), weights, 0.5)
    with pytest.raises(CalibrationError, match="do not fit 5 inputs"):
        search_balance(weights, [SPEC, SPEC], rows, np.ones(5), by_row=True)
