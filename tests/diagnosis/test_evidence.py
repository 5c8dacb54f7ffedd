"""What a report is made of: nothing is gathered without samples, and weights are compared as they were."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.diagnosis.evidence import unscaled
from tests.graph.build import build, weights


def test_factors_of_channels_are_taken_back() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=(16, 8, 3, 3)).astype(np.float32)
    rounded = (np.rint(before * 40) / 40).astype(np.float32)
    for axis in (0, 1):
        factors = generator.uniform(0.1, 10, size=before.shape[axis]).astype(np.float32)
        shape = [-1 if index == axis else 1 for index in range(4)]
        np.testing.assert_allclose(unscaled(before, rounded * factors.reshape(shape)), before, atol=0.03)
    assert unscaled(before, rounded) is rounded


@pytest.mark.report
def test_without_samples_the_page_says_what_is_missing(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,64] y) { [fc] y = MatMul (x, w) }", w=weights(64, 64))
    result = onnxq.quantize(model, preset="w4", benchmark=False, threads=1, report=tmp_path / "r.html")
    assert result.evidence is not None
    assert result.evidence["layers"] == [] and "pass --calibration" in result.evidence["missing"][0]
    assert result.evidence["schemes"]["weights"][0]["shape"] == [64, 64]
    shown = re.sub("<[^>]*>", "", (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "pass --calibration" in shown


@pytest.mark.report
def test_packed_weights_have_histograms(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,64] y) { [fc] y = MatMul (x, w) }", w=weights(64, 64))
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(6)]
    result = onnxq.quantize(
        model, preset="w4", calibration=feeds, benchmark=False, threads=1, report=tmp_path / "r.html"
    )
    assert result.evidence is not None
    (row,) = result.evidence["weights"]
    assert row["node"] == "fc" and 15 < row["sqnr_db"] < 30
    assert result.evidence["layers"][0]["weight_sqnr_db"] == pytest.approx(row["sqnr_db"])
