"""Second moments and channel magnitudes: right on correlated data, exact to merge, non-finite rows left out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.stats.second_moment import ChannelPeaks, SecondMoment, moment_bytes, packed_size
from onnxq.stats.statistics import Statistics

TOLERANCE = 2.0**-18
"""Of √(H_ii·H_jj); the worst case of 512 float32 rows is 2⁻¹⁵."""


def correlated(rows: int, channels: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng([seed, rows, channels])
    mixed = rng.normal(size=(rows, channels)) @ rng.normal(size=(channels, channels)) / np.sqrt(channels)
    scales = 10.0 ** rng.uniform(-2, 2, channels)  # outlier channels, as in transformers
    return ((mixed + rng.normal(size=channels)) * scales * size).astype(np.float32)


def streamed(arrays, kind=SecondMoment):
    found = kind()
    for array in arrays:
        found.update(array)
    return found


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (7, 5), (700, 255), (1030, 256), (300, 600)])
def test_the_sum_is_that_of_float64(rows, channels):
    x = correlated(rows, channels)
    moment = streamed([x[: rows // 3], x[rows // 3 :]])
    exact = x.astype(np.float64).T @ x
    bound = np.sqrt(np.outer(np.diag(exact), np.diag(exact))) * TOLERANCE
    assert moment.rows == rows
    assert (np.abs(moment.matrix - exact) <= bound).all()
    np.testing.assert_array_equal(moment.matrix, moment.matrix.T)


@pytest.mark.parametrize("size", [1e-5, 1e4, 1e15])
def test_small_and_huge_values_keep_their_digits(size):
    x = correlated(400, 40, size=size)
    exact = x.astype(np.float64).T @ x
    weights = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    # the grid ends at 2⁻⁵⁰: channels of 1e-7 have three digits left
    assert (np.abs(streamed([x]).matrix - exact) <= weights * TOLERANCE + 2.0**-49).all()


@pytest.mark.parametrize("kind", [SecondMoment, ChannelPeaks])
def test_merge_is_the_stream_bit_for_bit_in_any_order(kind):
    arrays = [correlated(rows, 300, seed=rows) for rows in (1, 3, 600, 20, 0, 77)]
    whole = streamed(arrays, kind)
    left, right = streamed([arrays[4], arrays[2]], kind), streamed([arrays[5], arrays[0], arrays[3], arrays[1]], kind)
    before = left.to_arrays()
    assert left.merge(right) == whole == right.merge(left)
    assert kind().merge(left).merge(right) == left.merge(right.merge(kind())) == whole
    assert all(np.array_equal(array, before[key]) for key, array in left.to_arrays().items())


def test_every_axis_but_the_last_is_rows():
    x = correlated(24, 6)
    flat = streamed([x])
    assert streamed([x.reshape(2, 3, 4, 6)]) == flat == streamed([x.reshape(4, 6, 6)])
    assert streamed([x[0]]).rows == 1
    mixed = streamed([x[:6].reshape(1, 6, 6), x[6:]])
    np.testing.assert_allclose(mixed.matrix, flat.matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [SecondMoment, ChannelPeaks])
def test_rows_that_are_not_finite_are_counted_and_left_out(kind):
    x = correlated(50, 8)
    bad = x.copy()
    bad[[3, 9, 40], [0, 7, 2]] = [np.nan, np.inf, -np.inf]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = streamed([bad.reshape(5, 10, 8), np.full((2, 8), np.nan, np.float32)], kind)
    assert (found.rows, found.ignored) == (47, 5)
    clean = streamed([np.delete(x, [3, 9, 40], axis=0)], kind)
    if isinstance(found, SecondMoment):
        np.testing.assert_array_equal(found.matrix, clean.matrix)
    else:
        np.testing.assert_array_equal(found.highest, clean.highest)
        np.testing.assert_array_equal(found.mean, clean.mean)


def test_magnitudes():
    x = correlated(1000, 30)
    peaks = streamed(np.split(x, 10), ChannelPeaks)
    np.testing.assert_array_equal(peaks.highest, np.abs(x).max(axis=0))
    np.testing.assert_allclose(peaks.mean, np.abs(x).mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert ChannelPeaks().mean is ChannelPeaks().highest is None


@pytest.mark.parametrize("rows", [1, 63, 64, 200])
def test_single_rows_wait_for_each_other_and_are_the_rows_of_any_batch(rows):
    x = correlated(rows, 30)
    x[rows // 2, 3] = np.nan
    single, wide = streamed(np.split(x, rows), ChannelPeaks), streamed([x[:, None].astype(np.float64)], ChannelPeaks)
    for row in np.split(x, rows):
        row[:] = 1e9  # what waits is a copy
    assert (single.rows, single.ignored) == (wide.rows, wide.ignored) == (rows - 1, 1)
    np.testing.assert_array_equal(single.highest, wide.highest)
    cut = rows // 3
    x = correlated(rows, 30)
    shards = [streamed(np.split(part, len(part)) if len(part) else [], ChannelPeaks) for part in (x[:cut], x[cut:])]
    assert shards[1].merge(shards[0]) == streamed(np.split(x, rows), ChannelPeaks)
    with pytest.raises(CalibrationError, match="update: 4 channels where there were 30"):
        single.update(np.ones((1, 4), np.float32))


def test_float16_and_float64_are_taken_and_other_types_are_not():
    x = correlated(30, 5).astype(np.float16)
    np.testing.assert_array_equal(streamed([x]).matrix, streamed([x.astype(np.float32)]).matrix)
    wide = correlated(30, 5).astype(np.float64) / 3
    np.testing.assert_allclose(streamed([wide]).matrix, wide.T @ wide, rtol=1e-12, atol=1e-13)
    for array, reason in ((np.ones((2, 5), np.int64), "int64 is not float16"), (np.float32(1), "a scalar has no")):
        with pytest.raises(CalibrationError, match=reason):
            SecondMoment().update(np.asarray(array))


@pytest.mark.parametrize("kind", [SecondMoment, ChannelPeaks])
def test_another_number_of_channels_is_refused(kind):
    found = streamed([np.ones((2, 3), np.float32)], kind)
    with pytest.raises(CalibrationError, match="update: 4 channels where there were 3"):
        found.update(np.ones((2, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"merge: .* of 3 and of 4 channels"):
        found.merge(streamed([np.ones((2, 4), np.float32)], kind))


def test_scaled_channels():
    x = correlated(200, 20)
    factors = 2.0 ** np.random.default_rng(0).integers(-3, 4, 20)
    np.testing.assert_allclose(streamed([x]).scaled(factors).matrix, streamed([x * factors.astype(np.float32)]).matrix)
    assert SecondMoment().scaled(np.ones(3)) == SecondMoment()


def test_half_the_matrix_is_kept():
    moment = streamed([correlated(2, 1000)])
    assert (
        sum(array.nbytes for array in moment.to_arrays().values()) < 1000 * 1000 * 8 * 1.3 < moment_bytes(1000) * 1.01
    )
    assert packed_size(1000) == 256 * (1000 + 744 + 488) + 232 * 232


def test_statistics_files_hold_them(tmp_path):
    statistics = Statistics("cafe", "beef", 3)
    for name, channels in (("b é\n", 20), ("a", 300)):
        statistics.update_moments(name, correlated(40, channels))
        statistics.update_peaks(name, correlated(40, channels))
    statistics.moments["nothing yet"] = SecondMoment()
    statistics.peaks["nothing yet"] = ChannelPeaks()
    statistics.update("x", np.ones(3, np.float32))
    path = tmp_path / "s.npz"
    statistics.save(path)
    loaded = Statistics.load(path)
    assert loaded == statistics
    assert loaded.moments["a"].rows == 40
    other = Statistics("cafe")
    other.update_moments("a", correlated(10, 300))
    joined = statistics.merge(other)
    assert joined.moments["a"].rows == 50
    assert joined != statistics


def test_files_of_version_1_are_still_read(tmp_path):
    statistics = Statistics("cafe", "beef", 3)
    statistics.update("x", np.ones(3, np.float32))
    path = tmp_path / "s.npz"
    statistics.save(path)
    with np.load(path) as archive:
        content = {key: archive[key] for key in archive.files if not key.startswith(("moment", "peak"))}
    np.savez(path, **{**content, "version": np.array(1)})
    assert Statistics.load(path) == statistics


@pytest.mark.parametrize(
    "damage",
    [
        {"moment_counters": np.array([[10**12, 1, 0]])},
        {"moment_counters": np.array([[20, -1, 0]])},
        {"moment_low": np.zeros(3)},
        {"moment_high": np.full(400, np.nan)},
        {"peak_highest": np.full(20, -1.0)},
        {"peak_names": np.array(["a", "a"])},
    ],
)
def test_damaged_files_are_refused(tmp_path, damage):
    statistics = Statistics()
    statistics.update_moments("a", correlated(4, 20))
    statistics.update_peaks("a", correlated(4, 20))
    path = tmp_path / "s.npz"
    statistics.save(path)
    with np.load(path) as archive:
        content = {key: archive[key] for key in archive.files}
    np.savez(path, **{**content, **damage})
    with pytest.raises(CalibrationError, match="damaged statistics"):
        Statistics.load(path)


@pytest.mark.parametrize("channels", [1, 7, 256, 300, 513])
def test_diagonal_and_normalized_are_parts_and_a_multiple_of_the_matrix(channels: int) -> None:
    moment = SecondMoment()
    assert moment.normalized is None
    assert moment.diagonal.size == 0
    moment.update(np.random.default_rng(0).normal(3, 2, (20, channels)).astype(np.float32))
    whole = moment.matrix
    assert whole is not None
    np.testing.assert_array_equal(moment.diagonal, np.diagonal(whole))
    found = moment.normalized
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, whole / np.diagonal(whole).max(), rtol=2e-7, atol=1e-30)
