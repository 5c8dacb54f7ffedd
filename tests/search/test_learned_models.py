"""Searches on whole models whose integers miss the limits: blocks learn before layers go back to float."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import onnxq
from onnxq.recipe.recipe import Recipe
from onnxq.targets import TARGETS
from tests.pipeline.test_reconstruction import feeds, model

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose weights have 4 bits, so that rounding misses any limit."""
    monkeypatch.setitem(TARGETS, "narrow", replace(TARGETS["cpu"], name="narrow", weight_bits=4))


def quantized(*, budget: float = 120.0, benchmark: bool = False, **options: Any) -> onnxq.QuantizeResult:
    recipe = Recipe(**{"preset": "w8a8", "target": "narrow", "include": ("*",), **options})
    return onnxq.quantize(
        model(), calibration=feeds(30), recipe=recipe, threads=1, benchmark=benchmark, budget=budget, seconds=0.02,
        force=True, cache=False,
    )  # fmt: skip


def test_where_a_limit_is_missed_blocks_learn_before_layers_go_back_to_float() -> None:
    result = quantized(min_sqnr=45.0)
    tried = [str(entry) for entry in result.trail]
    learned = next(place for place, entry in enumerate(tried) if "reconstruction" in entry)
    assert any("float" in entry for entry in tried[learned + 1 :])
    assert result.sqnr_db is not None and result.sqnr_db >= 45.0


def test_auto_lets_blocks_learn_where_static_integers_miss_the_budget() -> None:
    result = quantized(preset="auto", benchmark=True)
    found = {candidate["name"]: candidate for candidate in result.candidates}
    assert "w8a8 (learned)" in found
    assert found["w8a8 (learned)"]["loss"] < found["w8a8"]["loss"]
