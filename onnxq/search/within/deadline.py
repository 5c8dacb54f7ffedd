"""A clock that ends an attempt of a search which takes longer than it may."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from onnxq.pipeline.clock import Clock

Item = TypeVar("Item")

_BOUNDED = ("reconstruct",)
"""Steps that do less where there is less time, and are told when theirs ends."""


class LateError(Exception):
    """An attempt takes longer than it may."""


class Deadline(Clock):
    """A clock that breaks a step off once it is clear that it takes too long."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(None)
        self._inner = clock
        self.share(clock)
        self._end = time.monotonic() + seconds

    @property
    def ends(self) -> float:
        """`time.monotonic` by which all has to be done."""
        return self._end

    def report(self, name: str) -> Callable[[int, int | None], None]:
        """What a step calls as it goes on; it raises LateError once the step cannot end in time."""
        inner, started = self._inner.report("search"), time.monotonic()
        bounded = name in _BOUNDED

        def call(done: int, total: int | None) -> None:
            inner(done, total)
            now = time.monotonic()
            # What is done of a step tells how long all of it will take.
            expected = started + (now - started) * total / done if total and done and not bounded else now
            if max(now, expected) > self._end:
                raise LateError

        return call


def watched(items: Iterable[Item], clock: Clock, name: str) -> Iterator[Item]:
    """The items, with a report to the clock before each, which may raise LateError."""
    report = clock.report(name)
    for done, item in enumerate(items):
        report(done, None)
        yield item
