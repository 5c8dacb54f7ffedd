"""Latency of models side by side: in alternation, by medians, with ratios of pairs."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import VerificationError
from onnxq.graph.files import io
from onnxq.runtime.session import Session, open_session
from onnxq.verify.memory import peak_memory

_SHORTEST = 1e-3
"""Seconds that one timing lasts at least; a faster model is run several times in it."""

_SLOW = 0.02
"""Seconds above which two runs are warm-up enough."""

_MOST_RUNS = 1000
_FEWEST_ROUNDS = 5
_FEEDS = 4


@dataclass(frozen=True)
class Timing:
    """Latency of one model.

    Attributes:
        name: as given.
        median_ms: median time of one run, in ms.
        p10: 10th percentile, in ms.
        p90: 90th percentile, in ms.
        runs: runs that were timed.
        ratio: how many times faster than the first model it is: the median over rounds of the first model's time
            divided by this one's, both of the same round and feed.
        size_bytes: of the model's contents, or of its file with its external data.
        steady_ratio: as ratio, from the fastest tenth of the runs of each feed, which suffer least from what else the
            machine does; None where it was not computed.
        peak_memory_bytes: memory that a process of its own needs to load and run it once, above what the runtime
            needs anyway; None where it was not asked for or cannot be measured.
        phases: of a language model's workload (`onnxq.verify.language.workload`): ``median_ms`` and ``ratio`` of each
            kind of pass, by its name; the other figures are then of all passes together.
    """

    name: str
    median_ms: float
    p10: float
    p90: float
    runs: int
    ratio: float
    size_bytes: int
    peak_memory_bytes: int | None = None
    steady_ratio: float | None = None
    phases: dict[str, dict[str, float]] | None = None

    @property
    def round_ms(self) -> float:
        """Time of one run of each kind, in ms."""
        return self.median_ms if self.phases is None else sum(phase["median_ms"] for phase in self.phases.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values."""
        return asdict(self)


def benchmark(
    models: Mapping[str, bytes | Path | Session],
    feeds: Iterable[Feed],
    *,
    seconds: float = 2.0,
    threads: int | None = 1,
    memory: bool = False,
) -> list[Timing]:
    """Time models in alternation (A B A B …), so that whatever else the machine does hits all of them alike.

    Args:
        models: contents of model files, their paths, or sessions that are open, by name; ratios are to the first.
        feeds: inputs; the first four are used in turn, the same for all models in a round.
        seconds: time to spend on each model, beyond loading and warming up; at least five rounds are run.
        threads: threads an operator may use; None lets the runtime choose.
        memory: measure peak memory too, in a process for each model.

    Returns:
        One `Timing` for each model, in their order.

    Raises:
        ModelError: a model cannot be loaded or run.
        VerificationError: there is no feed or no model.
    """
    chosen = list(islice(feeds, _FEEDS))
    if not chosen or not models:
        raise VerificationError("benchmark: there is no feed or no model; pass at least one of each")
    sessions = {
        name: model if isinstance(model, Session) else open_session(model, threads=threads, label=name, timed=True)
        for name, model in models.items()
    }
    repeats = {name: _warm_up(session, chosen) for name, session in sessions.items()}
    rounds = _rounds(sessions, chosen, repeats, seconds * len(models))
    del sessions
    times = {name: np.array([entry[name] for entry in rounds]) for name in models}
    first = times[next(iter(models))]
    steady = {name: _steady(taken, len(chosen)) for name, taken in times.items()}
    base = steady[next(iter(models))]
    return [
        Timing(
            name=name,
            median_ms=float(np.median(taken)) * 1e3,
            p10=float(np.percentile(taken, 10)) * 1e3,
            p90=float(np.percentile(taken, 90)) * 1e3,
            runs=len(taken) * repeats[name],
            ratio=float(np.median(first / taken)),
            size_bytes=_size(models[name]),
            peak_memory_bytes=_peak_memory(models[name], chosen[0], threads) if memory else None,
            steady_ratio=base / steady[name],
        )
        for name, taken in times.items()
    ]


def _steady(taken: Array, feeds: int) -> float:
    """Time of one run on each feed, by the fastest tenth of the runs."""
    return sum(float(np.percentile(taken[feed::feeds], 10)) for feed in range(min(feeds, len(taken))))


def _peak_memory(model: bytes | Path | Session, feed: Feed, threads: int | None) -> int | None:
    return None if isinstance(model, Session) else peak_memory(model, feed, threads)


def _size(model: bytes | Path | Session) -> int:
    return 0 if isinstance(model, Session) else io.size_of(model)


def _warm_up(session: Session, feeds: list[Feed]) -> int:
    """Run each feed, then find how many runs last long enough to be timed; slow models need neither."""
    session.run(feeds[0])
    taken = _time(session, feeds[0], 1)
    if taken > _SLOW:
        return 1
    for feed in feeds:
        session.run(feed)
    taken = min(taken, *(_time(session, feeds[0], 1) for _ in range(3)))
    return min(max(math.ceil(_SHORTEST / max(taken, 1e-7)), 1), _MOST_RUNS)


def _rounds(
    sessions: Mapping[str, Session], feeds: list[Feed], repeats: Mapping[str, int], seconds: float
) -> list[dict[str, float]]:
    """Seconds of one run, by model, for each round."""
    rounds: list[dict[str, float]] = []
    with _no_collector():
        end = time.perf_counter() + seconds
        while len(rounds) < _FEWEST_ROUNDS or time.perf_counter() < end:
            feed = feeds[len(rounds) % len(feeds)]
            rounds.append({name: _time(session, feed, repeats[name]) for name, session in sessions.items()})
    return rounds


def _time(session: Session, feed: Feed, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - started) / repeats


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the timings."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
