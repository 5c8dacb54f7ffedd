"""``--budget`` is seconds of a clock: moved by hand here, by what building, comparing and diagnosing would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxq.errors import VerificationError
from onnxq.pipeline import making
from onnxq.pipeline.clock import Clock
from onnxq.search.within import deadline, pace, state, within_limits
from onnxq.search.within.deadline import Deadline, LateError, watched
from onnxq.search.within.pace import FirstModel, Pace
from tests.search.within.test_within_limits import DB, quantize


class Hand:
    """A clock that stands still but for what moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (deadline, pace, state):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def moved(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The function, which takes so many seconds more."""

        def slow(*args: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*args, **options)

        return slow


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """Building takes 10 s."""
    hand = Hand(monkeypatch)
    for module in (making, within_limits):
        monkeypatch.setattr(module, "build", hand.moved(module.build, 10.0))
    return hand


@pytest.mark.parametrize("budget", [25.0, 95.0, 200.0, 1000.0])
@pytest.mark.parametrize("diagnosis", [0.0, 30.0, 200.0])
def test_a_search_ends_in_its_time(
    hand: Hand, monkeypatch: pytest.MonkeyPatch, budget: float, diagnosis: float
) -> None:
    """The model as given counts, and verifying the last one: another 10 s where it has to be built once more."""
    monkeypatch.setattr(within_limits, "examine", hand.moved(within_limits.examine, diagnosis))
    try:
        found = quantize(min_sqnr=DB, budget=budget)
    except VerificationError as error:
        assert "--budget: time limit of" in str(error)
        assert hand.now <= budget + diagnosis, "a diagnosis is broken off where it says how far it is"
    else:
        assert hand.now <= budget
        assert found.sqnr_db is not None and found.sqnr_db >= DB


def test_with_time_enough_the_clock_changes_nothing(request: pytest.FixtureRequest) -> None:
    plain = quantize(min_sqnr=DB, budget=10000.0)
    request.getfixturevalue("hand")
    assert quantize(min_sqnr=DB, budget=10000.0).recipe == plain.recipe


def test_samples_are_not_run_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch)
    seen = []
    with pytest.raises(LateError):
        for item in watched(range(9), Deadline(Clock(None), 3.5), "compare"):
            seen.append(item)
            hand.now += 1.0
    assert seen == [0, 1, 2, 3]
    assert list(watched(range(9), Clock(None), "compare")) == list(range(9))


def test_there_is_room_for_what_the_latest_attempts_took() -> None:
    now = 0.0
    pace = Pace(lambda: now, 100.0, first=30.0)
    assert pace.room() and pace.expected == 30.0
    for seconds in (5.0, 50.0, 2.0):
        pace.took(seconds)
    now = 49.0
    assert pace.room()
    now = 51.0
    assert not pace.room(), "the longest of three took 50 s"
    pace.took(1.0)
    pace.took(1.0)
    assert pace.room()


def test_time_is_kept_for_verification_but_half_of_it_is_the_searchs() -> None:
    assert FirstModel(30.0, 20.0).left_of(240.0, 2.0) == 240.0 - 20.0 - 4.0
    assert FirstModel(300.0, 200.0).left_of(240.0, 2.0) == 120.0
