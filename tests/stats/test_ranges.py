"""Range methods: against brute force, against a slow loop over the same definition, and on data of known kinds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.core.affine import fake_quantize, params_from_range
from onnxq.core.dtypes import QType
from onnxq.core.spec import TensorSpec
from onnxq.errors import RecipeError
from onnxq.stats.histogram import HALF
from onnxq.stats.ranges import RANGE_METHODS, _ExpectedError, compute_range, kl_divergences
from onnxq.stats.value_statistic import ValueStatistic

U8, S8 = TensorSpec(QType.UINT8), TensorSpec(QType.INT8, symmetric=True)
U4, S4 = TensorSpec(QType.UINT4), TensorSpec(QType.INT4, symmetric=True)
SPECS = [U8, S8, U4, S4, TensorSpec(QType.UINT8, symmetric=True), TensorSpec(QType.INT16), TensorSpec(QType.INT2)]

KINDS = ["gauss", "relu", "relu6", "silu", "laplace", "heavy", "relu_laplace", "outlier", "negative", "offset", "few"]


def samples(kind, count=40_000, batches=6):
    generator = np.random.default_rng(7)
    x = generator.standard_normal((batches, count))
    laplace = generator.laplace(size=(batches, count))
    with_outlier = x.copy()
    with_outlier[1, 77] = 80.0
    data = {
        "gauss": x,
        "relu": np.maximum(x, 0),
        "relu6": np.clip(3 * x, 0, 6),
        "silu": 3 * x / (1 + np.exp(-3 * x)),
        "laplace": laplace,
        "heavy": generator.standard_t(3, size=(batches, count)),
        "relu_laplace": np.maximum(laplace - 1, 0),
        "outlier": with_outlier,
        "negative": -np.abs(laplace) - 0.25,
        "offset": 0.5 * x + 3,
        "few": np.rint(2 * x) / 2,
    }[kind]
    return data.astype(np.float32)


def statistic_of(x):
    statistic = ValueStatistic()
    for batch in x:
        statistic.update(batch)
    return statistic


def error_of(x, ends, spec):
    return float(np.mean((fake_quantize(x, params_from_range(*ends, spec)).astype(np.float64) - x) ** 2))


@pytest.fixture(scope="module", params=KINDS)
def data(request):
    x = samples(request.param)
    return request.param, x, statistic_of(x)


# --- all methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_ranges_hold_zero_and_stay_inside_the_extrema(data, method):
    _, x, statistic = data
    for spec in SPECS:
        low, high = compute_range(statistic, spec, method)
        assert min(float(x.min()), 0.0) <= low <= 0.0 <= high <= max(float(x.max()), 0.0)
        assert high > low
        assert isinstance(low, float)
        assert isinstance(high, float)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.floats(width=32), max_size=12), max_size=3),
    st.sampled_from(SPECS),
    st.sampled_from(sorted(RANGE_METHODS)),
)
def test_any_small_data_has_a_range(batches, spec, method):
    statistic = statistic_of([np.array(batch, np.float32) for batch in batches])
    low, high = compute_range(statistic, spec, method)
    ends = statistic.low or 0.0, statistic.high or 0.0
    assert min(ends[0], 0.0) <= low <= 0.0 <= high <= max(ends[1], 0.0)
    if not statistic.low and not statistic.high:
        assert (low, high) == (0.0, 0.0)
    assert np.isfinite(params_from_range(low, high, spec).scale)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [0.0, -3.0, 5.0])
def test_constants(method, value):
    x = np.full((3, 1000), value, np.float32)
    assert compute_range(statistic_of(x), U8, method) == (min(value, 0.0), max(value, 0.0))


def test_minmax_is_exact(data):
    _, x, statistic = data
    assert compute_range(statistic, U8, "minmax") == (min(float(x.min()), 0.0), max(float(x.max()), 0.0))


def test_unknown_methods_are_named():
    with pytest.raises(RecipeError, match="range method 'max' is unknown; use one of minmax, percentile, entropy, mse"):
        compute_range(ValueStatistic(), U8, "max")


# --- percentile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0])
def test_percentile_against_numpy(data, percentile):
    _, x, statistic = data
    low, high = compute_range(statistic, U8, "percentile", percentile=percentile)
    tail = (100 - percentile) / 100 / (2 if x.min() < 0 < x.max() else 1)
    noise = 4 * math.sqrt(tail / statistic.histogram.sampled)  # elements are sampled
    wide = np.quantile(x, [max(tail - noise, 0), 1 - max(tail - noise, 0)])
    narrow = np.quantile(x, [tail + noise, 1 - tail - noise])
    width = statistic.histogram.width
    assert max(narrow[1], 0) - width <= high <= max(wide[1], 0) + width
    assert min(wide[0], 0) - width <= low <= min(narrow[0], 0) + width


def test_percentile_of_a_symmetric_grid_is_that_of_magnitudes():
    x = samples("silu")
    low, high = compute_range(statistic_of(x), S8, "percentile", percentile=99.0)
    assert high == pytest.approx(np.percentile(np.abs(x), 99), rel=0.02)
    assert low == float(x.min())


def test_percentile_counts_zeros():
    x = np.concatenate([np.zeros(4900), np.full(95, 1.0), np.full(5, 10.0)]).astype(np.float32)[None]
    width = statistic_of(x).histogram.width
    assert compute_range(statistic_of(x), U8, "percentile", percentile=99.88) == (0.0, 1.0 + width)
    assert compute_range(statistic_of(x), U8, "percentile", percentile=99.92) == (0.0, 10.0)


def test_percentile_does_not_cut_what_it_cannot_see():
    x = np.linspace(-1, 1, 101, dtype=np.float32)[None]
    assert compute_range(statistic_of(x), U8, "percentile") == (-1.0, 1.0)
    assert (
        compute_range(statistic_of(samples("gauss")), U8, "percentile", percentile=100.0)[1] == samples("gauss").max()
    )


@pytest.mark.parametrize("percentile", [0.9999, 50.0, 100.1, math.nan])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(RecipeError, match="is out of range; use more than 50 and at most 100"):
        compute_range(statistic_of(samples("gauss")), U8, "percentile", percentile=percentile)


# --- entropy ------------------------------------------------------------------------------------------------------


def slow_divergence(counts, sampled, start, end, levels):
    """KL(P‖Q) of one window as its definition reads, less the noise, bin by bin."""
    total = sum(counts)
    window = counts[start:end]
    filled = [place for place, count in enumerate(window) if count]
    if sum(window) < 0.9 * total:
        return math.inf
    left, right = sum(counts[:start]), sum(counts[end:])
    if len(filled) == 1 and left and right:
        return math.inf
    p = list(window)
    p[filled[0]] += left
    p[filled[-1]] += right
    width = end - start
    q, degrees = [0.0] * width, 0.0
    for level in range(levels):
        part = range(-(-level * width // levels), -(-(level + 1) * width // levels))
        occupied = [place for place in part if window[place]]
        if not occupied:
            continue
        mean = sum(window[place] for place in part) / len(occupied)
        for place in occupied:
            q[place] = mean
        crowd = mean * sampled / total
        degrees += (len(occupied) - 1) * (1 - math.exp(-0.772 * max(crowd - 1, 0)))
    inside = sum(window)
    divergence = sum(a / total * math.log((a / total) / (b / inside)) for a, b in zip(p, q, strict=True) if a)
    return divergence - degrees / (2 * sampled)


@pytest.mark.parametrize(("spec", "kind"), [(U8, "silu"), (S4, "laplace"), (U4, "relu"), (S8, "outlier"), (U8, "few")])
def test_divergences_against_a_slow_loop(spec, kind):
    statistic = statistic_of(samples(kind, count=4000, batches=2))
    histogram = statistic.histogram
    ends = min(statistic.low, 0.0) / histogram.width, max(statistic.high, 0.0) / histogram.width
    levels = spec.qmax - spec.qmin + 1
    thresholds, divergences, errors = kl_divergences(histogram.counts, histogram.sampled, ends, levels, spec.symmetric)
    reach = [math.ceil(-ends[0]), math.ceil(ends[1])]
    if spec.symmetric:
        reach = [max(reach)] * 2
    assert thresholds[-1] == max(reach)
    assert (np.diff(thresholds) > 0).all()
    assert np.isfinite(divergences).any()
    assert (errors >= 0).all()
    counts = histogram.counts.tolist()
    for number in range(0, thresholds.size, 25):
        threshold = int(thresholds[number])
        expected = slow_divergence(
            counts, histogram.sampled, HALF - min(threshold, reach[0]), HALF + min(threshold, reach[1]), levels
        )
        assert divergences[number] == pytest.approx(expected, abs=1e-9)


def test_noise_that_is_subtracted_is_the_noise_there_is():
    generator = np.random.default_rng(0)
    for each in (0.5, 2.0, 20.0):
        counts = np.zeros(2 * HALF, np.int64)
        counts[HALF:] = generator.poisson(each, HALF)
        _, divergences, errors = kl_divergences(counts, int(counts.sum()), (0.0, float(HALF)), 256, False)
        assert abs(divergences[-1]) < 3 * errors[-1]


def test_entropy_keeps_most_of_the_data_and_cuts_outliers(data):
    kind, x, statistic = data
    for spec in (U8, S8, U4, S4):
        low, high = compute_range(statistic, spec, "entropy")
        assert np.mean((x < low) | (x > high)) < 0.03
    if kind == "outlier":
        assert compute_range(statistic, U8, "entropy")[1] < 25
    if kind == "relu6":
        assert compute_range(statistic, U8, "entropy")[1] == pytest.approx(6.0, rel=0.01)


def test_entropy_is_not_drawn_to_the_zeros_of_relu():
    x = samples("relu")
    more_zeros = np.concatenate([x, np.zeros_like(x)], axis=1)
    assert compute_range(statistic_of(more_zeros), U8, "entropy")[1] > 0.8 * x.max()


def test_entropy_takes_the_extrema_where_a_divergence_says_nothing():
    few = np.array([[0.0, 0.1, 0.1, 9.0] * 100], np.float32)[:, :400]
    assert compute_range(statistic_of(few[:, :100]), U8, "entropy") == (0.0, 9.0)
    x = samples("laplace")
    ends = float(x.min()), float(x.max())
    assert compute_range(statistic_of(x), TensorSpec(QType.INT16), "entropy") == ends


# --- mse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [U8, S8, U4, S4])
def test_mse_is_no_worse_than_the_others(data, spec):
    kind, x, statistic = data
    best = error_of(x, compute_range(statistic, spec, "mse"), spec)
    slack = 1.25 if spec.bits == 8 else 1.05
    if kind == "few":
        slack = 2.0  # a handful of values can fall on the grid by luck; a histogram does not see that
    for method in ("minmax", "percentile", "entropy"):
        assert best <= slack * error_of(x, compute_range(statistic, spec, method), spec)


@pytest.mark.parametrize("kind", ["gauss", "laplace", "relu_laplace"])
def test_mse_gains_more_with_fewer_bits(kind):
    x = samples(kind)
    statistic = statistic_of(x)
    gains = [
        error_of(x, compute_range(statistic, spec, "minmax"), spec)
        / error_of(x, compute_range(statistic, spec, "mse"), spec)
        for spec in (U8, U4)
    ]
    assert gains[1] > 2.0
    assert gains[1] > gains[0] > 0.95


@pytest.mark.parametrize("spec", [U8, U4, S4])
def test_mse_against_brute_force_on_the_samples(data, spec):
    kind, x, statistic = data
    if kind == "few":
        return  # not a density
    part = x.ravel()[::10]
    ends = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shrinks = np.geomspace(0.02, 1.0, 24)
    if spec.symmetric:
        largest = max(-ends[0], ends[1])
        candidates = [(max(ends[0], -s * largest), min(ends[1], s * largest)) for s in shrinks]
    else:
        lows = ends[0] * shrinks[::2] if ends[0] else [0.0]
        highs = ends[1] * shrinks[::2] if ends[1] else [0.0]
        candidates = [(low, high) for low in lows for high in highs]
    brute = min(candidates, key=lambda candidate: error_of(part, candidate, spec))
    found = error_of(x, compute_range(statistic, spec, "mse"), spec)
    assert found <= (1.2 if spec.bits == 8 else 1.05) * error_of(x, brute, spec)


@pytest.mark.parametrize("spec", [U8, S8, U4, S4, TensorSpec(QType.INT2, symmetric=True, narrow_range=True)])
def test_expected_error_is_the_error_of_the_samples(spec):
    x = samples("laplace", count=4000, batches=12)  # counted whole
    statistic = statistic_of(x)
    width = statistic.histogram.width
    expected = _ExpectedError(statistic.histogram.counts.astype(np.float64), spec)
    lows = np.array([-0.2, -1.0, -3.0, float(x.min())])
    highs = np.array([0.5, 4.0, 1.0, float(x.max())])
    for method, tolerance in ((expected.exact, 0.02), (expected.approximate, 0.02 if spec.bits == 8 else None)):
        found = method(lows / width, highs / width) * width**2 / x.size
        if tolerance is not None:
            actual = [error_of(x, ends, spec) for ends in zip(lows, highs, strict=True)]
            np.testing.assert_allclose(found, actual, rtol=tolerance)


def test_both_ends_shrink_independently():
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(-1, 1, 50_000), [-30.0]]).astype(np.float32)[None]
    low, high = compute_range(statistic_of(x), U4, "mse")
    assert -2 < low < -0.8
    assert high > 0.8
