"""Second moments through the calibration pass: right, streaming, without padding, and in groups."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.grouped_moments import GroupedMoments, in_groups
from onnxq.stats.second_moment import moment_bytes
from onnxq.stats.statistics import Statistics

MODEL = (
    "g (float[N,S,4] x, int64[N,S] attention_mask) => (float[N,S,4] y, int64[N,S] m)"
    " { r = Relu(x) \n e = Exp(r) \n y = Neg(e) \n m = Identity(attention_mask) }"
)
RNG = np.random.default_rng(0)
LENGTHS = (3, 1, 5, 3)


def feeds(masked: bool = False):
    found = []
    for length in LENGTHS:
        mask = np.ones((2, length), np.int64)
        if masked:
            mask[1, length // 2 + 1 :] = 0
        x = RNG.normal(size=(2, length, 4)).astype(np.float32)
        found.append({"x": x, "attention_mask": mask})
    return found


def rows_of(samples):
    kept = [feed["x"][feed["attention_mask"].astype(bool)] for feed in samples]
    return np.concatenate(kept).astype(np.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_moments_and_magnitudes_of_inner_values_and_of_inputs(make, masked):
    samples = feeds(masked)
    found = calibrate(make(MODEL), ["r"], samples, Run(threads=1), moments=["e", "x"], peaks=["e"])
    x = rows_of(samples)
    exact = np.exp(np.maximum(x, 0))
    np.testing.assert_allclose(found.moments["e"].matrix, exact.T @ exact, rtol=1e-5)
    np.testing.assert_allclose(found.moments["x"].matrix, x.T @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.peaks["e"].mean, exact.mean(axis=0), rtol=1e-5)
    assert found.moments["e"].rows == len(x)
    assert list(found) == ["r"]  # ranges only where they are wanted
    assert found["r"].count == 4 * len(x)
    assert sorted(found.moments) == ["e", "x"]
    assert sorted(found.peaks) == ["e"]


def test_shards_merge_to_the_whole(make):
    samples = feeds()
    whole = calibrate(make(MODEL), [], samples, Run(threads=1), moments=["e"])
    parts = [calibrate(make(MODEL), [], part, Run(threads=1), moments=["e"]) for part in (samples[:1], samples[1:])]
    assert Statistics.merge(*parts).moments == whole.moments


def test_what_is_no_value_of_real_numbers_has_none(make):
    lines = []
    found = calibrate(make(MODEL), [], feeds(), Run(threads=1, warn=lines.append), moments=["e", "m", "nothing"])
    assert list(found.moments) == ["e"]
    assert [line.split(":")[0] for line in lines] == ["value 'nothing'", "value 'm'"]


def test_channels_that_change_are_an_error(make):
    model = make("g (float[N,M] x) => (float[N,M] y) { y = Relu(x) }")
    samples = [{"x": np.ones((2, n), np.float32)} for n in (3, 4)]
    with pytest.raises(CalibrationError, match="value 'y': update: 4 channels where there were 3"):
        calibrate(model, [], samples, Run(threads=1), moments=["y"])


def test_convolutions_give_their_channels_in_order(make):
    # with ranges alone the runtime's blocks of channels are read as they are; not so with moments
    model = make(
        "g (float[1,16,4,4] x) => (float[1,16,4,4] y) <float[16,16,1,1] w = {"
        + ",".join(str(i % 7 - 3.0) for i in range(256))
        + "}> { c = Conv(x, w) \n y = Relu(c) }"
    )
    x = RNG.normal(size=(1, 16, 4, 4)).astype(np.float32)
    w = np.array([i % 7 - 3.0 for i in range(256)]).reshape(16, 16)
    c = np.einsum("oi,nihw->nohw", w, x).reshape(-1, 4).astype(np.float64)
    found = calibrate(model, [], [{"x": x}], Run(threads=1), moments=["c"])
    np.testing.assert_allclose(found.moments["c"].matrix, c.T @ c, rtol=1e-4)


def test_groups_fit_the_budget_and_keep_the_order():
    channels = {"a": 100, "b": 100, "c": 300, "d": 10}
    assert in_groups(channels, 1e9) == [["a", "b", "c", "d"]]
    assert in_groups(channels, 2 * moment_bytes(100)) == [["a", "b"], ["c"], ["d"]]
    assert in_groups(channels, 1) == [["a"], ["b"], ["c"], ["d"]]
    assert in_groups({}, 1) == []


def test_each_group_is_run_once_and_gives_what_one_pass_gives(make):
    samples = feeds()
    whole = calibrate(make(MODEL), [], samples, Run(threads=1), moments=["r", "e", "y"], peaks=["r", "e", "y"])
    source = GroupedMoments(make(MODEL), [["r", "e"], ["y"]], samples, Run(threads=1))
    statistics = Statistics()
    statistics.source, statistics.later = source, frozenset("rey")
    assert statistics.of_input("nothing") is None
    for name, runs in (("r", 1), ("e", 1), ("y", 2)):
        found = statistics.of_input(name)
        assert found is not None
        assert found.moment == whole.moments[name]
        assert found.peaks == whole.peaks[name]
        assert source.runs == runs
    assert sorted(statistics.moments) == ["y"]  # those of the first group are dropped
    assert statistics.of_input("nothing") is None  # and nothing is dropped for it
    assert statistics.of_input("y") is not None
    assert source.runs == 2


def test_a_value_that_has_none_is_asked_for_once(make):
    source = GroupedMoments(make(MODEL), [["m"]], feeds(), Run(threads=1))
    statistics = Statistics()
    statistics.source, statistics.later = source, frozenset("m")
    assert statistics.of_input("m") is None
    assert statistics.of_input("m") is None
    assert source.runs == 1
