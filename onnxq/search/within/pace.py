"""How long the attempts of a search take, so that none is begun that cannot end in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from onnxq.pipeline.clock import Clock

_LATEST = 3
"""Attempts, the last ones, the longest of which tells how long the next one may take: other work comes and goes."""


@dataclass
class Pace:
    """The time of a search.

    Attributes:
        clock: seconds so far.
        budget: seconds that all of it may take.
        first: seconds that an attempt is expected to take before one was made.
    """

    clock: Callable[[], float]
    budget: float
    first: float = 0.0
    _taken: list[float] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        """An attempt of the common kind was made: building and comparing, without learning."""
        self._taken = [*self._taken, seconds][-_LATEST:]

    @property
    def expected(self) -> float:
        """Seconds that the next such attempt will take."""
        return max(self._taken, default=self.first)

    @property
    def left(self) -> float:
        """Seconds that are left; never below 0."""
        return max(self.budget - self.clock(), 0.0)

    def room(self) -> bool:
        """Whether one more attempt will end in time."""
        return self.left > 0.0 and self.expected <= self.left


@dataclass(frozen=True)
class FirstModel:
    """What the model that a search starts from has taken, which tells what others will.

    Attributes:
        seconds: all of it.
        attempt: the same without calibration, which is not done again: building, and comparing at both levels.
    """

    seconds: float
    attempt: float

    def left_of(self, budget: float, timed: float) -> float:
        """Seconds of a budget after which no attempt may run, so that its result can be verified in time.

        Args:
            budget: seconds for everything; half of it is the search's in any case.
            timed: seconds for which a model is timed beside the float one; 0 for none.
        """
        return max(budget - self.attempt - 2.0 * timed, 0.5 * budget)


class Stopwatch:
    """Takes the time of the first model."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._started = clock, time.monotonic()
        self._calibrated = clock.seconds.get("calibrate", 0.0)

    def first_model(self) -> FirstModel:
        """What was taken since the start."""
        seconds = time.monotonic() - self._started
        gathered = self._clock.seconds.get("calibrate", 0.0) - self._calibrated
        return FirstModel(seconds, max(seconds - gathered, 0.0))
