"""Searches on whole models whose integers miss the limits: blocks learn before layers go back to float."""

from __future__ import annotations

import time
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
    (step,) = result.trail
    assert step["tried"] == "reconstruction of w8a8" and step["seconds"] > 0.0
    assert step["sqnr_db"] == found["w8a8 (learned)"]["sqnr_db"]
    assert "; roundings learned by layer" in step["verdict"] and " dB, loss" in step["verdict"]
    assert step["verdict"].endswith(", chosen") == (result.recipe is not None and "reconstruct: true" in result.recipe)


def test_auto_says_where_too_little_time_was_left_for_learning() -> None:
    result = quantized(preset="auto", benchmark=True, budget=39.0)
    (step,) = result.trail
    assert step["verdict"].startswith("not tried: ") and step["verdict"].endswith(
        " s of --budget were left, and it needs 40"
    )


def test_the_end_of_a_search_on_the_clock_ends_learning_and_keeps_what_was_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxq.qat.block_learning import BlockLearner

    now, learn = [time.monotonic()], BlockLearner.learn

    def slow(*given: Any) -> Any:  # another program takes the processor for a minute at each block
        now[0] += 60.0
        return learn(*given)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(BlockLearner, "learn", slow)
    result = quantized(preset="auto", benchmark=True, budget=100.0)
    (step,) = result.trail
    assert "cut short by --budget" in step["verdict"], step


def test_what_a_search_says_of_blocks_that_learned_is_in_its_trail() -> None:
    result = quantized(min_sqnr=45.0)
    (step,) = [step for step in result.trail if step["tried"] == "reconstruction"]
    assert "blocks learned" in step["verdict"] and "in 0 s" not in step["verdict"].partition("SQNR")[0]
