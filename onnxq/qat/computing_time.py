"""Time that computing takes, whatever else the machine does meanwhile, and the clock that ends it all the same."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A moment: seconds of computing, and on the clock."""

    computed: float
    passed: float


class Allowance:
    """Seconds of computing that the thread which opened it may still do.

    What counts is the processor time of that thread, which takes part in all that is computed on several: on an idle
    machine that is the time on the clock, and on a loaded one not less is learned, only later. Where somebody was
    promised an end on the clock, that ends it too.

    Attributes:
        until: `time.monotonic` at which it is over in any case; infinity where nothing was promised.
    """

    def __init__(self, seconds: float = math.inf, *, by_clock: bool = False, until: float = math.inf) -> None:
        """Begin.

        Args:
            seconds: how many.
            by_clock: count the time on the clock, where another device computes.
            until: `time.monotonic` at which it is over in any case.
        """
        self._by_clock, self._now = by_clock, time.monotonic if by_clock else time.thread_time
        self._end, self.until = self._now() + seconds, until

    @property
    def left(self) -> float:
        """Seconds that are left; negative where it took more."""
        return min(self._end - self._now(), self.on_the_clock)

    @property
    def on_the_clock(self) -> float:
        """Seconds on the clock that are left; infinite where nothing was promised."""
        return self.until - time.monotonic() if self.until < math.inf else math.inf

    @property
    def over(self) -> bool:
        """Whether none are left."""
        return self.left <= 0.0

    @property
    def hurried(self) -> bool:
        """Whether it is the clock that ends it: another program took what computing would have had."""
        return self.on_the_clock < self._end - self._now()

    def mark(self) -> Mark:
        """This moment."""
        return Mark(self._now(), time.monotonic() if self.until < math.inf else 0.0)

    def computed_since(self, mark: Mark) -> float:
        """Seconds of computing."""
        return self._now() - mark.computed

    def repeats(self, mark: Mark, times: int, share: float = 1.0) -> float:
        """How often what was done ``times`` since the mark can be done again in a share of what is left."""
        found = max(self._end - self._now(), 0.0) / max(self.computed_since(mark), 1e-9)
        if self.until < math.inf:
            found = min(found, max(self.on_the_clock, 0.0) / max(time.monotonic() - mark.passed, 1e-9))
        return share * times * found

    def spend(self, seconds: float) -> None:
        """Count time that an earlier run has taken."""
        self._end -= seconds

    def keeping(self, seconds: float) -> Allowance:
        """What is left of this one, less some seconds for what comes afterwards."""
        return Allowance(self._end - self._now() - seconds, by_clock=self._by_clock, until=self.until - seconds)

    def share(self, part: float) -> Allowance:
        """A share of what is left."""
        until = time.monotonic() + part * self.on_the_clock if self.until < math.inf else math.inf
        return Allowance((self._end - self._now()) * part, by_clock=self._by_clock, until=until)
