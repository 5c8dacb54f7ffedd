"""Samples through a model, several at once, each looked at on its own thread and folded into statistics in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.data.feeds import Feed, FeedHash
from onnxq.errors import CalibrationError, ModelError
from onnxq.graph.views.inner import arrays_of
from onnxq.runtime.padding import Masks, Padding
from onnxq.runtime.session import Session
from onnxq.stats.observation import observe
from onnxq.stats.statistics import Statistics

_SHARE = 0.25
"""Part of the memory that the user grants which the values of samples at once may take."""

_Folds = list[tuple[Callable[[str, Any], None], str, Any]]
"""Calls that fold what was seen of a sample into the statistics: what to call, a value's name, what was seen of it."""


@dataclass(frozen=True)
class Taken:
    """What to take from each run, and what of it.

    Attributes:
        fetch: outputs.
        from_feed: inputs.
        pooled: outputs that are channel means, by the value that they are of.
        loudest: outputs that are the largest magnitudes of channels, likewise.
        ranges: values of which extrema and histogram are wanted.
        rows: values of (N, C) whose channel means are wanted.
        moments: values whose second moments are wanted.
        peaks: values whose channel magnitudes are wanted.
        inner: by name of each value inside a subgraph, the output that hands it out.
        floors: what no element of a value can be below, by name, where the graph says so.
    """

    fetch: list[str]
    from_feed: list[str]
    pooled: dict[str, str]
    loudest: dict[str, str]
    ranges: frozenset[str]
    rows: frozenset[str]
    moments: frozenset[str]
    peaks: frozenset[str]
    inner: dict[str, str]
    floors: dict[str, float]

    @property
    def outputs(self) -> list[str]:
        """What the model is asked for."""
        return [*self.fetch, *self.pooled.values(), *self.loudest.values(), *self.inner.values()]


@dataclass
class Gathering:
    """Runs samples and folds what comes out into statistics.

    Attributes:
        session: each run uses ``threads // at_once`` threads.
        open: makes a session of so many threads.
        threads: of all samples together.
        at_once: samples that are run at the same time.
        taken: what to take from each.
        masks: where padding is found.
        statistics: what is folded into.
        digest: of the feeds that were.
    """

    session: Session
    open: Callable[[int], Session]
    threads: int
    at_once: int
    taken: Taken
    masks: Masks
    statistics: Statistics
    digest: FeedHash = field(default_factory=FeedHash)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _looking: threading.Semaphore = field(default_factory=threading.Semaphore)
    """one for each sample that is looked at: more threads at once wait for each other in Python rather than compute"""
    _slots: threading.Semaphore | None = None
    """one for each sample whose values may be in memory; None before the first sample was seen"""

    def begin(self, feed: Feed, index: int, pool: ThreadPoolExecutor, memory: float) -> Future[None]:
        """Run a sample; what is left to do when this returns is done by the pool.

        The first one runs alone: it shows how much memory each takes, and so how many may run at once.

        Args:
            feed: may be written to afterwards.
            index: of the sample, for messages.
            pool: of as many threads as samples run at once.
            memory: bytes that the user grants.

        Raises:
            CalibrationError: the sample does not fit or fails; also from the result.
        """
        if self._slots is not None and self.at_once > 1:
            own = {name: array.copy() for name, array in feed.items()}
            return pool.submit(self._sample, own, index)
        arrays = self._run(feed, index)
        size = sum(array.nbytes for given in arrays for array in arrays_of(given))
        given = {name: feed[name].copy() for name in self.taken.from_feed}
        number = self.digest.number(feed)
        folding = pool.submit(self._fold, given, arrays, self.masks.in_feed(feed), samples_in(feed), number)
        if self._slots is None:
            wait([folding])
            self._limit(size, memory)
        return folding

    def _limit(self, size: int, memory: float) -> None:
        """Run no more samples at once than there is memory for; two always, one in the runtime, one being folded in."""
        fitting = max(int(_SHARE * memory // max(size, 1)), 2)
        if fitting < self.at_once:
            self.at_once = fitting
            self.session = self.open(self.threads // fitting)
        self._slots = threading.Semaphore(self.at_once)
        self._looking = threading.Semaphore(max(self.at_once // 2, 1))

    def _sample(self, feed: Feed, index: int) -> None:
        assert self._slots is not None
        with self._slots:
            number = self.digest.number(feed)
            arrays = self._run(feed, index)
            with self._looking:
                self._fold(feed, arrays, self.masks.in_feed(feed), samples_in(feed), number)

    def _run(self, feed: Feed, index: int) -> list[Any]:
        outputs = self.taken.outputs
        try:
            return self.session.run(feed, outputs) if outputs else []
        except ModelError as error:
            raise CalibrationError(f"calibration sample {index}: {error}") from error

    def _fold(self, feed: Feed, arrays: list[Any], padding: Padding, samples: int, number: int) -> None:
        """Look at the values of a sample, beside other threads, and then fold what was seen in, one sample at a time.

        What passes over large arrays is in the first part, and numpy lets other threads run meanwhile.
        """
        seen = self._seen(feed, arrays, padding, samples)
        with self._turn:
            self.digest.add(number)
            for fold, name, what in seen:
                fold(name, what)
            masks = {*self.statistics.masks, *(name for name, _ in padding.arrays)}
            self.statistics.masks = tuple(sorted(masks))

    def _seen(self, feed: Feed, arrays: list[Any], padding: Padding, samples: int) -> _Folds:
        taken, statistics = self.taken, self.statistics
        folds: _Folds = []

        def look(name: str, array: Any) -> None:
            if array.dtype.kind != "f":
                array = array.astype(np.float32)  # a type that numpy computes in
            if name in taken.ranges:
                tokens = padding.tokens(name, array)
                # Without their padding the samples of a batch are no longer told apart.
                count = samples if tokens.shape == array.shape else 1
                folds.append((statistics.take, name, observe(tokens, count, array.shape, taken.floors.get(name))))
            if name in taken.rows and array.ndim == 2:
                folds.append((statistics.update_means, name, array))
            if name in taken.moments or name in taken.peaks:
                rows = padding.rows(name, array)
                if name in taken.moments:
                    folds.append((statistics.update_moments, name, rows))
                if name in taken.peaks:
                    folds.append((statistics.update_peaks, name, rows))

        for name in taken.from_feed:
            look(name, feed[name])
        arrays.reverse()  # each array is let go as soon as it was looked at
        for name in taken.fetch:
            look(name, arrays.pop())
        for fold, pooled in ((statistics.update_means, taken.pooled), (statistics.update_peaks, taken.loudest)):
            for name in pooled:
                rows = np.asarray(arrays.pop())
                rows = rows.astype(np.float32) if rows.dtype.kind != "f" else rows
                folds.append((fold, name, rows.reshape(rows.shape[:2])))
        for name in taken.inner:
            for array in arrays_of(arrays.pop()):
                look(name, array)
        return folds


def samples_in(feed: Feed) -> int:
    """How many samples a feed holds: the length of the first axis of its first input that has one."""
    return next((int(array.shape[0]) for array in feed.values() if array.ndim), 1)
