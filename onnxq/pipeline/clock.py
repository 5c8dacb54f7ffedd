"""How long each step takes, and how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, "int | None"], None]
"""Called with the step, what is done of it, and how much there is (None where that is not known)."""


class Clock:
    """Takes the time of each step and reports it to the caller's progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._inside: list[float] = []
        self.seconds: dict[str, float] = {}

    @property
    def ends(self) -> float:
        """`time.monotonic` by which all has to be done; infinity where nothing was promised."""
        return math.inf

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; several of one name add up, and the time of a step inside another counts for itself alone."""
        if self._progress is not None:
            self._progress(name, 0, None)
        with self.around(name):
            yield

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Put what the steps inside leave over to the account of ``name``, so that all of it is accounted for."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    def share(self, other: Clock) -> None:
        """Take time to another clock's account from now on, whose step this one runs in."""
        self.seconds, self._inside = other.seconds, other._inside

    def report(self, name: str) -> Callable[[int, int | None], None]:
        """What a step calls as it goes on."""

        def call(done: int, total: int | None) -> None:
            if self._progress is not None:
                self._progress(name, done, total)

        return call
