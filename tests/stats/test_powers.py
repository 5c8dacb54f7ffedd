"""Powers of samples: the mean squares that numpy finds, merged exactly, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import CalibrationError
from onnxq.stats.powers import SamplePowers, squares_of
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e-30, 3e38])
batches = st.lists(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=numbers), max_size=5)


def streamed(arrays: list[np.ndarray]) -> SamplePowers:
    powers = SamplePowers()
    for array in arrays:
        powers.update(squares_of(array, array.shape[0], finite=False))
    return powers


@given(batches, st.randoms(use_true_random=False))
def test_merge_is_the_stream_in_any_order_and_in_batches_of_any_size(arrays: list[np.ndarray], random: object) -> None:
    whole = streamed(arrays).bins
    rows = [row[None] for array in arrays for row in array]
    random.shuffle(rows)  # type: ignore[attr-defined]
    cut = random.randint(0, len(rows))  # type: ignore[attr-defined]
    left, right = streamed(rows[:cut]), streamed(rows[cut:])
    before = dict(left.bins)
    assert left.merge(right).bins == whole == right.merge(left).bins
    assert left.bins == before
    assert SamplePowers.from_array(left.to_array()).bins == before


def test_quantiles_are_those_of_the_mean_squares_to_within_a_bin() -> None:
    loudness = np.exp(np.random.default_rng(0).normal(0, 3, (200, 1)))
    array = (np.random.default_rng(1).normal(size=(200, 500)) * loudness).astype(np.float32)
    powers = streamed([array])
    squares = np.sort((array.astype(np.float64) ** 2).mean(axis=1))
    for share, index in ((0.0, 0), (0.005, 0), (0.1, 19), (0.5, 99), (1.0, 199)):
        found = powers.quantile(share)
        assert found is not None
        assert 2**-0.125 <= found / squares[index] <= 2**0.125


def test_large_samples_are_looked_at_in_part_and_zeros_do_not_count() -> None:
    array = np.zeros((2, 8, 64, 64), np.float32)
    array[:, :, ::2] = np.random.default_rng(0).normal(size=(2, 8, 32, 64)) * 3
    found = streamed([array]).quantile(0.5)
    assert found is not None and abs(np.log2(found / 9.0)) < 0.25


def test_an_axis_of_another_length_is_not_the_samples() -> None:
    statistic = ValueStatistic()
    statistic.update(np.array([[1.0, 1.0], [100.0, 100.0]], np.float32), 3)
    assert sum(statistic.powers.bins.values()) == 1
    statistic.update(np.ones(3, np.float32), 3)  # a vector is one sample
    statistic.update(np.ones((0, 3), np.float32), 0)
    assert sum(statistic.powers.bins.values()) == 2


def test_nothing_but_zeros_has_no_power() -> None:
    powers = streamed([np.zeros((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)])
    assert powers.bins == {} and powers.quantile(0.5) is None


def test_files_keep_them_and_those_without_load_too(tmp_path: Path) -> None:
    statistics = Statistics()
    for i, name in enumerate("ab"):
        statistics.update(name, np.random.default_rng(i).normal(size=(5, 7)).astype(np.float32), 5)
    statistics.put("unseen", ValueStatistic())
    path = tmp_path / "stats.npz"
    statistics.save(path)
    loaded = Statistics.load(path)
    assert loaded == statistics
    assert loaded["a"].powers.bins == statistics["a"].powers.bins != {}
    assert loaded["unseen"].count == 0

    arrays = dict(np.load(path))
    old = {key: array for key, array in arrays.items() if not key.startswith("power")}
    np.savez(path, **old)
    assert Statistics.load(path)["a"].powers.bins == {}
    np.savez(path, **{**arrays, "power_lengths": arrays["power_lengths"] + 1})
    with pytest.raises(CalibrationError, match="its arrays of powers do not belong together"):
        Statistics.load(path)
