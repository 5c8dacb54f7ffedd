"""SmoothQuant on networks in which nothing stands out: never worse than none, with many samples or few."""

from __future__ import annotations

import pytest

import onnxq
from onnxq.algorithms.channels.balance import Balance, smooth_scales
from onnxq.graph.files import io
from onnxq.passes import smooth
from onnxq.verify.compare import compare
from tests.outlier_models import with_outliers
from tests.smooth_models import KINDS, feeds


def quantized(model, preset: str, count: int, **options):
    return onnxq.quantize(
        model, calibration=feeds(model, count), preset=preset, benchmark=False, force=True, threads=1, **options
    )


def decibels(model, result) -> float:
    found = compare(model.SerializeToString(), io.to_bytes(io.load(result.model)), feeds(model, 16, seed=99), threads=1)
    return found.sqnr_db


@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_is_not_worse_than_none(kind: str, count: int) -> None:
    model = KINDS[kind]()
    plain, smoothed = (quantized(model, preset, count) for preset in ("w8a8", "w8a8-smooth"))
    assert smoothed.sqnr_db >= plain.sqnr_db
    assert decibels(model, smoothed) >= decibels(model, plain) - 1.0


def test_what_is_worse_as_a_whole_is_taken_back_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer at a time every exponent looks good here, as scales in the weights before do harm elsewhere."""

    def eager(weights, specs, rows, peaks, *, by_row, tied=None):
        return Balance(0.95, smooth_scales(peaks, weights, 0.95, tied), 0.0, 1.0)

    monkeypatch.setattr(smooth, "search_balance", eager)
    model = KINDS["convnext"]()
    plain, smoothed = (quantized(model, preset, 8) for preset in ("w8a8", "w8a8-smooth"))
    assert smoothed.sqnr_db == plain.sqnr_db
    assert any("nothing was smoothed, since held-out samples have" in line for line in smoothed.warnings)
    assert smoothed.model == plain.model
    # an exponent that the user names is not second-guessed
    insisted = quantized(model, "w8a8", 8, smooth=0.95)
    assert insisted.sqnr_db < plain.sqnr_db
    assert not any("nothing was smoothed" in line for line in insisted.warnings)


def test_outliers_are_still_evened_out() -> None:
    """The guard does not take back what helps."""
    changed = with_outliers(KINDS["distilbert"](), channels=(5, 40))
    plain, smoothed = (quantized(changed, preset, 24) for preset in ("w8a8", "w8a8-smooth"))
    assert smoothed.sqnr_db > plain.sqnr_db + 6.0
