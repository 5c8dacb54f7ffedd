"""Latency of models side by side: in alternation, by medians, with ratios of pairs."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from onnxq.runtime.engines.engine import Engine
from onnxq.runtime.session import Session, open_session
from onnxq.verify.memory import peak_memory

_SHORTEST = 1e-3
"""Seconds that one timing lasts at least; a faster model is run several times in it."""

_SLOW = 0.02
"""Seconds above which two runs are warm-up enough."""

_MOST_RUNS = 1000
_FEWEST_ROUNDS = 5
_FEEDS = 4

_THIRD, _DRIFTS = 3, 1.15
"""Runs that a third has at least, and the drift that is said."""


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
        drift: how many times longer the last third of the runs took than the first third, by their medians: above 1
            where a device grows hot, or the machine busy; None where it was not computed.
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
    drift: float | None = None

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
    engine: Engine | None = None,
) -> list[Timing]:
    """Time models in alternation (A B A B …), so that whatever else the machine does hits all of them alike.

    Args:
        models: contents of model files, their paths, or sessions that are open, by name; ratios are to the first.
        feeds: inputs; the first four are used in turn, the same for all models in a round.
        seconds: time to spend on each model, beyond loading and warming up; at least five rounds are run.
        threads: threads an operator may use; None lets the runtime choose.
        memory: measure peak memory too, in a process for each model.
        engine: what runs the models; it has its own number of threads. None runs them in this process.

    Returns:
        One `Timing` for each model, in their order.

    Raises:
        ModelError: a model cannot be loaded or run.
        EngineError: of the engine.
        VerificationError: there is no feed or no model.
    """
    chosen = list(islice(feeds, _FEEDS))
    if not chosen or not models:
        raise VerificationError("benchmark: there is no feed or no model; pass at least one of each")
    if engine is not None:
        contents = {name: _content(model) for name, model in models.items()}
        taken = engine.time(list(contents.values()), chosen, seconds)
        peaks = {name: engine.memory(content, chosen[0]) if memory else None for name, content in contents.items()}
        measured = {name: np.array(ms) / 1e3 for name, ms in zip(contents, taken, strict=True)}
        return _timings(measured, len(chosen), {name: _size(model) for name, model in contents.items()}, peaks)
    sessions = {
        name: model if isinstance(model, Session) else open_session(model, threads=threads, label=name, timed=True)
        for name, model in models.items()
    }
    repeats = {name: _warm_up(session, chosen) for name, session in sessions.items()}
    rounds = _rounds(sessions, chosen, repeats, seconds * len(models))
    del sessions
    times = {name: np.array([entry[name] for entry in rounds]) for name in models}
    peaks = {name: _peak_memory(model, chosen[0], threads) if memory else None for name, model in models.items()}
    return _timings(times, len(chosen), {name: _size(model) for name, model in models.items()}, peaks, repeats)


def _timings(
    times: Mapping[str, Array],
    feeds: int,
    sizes: Mapping[str, int],
    peaks: Mapping[str, int | None],
    repeats: Mapping[str, int] | None = None,
) -> list[Timing]:
    """The figures of models from the seconds of single runs by round, feeds in turn."""
    first = next(iter(times.values()))
    steady = {name: _steady(taken, feeds) for name, taken in times.items()}
    base = next(iter(steady.values()))
    return [
        Timing(
            name=name,
            median_ms=float(np.median(taken)) * 1e3,
            p10=float(np.percentile(taken, 10)) * 1e3,
            p90=float(np.percentile(taken, 90)) * 1e3,
            runs=len(taken) * (1 if repeats is None else repeats[name]),
            ratio=float(np.median(first / taken)),
            size_bytes=sizes[name],
            peak_memory_bytes=peaks[name],
            steady_ratio=base / steady[name],
            drift=drift_of(taken),
        )
        for name, taken in times.items()
    ]


def drift_of(taken: Array) -> float | None:
    """The median of the last third of some times over that of the first third; None of fewer than 9.

    Args:
        taken: (runs,) times, in order.
    """
    third = len(taken) // 3
    return float(np.median(taken[-third:]) / np.median(taken[:third])) if third >= _THIRD else None


def drifting(timings: Sequence[Timing], celsius: Sequence[float | None] = ()) -> str:
    """What to say where all models, which took turns, became slower while they were timed; empty where they did not.

    Args:
        timings: of one alternation.
        celsius: temperature before and after, where it is known.
    """
    drifts = [timing.drift for timing in timings if timing.drift is not None]
    if not drifts or len(drifts) < len(timings) or min(drifts) < _DRIFTS:
        return ""
    known = [f"{degrees:.0f} °C" for degrees in celsius if degrees is not None]
    heat = f", from {known[0]} to {known[1]}" if len(known) > 1 else ""
    return (
        f"runs became {min(drifts):.2f}x slower while they were timed{heat}: the device throttles or is busy; ratios "
        "hold, since models took turns, milliseconds do not"
    )


def _steady(taken: Array, feeds: int) -> float:
    """Time of one run on each feed, by the fastest tenth of the runs."""
    return sum(float(np.percentile(taken[feed::feeds], 10)) for feed in range(min(feeds, len(taken))))


def _peak_memory(model: bytes | Path | Session, feed: Feed, threads: int | None) -> int | None:
    return None if isinstance(model, Session) else peak_memory(model, feed, threads)


def _content(model: bytes | Path | Session) -> bytes | Path:
    """What an engine elsewhere is given."""
    content = model.source if isinstance(model, Session) else model
    if content is None:
        raise VerificationError("benchmark: a session without a file cannot be timed on another engine")
    return content


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
