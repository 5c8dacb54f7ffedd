"""TensorRT's calibration cache, written and read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.errors import CalibrationError
from onnxq.stats.statistics import Statistics
from onnxq.stats.tensorrt_cache import cache_of, is_cache, statistics_of
from onnxq.stats.value_statistic import ValueStatistic


def test_a_cache_has_the_ranges_that_went_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {}
    for name, factor in (("a", 1.0), ("b: c", 50.0)):
        values[name] = ValueStatistic()
        values[name].update((rng.standard_normal(20_000) * factor).astype(np.float32))
    values["never"] = ValueStatistic()
    path = tmp_path / "t.cache"
    path.write_text(cache_of(values))
    assert path.read_text().startswith("TRT-")
    assert is_cache(path)
    found = statistics_of(path)
    assert set(found) == {"a", "b: c"}
    for name, statistic in found.items():
        assert statistic.high is not None
        assert statistic.low == -statistic.high
        assert 0.3 < statistic.high / float(values[name].high or 0) <= 1.3


def test_the_digits_are_a_big_endian_float(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    path.write_text(f"TRT-8601-EntropyCalibration2\nx: {struct.pack('>f', 0.5).hex()}\n")
    assert Statistics.load(path)["x"].high == 63.5


@pytest.mark.parametrize("text", ["x\n", "x: 3f\n", "x: zzzzzzzz\n", "x: 7f800000\n", ""])
def test_what_is_no_cache(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.cache"
    path.write_text(f"TRT-8601-EntropyCalibration2\n{text}")
    with pytest.raises(CalibrationError, match="calibrate anew"):
        Statistics.load(path)


def test_calibrate_writes_one_and_quantize_reads_it(digits: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).random((8, 1, 16, 16)).astype(np.float32)
    cache, out = tmp_path / "tensorrt.cache", tmp_path / "q.onnx"
    onnxq.calibrate(digits, tmp_path / "s.npz", calibration=[{"image": s[None]} for s in samples], to=cache)
    result = onnxq.quantize(digits, out, target="tensorrt", preset="w8a8", statistics=cache, benchmark=False)
    assert out.exists()
    assert result.sqnr_db is not None
    assert onnxq.lint(out, target="tensorrt").findings == []
