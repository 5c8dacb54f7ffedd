"""Latency in alternation, error against the float model, time of plain inference. One thread everywhere."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.feeds import Feed

WARM_UP = 3
MIN_ROUNDS = 15
MAX_ROUNDS = 2000


@dataclass(frozen=True)
class Latency:
    """Of one model in an alternation.

    Attributes:
        median_ms: of its own runs.
        ratio: time of the reference over time of this model, the median over pairs from the same round.
        rounds: how many runs count.
    """

    median_ms: float
    ratio: float
    rounds: int


@dataclass(frozen=True)
class Error:
    """How far a model is from the float model on the same samples.

    Attributes:
        sqnr_db: of the worst float output, over all samples; ``inf`` when equal, NaN when not finite.
        top1_agreement: of the first output's last axis, or None where it has fewer than two entries.
    """

    sqnr_db: float
    top1_agreement: float | None


def open_session(model: Path) -> ort.InferenceSession:
    """A session with one thread, all optimizations, errors only in the log."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def alternate(models: Mapping[str, Path], feeds: Sequence[Feed], seconds: float) -> dict[str, Latency]:
    """Time models against each other; the first one is the reference.

    Each round runs every model once on the same feed, in an order of its own: one that always ran behind a large model
    would find the caches emptied. Rounds in which another process took the processor away (more wall time than
    processor time) are left out, as long as enough remain.

    Args:
        models: files by name; all must load and run.
        feeds: used in turn.
        seconds: about how long to measure; at least 15 rounds are done.
    """
    sessions = {name: open_session(path) for name, path in models.items()}
    names = list(sessions)
    for _ in range(WARM_UP):
        for session in sessions.values():
            session.run(None, feeds[0])
    times: dict[str, list[float]] = {name: [] for name in names}
    is_calm: dict[str, list[bool]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    end = time.perf_counter() + seconds
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        feed = feeds[number % len(feeds)]
        for name in order.permutation(names):
            busy, start = time.thread_time(), time.perf_counter()
            sessions[name].run(None, feed)
            taken = time.perf_counter() - start
            busy = time.thread_time() - busy
            times[name].append(taken)
            is_calm[name].append(taken <= 1.1 * busy + 2e-6)
    reference = names[0]
    return {name: _latency(times[reference], times[name], is_calm[reference], is_calm[name]) for name in names}


def _latency(reference: list[float], taken: list[float], reference_calm: list[bool], calm: list[bool]) -> Latency:
    """From the pairs in which both runs had the processor to themselves; from all where those are too few."""
    pairs = list(zip(reference, taken, strict=True))
    chosen = [pair for pair, *both in zip(pairs, reference_calm, calm, strict=True) if all(both)]
    if len(chosen) < MIN_ROUNDS:
        chosen = pairs
    return Latency(
        statistics.median(own for _, own in chosen) * 1000,
        statistics.median(other / own for other, own in chosen),
        len(chosen),
    )


def compare(float_model: Path, other: Path, feeds: Iterable[Feed]) -> Error:
    """Error of ``other`` against ``float_model``; energies are summed over samples in float64."""
    sessions = open_session(float_model), open_session(other)
    signal: dict[int, float] = {}
    noise: dict[int, float] = {}
    same = seen = 0
    for feed in feeds:
        expected, actual = (session.run(None, feed) for session in sessions)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True)):
            if not np.issubdtype(a.dtype, np.floating):
                continue
            difference = b.astype(np.float64) - a
            signal[i] = signal.get(i, 0.0) + float(np.square(a, dtype=np.float64).sum())
            noise[i] = noise.get(i, 0.0) + float(np.square(difference).sum())
        if expected[0].ndim and expected[0].shape[-1] > 1:
            same += int((expected[0].argmax(-1) == actual[0].argmax(-1)).sum())
            seen += expected[0].size // expected[0].shape[-1]
    ratios = [decibels(signal[i], noise[i]) for i in signal if signal[i] > 0]
    is_finite = all(math.isfinite(value) for value in noise.values())
    return Error(min(ratios) if ratios and is_finite else math.nan, same / seen if seen else None)


def decibels(signal: float, noise: float) -> float:
    """10 log10 of a ratio of energies."""
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def plain_inference_seconds(model: Path, feeds: Sequence[Feed]) -> float:
    """Time to run every feed once, after a warm-up; loading the model is not counted."""
    session = open_session(model)
    for _ in range(WARM_UP):
        session.run(None, feeds[0])
    start = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return time.perf_counter() - start
