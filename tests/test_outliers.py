"""Encoders with a few channels fifty times as large as the others: what SmoothQuant and LLM.int8() win back."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.report.results import QuantizeResult
from tests.graph.build import run
from tests.outlier_models import with_outliers

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "calibration_data" / "text_encoder.npz"


@cache
def encoder(outliers: bool) -> onnx.ModelProto:
    model = onnx.load(ROOT / "models" / "text_encoder.onnx")
    return with_outliers(model) if outliers else model


@cache
def quantized(preset: str, outliers: bool = True) -> QuantizeResult:
    return onnxq.quantize(encoder(outliers), calibration=DATA, preset=preset, benchmark=False, threads=1, force=True)


def decibels(preset: str, outliers: bool = True) -> float:
    found = quantized(preset, outliers).sqnr_db
    assert found is not None
    return found


def test_outliers_are_injected_without_changing_what_is_computed() -> None:
    with np.load(DATA) as archive:
        feed = {name: archive[name][:4] for name in ("input_ids", "attention_mask")}
    before, after = (run(encoder(outliers).SerializeToString(), feed) for outliers in (False, True))
    np.testing.assert_allclose(before["logits"], after["logits"], atol=1e-5)


def test_plain_scales_lose_ten_decibels() -> None:
    assert decibels("w8a8") < decibels("w8a8", outliers=False) - 10


@pytest.mark.parametrize("preset", ["w8a8-smooth", "llm-int8"])
def test_four_fifths_of_the_loss_are_won_back(preset: str) -> None:
    plain, clean = decibels("w8a8"), decibels("w8a8", outliers=False)
    assert decibels(preset) - plain > 0.8 * (clean - plain)


def test_the_share_of_outliers_is_reported() -> None:
    result = quantized("llm-int8")
    split = [entry for entry in result.to_dict()["at_inference"] if entry["form"] == "split"]
    assert split
    assert all(entry["outlier_channels"] >= 3 for entry in split if entry["channels"] == 96)  # one was large before
    share = sum(entry["outlier_channels"] for entry in split) / sum(entry["channels"] for entry in split)
    assert f"{share:.2%} of the input channels of {len(split)} of" in result.summary()
