"""Time that computing takes, whatever else the machine does meanwhile."""

from __future__ import annotations

import math
import time


class Allowance:
    """Seconds of computing that the thread which opened it may still do.

    What counts is the processor time of that thread, which takes part in all that is computed on several: on an idle
    machine that is the time on the clock, and on a loaded one not less is learned, only later.
    """

    def __init__(self, seconds: float = math.inf, *, by_clock: bool = False) -> None:
        """Begin.

        Args:
            seconds: how many.
            by_clock: count the time on the clock, where another device computes.
        """
        self._by_clock, self._now = by_clock, time.monotonic if by_clock else time.thread_time
        self._end = self._now() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; negative where it took more."""
        return self._end - self._now()

    def spend(self, seconds: float) -> None:
        """Count time that an earlier run has taken."""
        self._end -= seconds

    @property
    def over(self) -> bool:
        """Whether none are left."""
        return self.left <= 0.0

    def keeping(self, seconds: float) -> Allowance:
        """What is left of this one, less some seconds for what comes afterwards."""
        return Allowance(self.left - seconds, by_clock=self._by_clock)

    def share(self, part: float) -> Allowance:
        """A share of what is left."""
        return Allowance(self.left * part, by_clock=self._by_clock)
