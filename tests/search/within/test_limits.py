"""What models are judged by in a search: figures, words, and what a node costs in float."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Job, open_data
from onnxq.recipe.recipe import Recipe
from onnxq.search.within.history import StepOutcome
from onnxq.search.within.limits import LimitsJudge
from onnxq.search.within.score import TaskMetric
from onnxq.targets import target_named
from onnxq.verify.budget import Limits
from tests.graph.build import build, weights
from tests.search.within.test_within_limits import LAYERS, feeds, network

RECIPE = Recipe(preset="w8a8")


def judge(model: object = None, samples: object = None, **limits: float) -> LimitsJudge:
    target = target_named("cpu")
    prepared = load_and_prepare(network() if model is None else model, target, Clock(None))  # type: ignore[arg-type]
    data = open_data(feeds() if samples is None else samples, prepared)
    job = Job(prepared, RECIPE, target, data, None, Clock(None), ExitStack(), 1, 0.1, 1.0)
    return LimitsJudge(job, data, TaskMetric(), Limits(**limits))


def test_a_layer_between_integers_costs_more_in_float_than_the_last_one() -> None:
    names = [f"layer{i}" for i in range(LAYERS)]
    prices = judge().prices(RECIPE, names, Clock(None))
    assert set(prices) == set(names)
    assert all(price > 0 for price in prices.values())
    assert prices["layer1"] > prices[names[-1]], "it needs conversions before and behind it"


def test_what_a_conversion_does_to_the_pool_behind_it_is_part_of_the_price() -> None:
    text = """g (float[1,16,64,64] x) => (float[1,16,32,32] y) { [a] a = Conv <pads = [1,1,1,1]> (x, w)
        [m] m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a) [c] y = Conv <pads = [1,1,1,1]> (m, w) }"""
    samples = [{"x": weights(1, 16, 64, 64, seed=i)} for i in range(2)]
    prices = judge(build(text, w=weights(16, 16, 3, 3)), samples).prices(RECIPE, ["a", "c"], Clock(None))
    pool = target_named("cpu").costs.before_quantize["MaxPool"].us(16 * 32 * 32 * 4)
    conversion = target_named("cpu").costs.quantize.us(16 * 32 * 32)
    assert prices["a"] > pool + conversion


def test_a_node_that_is_not_there_has_no_price() -> None:
    assert judge().prices(RECIPE, ["nothing"], Clock(None)) == {}


def test_figures_in_words() -> None:
    made = judge(max_drop=0.5, min_sqnr=20.0)
    assert made.asked == "--max-drop 0.5 and --min-sqnr 20"
    assert made.figures(StepOutcome(1.5, 18.26)) == "top1 falls by 1.5 points; SQNR is 18.3 dB"
    assert made.figures(StepOutcome(failure="broken")) == "broken"
    assert made.figures(StepOutcome()) == "nothing could be measured"


@pytest.mark.parametrize(
    ("outcome", "can"),
    [
        (StepOutcome(1.0, 9.0), True),
        (StepOutcome(None, 9.0), False),
        (StepOutcome(1.0, None), False),
        (StepOutcome(failure="x"), True),
    ],
)
def test_whether_the_limits_are_on_figures_that_there_are(outcome: StepOutcome, can: bool) -> None:
    assert judge(max_drop=0.5, min_sqnr=20.0).can_tell(outcome) is can
