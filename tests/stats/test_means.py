"""Channel means: exact sums in any order, non-finite rows left out, saved and loaded."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import CalibrationError
from onnxq.stats.means import ChannelMeans
from onnxq.stats.statistics import Statistics

numbers = st.floats(-40000, 40000, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 1e-30, 32768.0, 3e38])
batches = st.lists(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=numbers), max_size=5)


def streamed(rows: list[np.ndarray]) -> ChannelMeans:
    means = ChannelMeans()
    for batch in rows:
        means.update(batch)
    return means


@given(batches, st.randoms(use_true_random=False))
def test_merge_is_the_stream_bit_for_bit_in_any_order(rows: list[np.ndarray], random: object) -> None:
    whole = streamed(rows)
    shuffled = rows[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = random.randint(0, len(shuffled))  # type: ignore[attr-defined]
    left, right = streamed(shuffled[:cut]), streamed(shuffled[cut:])
    kept = None if left.sums is None else left.sums.copy()
    assert left.merge(right) == whole == right.merge(left) == streamed(shuffled)
    assert kept is left.sums is None or np.array_equal(kept, left.sums)


@given(batches)
def test_the_mean_is_that_of_the_usable_rows_to_half_a_step(rows: list[np.ndarray]) -> None:
    means = streamed(rows)
    usable = [row for batch in rows for row in batch.astype(np.float64) if (np.abs(row) <= 32768).all()]
    assert means.items == len(usable)
    if not usable:
        assert means.mean is None
        return
    exact = [sum(Fraction(float(row[c])) for row in usable) / len(usable) for c in range(3)]
    assert means.mean is not None
    for found, expected in zip(means.mean, exact, strict=True):
        assert abs(Fraction(float(found)) - expected) <= Fraction(1, 1 << 25) + abs(expected) / (1 << 50)


def test_order_within_a_batch_and_batch_sizes_do_not_matter() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32) * 1e3
    whole = streamed([rows])
    assert whole == streamed([rows[::-1]]) == streamed(np.split(rows, 10)) == streamed(list(rows[:, None]))
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-9)


def test_rounding_to_steps_is_to_the_nearest() -> None:
    rows = np.random.default_rng(1).uniform(-1, 1, (5000, 2))
    assert np.abs(streamed([rows]).mean - rows.mean(axis=0)).max() < 2.0**-29  # errors of both signs cancel
    for row in rows[:50]:
        assert np.abs(streamed([row[None]]).mean - row).max() <= 2.0**-25


def test_sums_of_the_largest_means_do_not_overflow() -> None:
    rows = np.full((1 << 12, 2), [32768.0, -32768.0], np.float32)
    means = ChannelMeans()
    means.update(rows)
    for _ in range(11):  # 2^23 items
        means = means.merge(means)
    assert means.items == 1 << 23
    np.testing.assert_array_equal(means.mean, [32768.0, -32768.0])
    means.update(np.full((1, 2), 32769.0))
    assert means.items == 1 << 23


def test_rows_that_are_not_finite_are_left_out_without_a_word() -> None:
    means = ChannelMeans()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means.update(np.array([[1.0, 2.0], [np.nan, 5.0], [np.inf, 5.0], [5.0, -np.inf], [3.0, 4.0]], np.float32))
    np.testing.assert_array_equal(means.mean, [2.0, 3.0])


def test_nothing_seen_has_no_mean() -> None:
    empty = ChannelMeans()
    assert empty.mean is None and empty == ChannelMeans()
    empty.update(np.full((3, 2), np.nan))
    assert empty.mean is None and empty.items == 0
    seen = streamed([np.ones((2, 2))])
    assert empty.merge(seen) == seen == ChannelMeans().merge(seen)
    assert ChannelMeans().merge(ChannelMeans()) == ChannelMeans()
    assert empty != ChannelMeans() and seen != "something else"


def test_half_precision_and_float64_are_taken() -> None:
    rows = np.array([[0.5, 2.0], [1.5, 4.0]])
    assert streamed([rows]) == streamed([rows.astype(np.float16)]) == streamed([rows.astype(np.float32)])


def test_channels_must_agree() -> None:
    means = streamed([np.ones((1, 3))])
    with pytest.raises(CalibrationError, match="update: 2 channels where there were 3 before"):
        means.update(np.ones((1, 2)))
    with pytest.raises(CalibrationError, match="merge: channel means of 3 and of 2 channels"):
        means.merge(streamed([np.ones((1, 2))]))
    statistics = Statistics()
    statistics.update_means("conv_out", np.ones((1, 3)))
    with pytest.raises(CalibrationError, match="value 'conv_out': update: 2 channels where there were 3 before"):
        statistics.update_means("conv_out", np.ones((1, 2)))


def shard(seed: int) -> Statistics:
    generator = np.random.default_rng(seed)
    statistics = Statistics("cafe", f"{seed:x}", 3)
    for name, channels in (("a", 4), ("b é\n", 1), ("", 600)):
        statistics.update(name, generator.normal(size=(2, channels)))
        statistics.update_means(name, generator.normal(size=(3, channels)))
    return statistics


def test_means_are_saved_and_loaded(tmp_path: Path) -> None:
    statistics = shard(1)
    statistics.means["never"] = ChannelMeans()
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert set(loaded.means) == {"a", "b é\n", ""}  # what has no sums is not worth a line
    for name, means in loaded.means.items():
        assert means == statistics.means[name]
        assert means.sums is not None and means.sums.dtype == np.int64
    first = (tmp_path / "s.npz").read_bytes()
    loaded.save(tmp_path / "s.npz")
    assert (tmp_path / "s.npz").read_bytes() == first
    loaded.update_means("a", np.ones((1, 4)))  # what was loaded can be gone on with


def test_shards_with_means_merge_in_any_order(tmp_path: Path) -> None:
    a, b, c = shard(1), shard(2), shard(3)
    c.update_means("only here", np.ones((1, 2)))
    for joined in (a.merge(b, c), c.merge(b).merge(a), Statistics.merge(b, c, a)):
        assert joined == a.merge(b).merge(c)
        assert joined.means["a"].items == 9 and joined.means["only here"].items == 1
    assert a == shard(1)


def test_damaged_means_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for key, change in (
        ("mean_lengths", lambda array: array + 1),
        ("mean_lengths", lambda array: -array),
        ("mean_items", lambda array: array[:-1]),
        ("mean_sums", lambda array: array[:-2]),
    ):
        shard(1).save(path)
        with np.load(path) as archive:
            content = {name: archive[name] for name in archive.files}
        content[key] = change(content[key])
        np.savez(path, **content)
        with pytest.raises(CalibrationError, match="its arrays of channel means do not belong together"):
            Statistics.load(path)
