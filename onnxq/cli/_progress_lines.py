"""Progress where standard error is no terminal, as in the logs of a build: a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxq.cli._streams import say

SECONDS_BETWEEN_LINES = 30.0


class ProgressLines:
    """How far the work is, in words.

    Args:
        now: seconds of a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()
        self._step, self._since = "load", self._started
        self._done: int = 0
        self._total: int | None = None

    def update(self, step: str, done: int, total: int | None) -> None:
        """Note the step, how much of it is done, and how much there is (None where that is unknown)."""
        if step != self._step or done < self._done:
            self._step, self._since = step, self._now()
        self._done, self._total = done, total

    def line(self) -> str:
        """The step, what is done of it, the seconds since the start of all, and those that the step still takes.

        The seconds left are those of the parts that are done, for as many as there are left; there are none before
        the first one is done.
        """
        now = self._now()
        words = self._step
        if self._total is not None:
            words += f": {self._done} of {self._total}"
        elif self._done:
            words += f": {self._done}"
        words += f", {now - self._started:.0f} s"
        if self._total is not None and 0 < self._done < self._total:
            left = (now - self._since) * (self._total - self._done) / self._done
            words += f", about {left:.0f} s left"
        return words


@contextmanager
def progress_lines() -> Iterator[Callable[[str, int, int | None], None]]:
    """Write a line to standard error every 30 s, the first after as many; what is done sooner writes none.

    A thread writes them, so that a step that tells nothing for long does not look as if it hung. It sleeps between
    them: what a line costs is far less than what a measurement of latency takes its middle of.
    """
    lines, ended = ProgressLines(), threading.Event()

    def write() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            # a log that takes no more must not end the work, whose result does not go there
            with contextlib.suppress(OSError, ValueError):
                say(lines.line(), error=True)

    if sys.stderr is None:
        yield lines.update
        return
    thread = threading.Thread(target=write, name="onnxq-progress", daemon=True)
    thread.start()
    try:
        yield lines.update
    finally:
        ended.set()
        thread.join()
