"""Means of the samples' extrema."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.core.dtypes import QType
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError
from onnxq.stats.observation import observe
from onnxq.stats.ranges import compute_range
from onnxq.stats.sample_ends import SampleEnds
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

U8 = TensorSpec(QType.UINT8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def ends_of(*arrays: np.ndarray, samples: int = 1) -> SampleEnds:
    ends = SampleEnds()
    for array in arrays:
        ends.update(observe(array, samples).ends)
    return ends


@settings(max_examples=40)
@given(st.lists(st.lists(FINITE, min_size=1, max_size=4), min_size=1, max_size=5))
def test_means_are_exact_and_do_not_depend_on_the_order(samples: list[list[float]]) -> None:
    arrays = [np.array(sample) for sample in samples]
    ends = ends_of(*arrays)
    low, high = ends.means or (0.0, 0.0)
    for found, ends_seen in ((low, [min(s) for s in samples]), (high, [max(s) for s in samples])):
        expected = sum(map(Fraction, ends_seen), Fraction()) / len(samples)
        assert abs(Fraction(found) - expected) <= abs(expected) * Fraction(1, 2**52) + Fraction(1, 2**148)
    back = SampleEnds()
    for array in reversed(arrays):
        back = ends_of(array).merge(back)
    assert back.to_array().tolist() == ends.to_array().tolist()
    assert SampleEnds.from_array(ends.to_array()).means == ends.means


def test_a_batch_counts_as_its_samples() -> None:
    batch = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    assert ends_of(batch, samples=5).means == ends_of(*batch).means
    batch[2, 0, 0], batch[3, 0, 0], batch[4] = np.nan, np.inf, -np.inf
    low, high = ends_of(batch, samples=5).means or (0.0, 0.0)
    held = [row[np.isfinite(row)] for row in batch[:4]]
    assert low == pytest.approx(np.mean([row.min() for row in held]), rel=1e-6)
    assert high == pytest.approx(np.mean([row.max() for row in held]), rel=1e-6)
    assert SampleEnds().means is None


def test_the_range_is_theirs_and_holds_zero() -> None:
    statistic = ValueStatistic()
    for low, high in ((1.0, 4.0), (-3.0, 2.0), (-4.0, 30.0)):
        statistic.update(np.array([low, high], np.float32))
    assert compute_range(statistic, U8, "average") == (-2.0, 12.0)
    positive = ValueStatistic()
    positive.update(np.array([2.0, 3.0], np.float32))
    assert compute_range(positive, U8, "average") == (0.0, 3.0)
    assert compute_range(ValueStatistic(), U8, "average") == (0.0, 0.0)


def test_files_have_them_and_older_files_say_so(tmp_path: Path) -> None:
    statistics = Statistics("m", "d", 2)
    statistics.update("x", np.array([-1.0, 2.0], np.float32))
    statistics.update("x", np.array([-3.0, 4.0], np.float32))
    path = tmp_path / "s.npz"
    statistics.save(path)
    assert compute_range(Statistics.load(path)["x"], U8, "average") == (-2.0, 3.0)
    with np.load(path) as archive:
        older = {key: archive[key] for key in archive.files if key != "sample_ends"}
    np.savez(path, **older)
    with pytest.raises(CalibrationError, match=r"--range average.*run onnxq calibrate again"):
        compute_range(Statistics.load(path)["x"], U8, "average")
    assert compute_range(Statistics.load(path)["x"], U8, "minmax") == (-3.0, 4.0)
    for damaged in (
        np.array([["x", "y", "z"]]),
        np.array([["1", "1", "-1"]]),
        np.zeros((2, 3), "U1"),
        np.zeros((1, 3)),
    ):
        np.savez(path, **older, sample_ends=damaged)
        with pytest.raises(CalibrationError, match=r"damaged|contradict|do not belong"):
            Statistics.load(path)
