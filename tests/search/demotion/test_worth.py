"""In which order layers are given back, and how sure a model has to be that was picked among several."""

from __future__ import annotations

import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onnxq.recipe.recipe import Recipe
from onnxq.search.choice import FLOAT, MIXED, STATIC, STORED, Form, Layer, Outcome
from onnxq.search.demotion.confidence import Confidence, errors_for
from onnxq.search.demotion.demoting import Demoting
from onnxq.search.demotion.fewest import Attempt, fewest
from onnxq.search.demotion.stored_weights import affordable, that_matter, together
from onnxq.search.demotion.worth import by_bytes, by_time, lost_times
from onnxq.search.mixing import Mixing


def layer(name: str, db: float, us: float, size: int = 0) -> Layer:
    forms = {
        STATIC: Form(1.0, model_db=db),
        FLOAT: Form(1.0 + us, size=100 + size),
        STORED: Form(1.0, model_db=db, size=100),
    }
    return Layer(name, "Conv", forms)


def test_the_time_that_is_lost_adds_up_and_what_is_faster_gives_none_back() -> None:
    layers = [layer("free", 30.0, -1.0), layer("cheap", 25.0, 2.0), layer("worst", 20.0, 100.0)]
    assert lost_times(layers, STATIC, dict.fromkeys(["free", "cheap", "worst"], FLOAT)) == [0.0, 0.0, 2.0, 102.0]


def test_noise_for_each_byte_decides_which_weights_stay_float() -> None:
    layers = [layer("large", 20.0, 0.0, 10_000), layer("small", 25.0, 0.0, 10)]
    assert [found.name for (found,) in by_bytes([[layer] for layer in layers], STORED)] == ["small", "large"]
    several = [layer(name, 20.0, 0.0, 10_000) for name in "abc"]  # noise of each, bytes of one
    alone = layer("alone", 18.0, 0.0, 10_000)
    assert by_bytes([[alone], several], STORED) == [several, [alone]]


@pytest.mark.parametrize("tries", [1, 2, 5, 20])
def test_the_best_of_several_is_as_sure_as_one(tries: int) -> None:
    assert NormalDist().cdf(errors_for(tries)) ** tries == pytest.approx(NormalDist().cdf(1.0))
    assert errors_for(1) == pytest.approx(1.0) and errors_for(tries + 1) > errors_for(tries)


def trial(loss: float | None, error: float = 0.0, sqnr: float | None = None) -> Any:
    return SimpleNamespace(comparison=SimpleNamespace(loss=loss, loss_error=error, sqnr_db=sqnr))


def confidence(**options: Any) -> Confidence:
    recipe = Recipe(**options)
    limits = recipe.min_sqnr is None and recipe.max_drop is None
    known = SimpleNamespace(
        by_budget=limits, job=SimpleNamespace(recipe=recipe),
        loss=lambda found: math.inf if found.comparison.loss is None else found.comparison.loss,
    )  # fmt: skip
    return Confidence(cast(Any, known))


def test_an_estimate_has_to_be_inside_half_and_what_is_uncertain_inside_the_whole_of_the_budget() -> None:
    judge = confidence()
    assert judge.is_sure(trial(0.0049), 3) and not judge.is_sure(trial(0.0051), 3)
    assert judge.is_sure(trial(0.0079, 0.004), 1), "the estimate is 0.39 %"
    assert not judge.is_sure(trial(0.0099, 0.004), 1)
    assert judge.is_sure(trial(0.0079, 0.004), 2) and not judge.is_sure(trial(0.0079, 0.004), 4)
    assert judge.excess(trial(0.02), 1) == pytest.approx(16.0)


def test_limits_of_the_users_are_held_as_they_are() -> None:
    judge = confidence(min_sqnr=30.0)
    assert judge.is_sure(trial(0.5), 9)
    assert judge.excess(trial(0.5, sqnr=20.0)) == pytest.approx(10.0)
    assert confidence(max_drop=1.0).excess(trial(0.5)) == pytest.approx(4.0)


def test_a_search_ends_where_fewer_layers_would_save_no_time() -> None:
    left = [1.0 - index / 64 for index in range(65)]
    tried: list[int] = []

    def attempt(count: int) -> Attempt:
        tried.append(count)
        return Attempt(count >= 30, 2.0)

    flat = fewest(left, 1.2, attempt, [1.0] * 65)
    first = list(tried)
    tried.clear()
    steep = fewest(left, 1.2, attempt, [1.0 + index for index in range(65)])
    assert flat is not None and steep is not None and flat >= steep >= 30
    assert len(first) < len(tried)


def stored(name: str, db: float, size: int) -> Layer:
    return Layer(name, "Conv", {FLOAT: Form(1.0, size=100 + size), STORED: Form(1.0, model_db=db, size=100)})


def test_stored_weights_go_together_with_what_reads_them_too() -> None:
    layers = [stored("a", 20.0, 1000), stored("b", 60.0, 1000), stored("c", 30.0, 10), stored("quiet", 70.0, 1)]
    weights = ["w", "w", "v", "u"]
    chosen = that_matter(layers, weights, 1e-4, 10_000, 20_000)
    assert [found.name for found in chosen] == ["c", "a", "b"]  # by noise for each byte
    assert [found.name for found in that_matter(layers, weights, 1e-4, 10_000, 10_500)] == ["c"]
    assert not that_matter(layers, weights, 1.0, 10_000, 20_000)
    assert not that_matter([Layer("unknown", "Conv", {STORED: Form(1.0)})], ["w"], 1e-4, 10_000, 20_000)


def test_a_weight_that_several_read_is_paid_once() -> None:
    layers = [stored("a", 20.0, 1000), stored("b", 25.0, 1000), stored("c", 30.0, 1000)]
    assert [len(group) for group in together(layers, ["w", "v", "w"])] == [2, 1]
    assert affordable(together(layers, ["w", "w", "v"]), 10_000, 11_500) == 1
    assert affordable(together(layers, ["w", "u", "v"]), 10_000, 12_500) == 2


@pytest.mark.parametrize(
    ("static", "mixed", "start"),
    [
        (2.0, 2.1, STATIC),  # about as fast: the one that is closer to float
        (2.0, 2.4, MIXED),
        (2.1, 2.0, STATIC),
        (2.0, 1.4, STATIC),
        (1.0, 1.0, None),  # no faster than float
    ],
)
def test_a_search_starts_from_the_closest_of_the_fastest(static: float, mixed: float, start: str | None) -> None:
    def made(ratio: float, loss: float) -> SimpleNamespace:
        comparison = SimpleNamespace(loss=loss)
        return SimpleNamespace(comparison=comparison, timing=SimpleNamespace(ratio=ratio), refused="outside")

    found = {STATIC: made(static, 0.03), MIXED: made(mixed, 0.04)}
    for name, trial in found.items():
        trial.name = name
    job = cast(Any, SimpleNamespace(data=object()))
    trials = cast(
        Any,
        SimpleNamespace(
            made=found, outcomes=lambda: [Outcome(FLOAT, 1.0, 1)], loss=lambda trial: trial.comparison.loss
        ),
    )
    chosen = Demoting(job, trials, cast(Any, None))._too_coarse()
    assert (None if chosen is None else chosen.name) == start


@pytest.mark.parametrize("refused", ["", "outside"])
@pytest.mark.parametrize("given_back", [True, False])
def test_stored_weights_that_are_inside_are_timed_whatever_else_was_found(
    monkeypatch: pytest.MonkeyPatch, refused: str, given_back: bool
) -> None:
    """They may be as fast as layers given back, in a file that is a quarter as large."""
    start = SimpleNamespace(name=STATIC, timing=object(), refused="outside")
    kept = SimpleNamespace(name="mixed (3 float)", timing=None, refused="")
    stored = SimpleNamespace(name="w8 (gptq)", timing=None, refused=refused)
    timed: list[Any] = []
    trials = SimpleNamespace(made={"w8 (gptq)": stored}, outcomes=list, time=timed.extend, loss=float)
    demoting = Demoting(cast(Any, None), cast(Any, trials), cast(Any, SimpleNamespace(measured=True)))
    found = {"_too_coarse": start, "_with_float_weights": None, "_give_back": kept if given_back else None}
    found |= {
        "_weights_forbid": False,
        "_rounded_better": False,
        "_nearly_as_fast": False,
        "_worth_sparing": False,
        "_has_grown": False,
    }
    for name, value in found.items():
        monkeypatch.setattr(demoting, name, lambda *_, value=value: value)
    monkeypatch.setattr(demoting, "_full_speed", SimpleNamespace(run=lambda _: None, refined=lambda trial: trial))
    demoting.run()
    assert timed == [kept] * given_back + [stored] * (not refused)


@pytest.mark.parametrize(
    ("loss", "cleaned", "forbidden"),
    [
        (0.03, 1.5, True),  # most of the noise has to go, and most of the layers with it
        (0.03, 1.0, False),  # but the float model is no faster than it was
        (0.012, 1.5, False),  # outside by so little that better rounding may do
    ],
)
def test_weights_that_miss_alone_rule_static_layers_out(loss: float, cleaned: float, forbidden: bool) -> None:
    """Every layer makes as much noise and gains as much time, so that as many go as noise has to."""
    layers = {f"n{i}": pinned(f"n{i}", 30.0) for i in range(20)}
    for layer in layers.values():
        layer.default = {STATIC: STATIC}
    comparison = SimpleNamespace(loss=loss, loss_error=0.0, sqnr_db=20.0)
    start = SimpleNamespace(name=STATIC, comparison=comparison, timing=SimpleNamespace(ratio=1.6))
    stored = SimpleNamespace(name=STORED, comparison=comparison, recipe=None)
    recipe = SimpleNamespace(min_sqnr=None, max_drop=None)
    trials = SimpleNamespace(
        made={STATIC: start, STORED: stored},
        by_budget=True,
        reasons={},
        job=SimpleNamespace(recipe=recipe),
        loss=lambda trial: trial.comparison.loss,
        outcomes=lambda: [Outcome("cleaned", cleaned, 1)],
    )
    mixing = SimpleNamespace(layers=layers, find_damage=lambda *_: None, form=lambda *_: STATIC)
    demoting = Demoting(cast(Any, SimpleNamespace(data=object())), cast(Any, trials), cast(Any, mixing))
    assert demoting._weights_forbid(cast(Any, start)) == forbidden


def test_what_costs_least_time_for_its_noise_comes_first() -> None:
    quick, slow = pinned("quick", 30.0), pinned("slow", 30.0)
    slow.forms[FLOAT] = Form(100.0)
    assert [layer.name for layer in by_time([slow, quick], STATIC, FLOAT, STORED)] == ["quick", "slow"]


def pinned(name: str, stored_db: float) -> Layer:
    return Layer(name, "Conv", {STATIC: Form(1.0), FLOAT: Form(2.0), STORED: Form(2.0, model_db=stored_db)})


def test_noise_of_other_weights_spreads_as_that_of_the_earlier_ones_did() -> None:
    layer = Layer("a", "Conv", {STORED: Form(1.0, sqnr_db=40.0, model_db=45.0), STATIC: Form(1.0, sqnr_db=30.0)})
    assert layer.forms[STORED].spread == 5.0
    assert Form(1.0, sqnr_db=40.0, model_db=math.inf).spread is None
    mixing = Mixing(cast(Any, None), cast(Any, None))
    mixing._as_it_spread(layer, STATIC)
    assert layer.forms[STATIC].model_db is None
    mixing._as_it_spread(layer, STATIC, STORED)
    assert layer.forms[STATIC].model_db == 35.0
