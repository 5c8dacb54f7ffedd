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


def test_a_limit_that_rounding_misses_is_met_by_blocks_that_learn() -> None:
    plain, single, blocks = (quantized(**how).sqnr_db or 0.0 for how in ({}, {"adaround": True}, {"reconstruct": True}))
    limit = max(single + 0.2, blocks - 1.0)
    assert plain < limit < blocks
    result = quantized(min_sqnr=limit)
    assert result.sqnr_db is not None and result.sqnr_db >= limit
    assert result.recipe is not None and "reconstruct: true" in result.recipe
    assert any("reconstruction" in str(entry) for entry in result.trail)
    assert "quantize: false" not in result.recipe  # no layer went back to float


def test_auto_lets_blocks_learn_where_static_integers_miss_the_budget() -> None:
    result = quantized(preset="auto", benchmark=True)
    found = {candidate["name"]: candidate for candidate in result.candidates}
    assert "w8a8 (learned)" in found
    assert found["w8a8 (learned)"]["loss"] < found["w8a8"]["loss"]
