"""Time that learning may take: of computing, and on the clock where an end was promised."""

from __future__ import annotations

import math

import pytest

from onnxq.qat.computing_time import Allowance


class Times:
    """A thread's processor time and the clock, as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed, self.clock = 0.0, 1000.0
        monkeypatch.setattr("time.thread_time", lambda: self.computed)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def work(self, computed: float, clock: float) -> None:
        self.computed, self.clock = self.computed + computed, self.clock + clock


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


def test_a_busy_machine_takes_longer_for_as_much(times: Times) -> None:
    allowance = Allowance(60.0)
    times.work(20.0, 3600.0)
    assert allowance.left == 40.0 and allowance.on_the_clock == math.inf and not allowance.over


def test_an_end_that_was_promised_comes_first(times: Times) -> None:
    allowance = Allowance(60.0, until=1100.0)
    times.work(20.0, 90.0)
    assert allowance.left == 10.0 and not allowance.over
    times.work(1.0, 10.0)
    assert allowance.over


def test_shares_and_what_is_kept_are_of_both(times: Times) -> None:
    allowance = Allowance(60.0, until=1200.0)
    assert (allowance.share(0.5).left, allowance.share(0.5).on_the_clock) == (30.0, 100.0)
    assert (allowance.keeping(10.0).left, allowance.keeping(10.0).on_the_clock) == (50.0, 190.0)
    assert Allowance(60.0).keeping(10.0).until == math.inf


@pytest.mark.parametrize(("until", "expected"), [(math.inf, 50.0), (1104.0, 10.0)])
def test_how_often_something_can_be_repeated_is_told_by_what_is_scarcer(
    times: Times, until: float, expected: float
) -> None:
    allowance = Allowance(54.0, until=until)
    mark = allowance.mark()
    times.work(4.0, 40.0)
    assert allowance.repeats(mark, 4) == expected * (1.0 if until == math.inf else 0.64)
    assert allowance.computed_since(mark) == 4.0


def test_what_an_earlier_run_took_is_of_computing_alone(times: Times) -> None:
    allowance = Allowance(60.0, until=1100.0)
    allowance.spend(50.0)
    assert allowance.left == 10.0 and allowance.on_the_clock == 100.0
