"""Statistics are kept and used again: the same bytes as a fresh calibration, from one run or from shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import CalibrationError
from onnxq.recipe.recipe import FORMATS, RANGES
from tests.graph.build import build, weights

TEXT = """g (float[N,16,9,9] x) => (float[N,M,H,W] y) {
    [a] a = Conv <pads = [1,1,1,1]> (x, w1, b) [r] b1 = Relu (a) [b] c = Conv (b1, w2) [s] d = Sigmoid (c)
    [m] e = Mul (c, d) [j] f = Concat <axis = 1> (e, b1) [c] y = Conv (f, w3) }"""


def model(seed: int = 0) -> onnx.ModelProto:
    arrays = {"w1": weights(16, 16, 3, 3, seed=seed), "w2": weights(16, 16, 1, 1), "w3": weights(8, 32, 1, 1)}
    return build(TEXT, b=weights(16), **arrays)


FEEDS = [{"x": np.random.default_rng(i).normal(size=(1 + i % 3, 16, 9, 9)).astype(np.float32)} for i in range(20)]
USED, HELD_OUT = FEEDS[:16], FEEDS[16:]
"""`onnxq.quantize` calibrates on all but the last fifth."""


def quantized(**options: object) -> bytes:
    result = onnxq.quantize(model(), preset="w8a8", benchmark=False, threads=1, **options)
    assert result.model is not None
    return result.model.SerializeToString()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def statistics(folder: Path) -> onnxq.Statistics:
    return onnxq.calibrate(model(), folder / "all.npz", calibration=USED, threads=1).statistics


@pytest.mark.parametrize("method", RANGES)
def test_one_calibration_serves_every_range_and_gives_the_bytes_of_a_fresh_one(
    statistics: onnxq.Statistics, folder: Path, method: str
) -> None:
    fresh = quantized(calibration=FEEDS, range=method)
    assert quantized(calibration=HELD_OUT, statistics=statistics, range=method) == fresh
    assert quantized(calibration=HELD_OUT, statistics=folder / "all.npz", range=method) == fresh


@pytest.mark.parametrize(
    "options", [{"format": form} for form in FORMATS] + [{"per_channel": False}, {"exclude": ["b"]}]
)
def test_every_recipe_finds_what_it_needs(statistics: onnxq.Statistics, options: dict[str, object]) -> None:
    assert quantized(calibration=HELD_OUT, statistics=statistics, **options) == quantized(calibration=FEEDS, **options)


def test_ranges_change_the_model() -> None:
    assert len({quantized(calibration=FEEDS, range=method) for method in ("minmax", "mse", "entropy")}) == 3


def test_shards_joined_give_the_same_bytes(statistics: onnxq.Statistics, folder: Path) -> None:
    parts = [
        onnxq.calibrate(model(), folder / f"{i}.npz", calibration=part, threads=1).statistics
        for i, part in enumerate((USED[:5], USED[5:6], USED[6:]))
    ]
    whole = quantized(calibration=HELD_OUT, statistics=statistics)
    for order in ((0, 1, 2), (2, 0, 1)):
        joined = onnxq.Statistics.merge(*(parts[i] for i in order))
        assert joined.samples == 16
        assert quantized(calibration=HELD_OUT, statistics=joined) == whole
    joined.save(folder / "joined.npz")
    assert quantized(calibration=HELD_OUT, statistics=folder / "joined.npz") == whole


def test_batches_do_not_matter(folder: Path) -> None:
    array = np.concatenate([feed["x"] for feed in USED])
    paths = [folder / "single.npz", folder / "whole.npz"]
    single = onnxq.calibrate(model(), paths[0], calibration=[{"x": x[None]} for x in array], threads=1)
    whole = onnxq.calibrate(model(), paths[1], calibration=[{"x": array}], threads=1)
    assert (single.samples, whole.samples) == (len(array), 1)
    for name, statistic in single.statistics.items():
        assert statistic.count == whole.statistics[name].count
        assert statistic.low == pytest.approx(whole.statistics[name].low, abs=1e-5)
        assert statistic.high == pytest.approx(whole.statistics[name].high, abs=1e-5)


def test_no_samples_are_needed_then(statistics: onnxq.Statistics) -> None:
    result = onnxq.quantize(model(), statistics=statistics, benchmark=False, threads=1)
    assert result.preset == "w8a8" and "calibrate" not in result.seconds
    assert result.model is not None
    with_samples = quantized(calibration=FEEDS)
    assert {t.name for t in result.model.graph.initializer} == {
        t.name for t in onnx.load_from_string(with_samples).graph.initializer
    }


def test_statistics_of_another_model_are_refused(statistics: onnxq.Statistics) -> None:
    message = "--stats: the statistics are of another model .its hash differs.; run onnxq calibrate on this one"
    with pytest.raises(CalibrationError, match=message):
        onnxq.quantize(model(seed=1), statistics=statistics, calibration=HELD_OUT, benchmark=False)
    other = onnxq.Statistics("0123", "", 1)
    with pytest.raises(CalibrationError, match="merge: statistics of two models"):
        statistics.merge(other)


def test_statistics_that_lack_a_value_are_refused(statistics: onnxq.Statistics) -> None:
    partial = onnxq.Statistics(statistics.model_hash, statistics.data_hash, statistics.samples)
    partial.put("x", statistics["x"])
    for given, options in ((partial, {}), (statistics, {"exclude": ["r"]})):  # values before a Relu are rarely needed
        with pytest.raises(
            CalibrationError, match="value '.*' has no statistics .*; pass --calibration without --stats"
        ):
            onnxq.quantize(model(), statistics=given, calibration=HELD_OUT, benchmark=False, **options)


def test_statistics_are_not_changed_by_being_used(statistics: onnxq.Statistics, folder: Path) -> None:
    quantized(calibration=HELD_OUT, statistics=statistics)
    assert statistics == onnxq.Statistics.load(folder / "all.npz")


def test_what_auto_keeps_of_its_own_is_not_called_saved_statistics() -> None:
    """Auto hands its own statistics from one candidate to the next; --stats was never given."""
    result = onnxq.quantize("models/digits_resnet.onnx", preset="auto", rotate=True, budget=1, seconds=0.05)
    assert not any("--stats" in warning for warning in result.warnings)
    assert any("--rotate: nothing was turned" in warning for warning in result.warnings)
