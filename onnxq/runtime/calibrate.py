"""The augmentation pass: values become outputs, samples stream through, each batch is folded in and dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.core.processors import free_processors
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader
from onnxq.errors import CalibrationError, ModelError
from onnxq.graph.files import io
from onnxq.graph.reading.signs import floors
from onnxq.graph.views.outputs import Augmented, Model, add_channel_means, add_channel_peaks, with_outputs
from onnxq.runtime.layout import unordered_session
from onnxq.runtime.padding import Masks
from onnxq.runtime.session import CPU, Session, provider_named, providers_from, session_of
from onnxq.runtime.streams.gathering import Gathering, Taken
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

Progress = Callable[[int, "int | None"], None]
"""Called with the samples done and their number (None where that is not known)."""

_MOST_AT_ONCE = 8
"""Samples beyond this at once would wait for each other in Python, where they are folded in."""


@dataclass(frozen=True)
class Run:
    """How the samples are run.

    Attributes:
        progress: called after each sample.
        threads: threads to compute with, each on a sample of its own as far as there are samples and memory; None takes
            the processors that are free to this process.
        memory: bytes that the user grants; samples at once take a quarter of them, or are two.
        provider: execution provider to run on.
        start: statistics of the first ``start.samples`` feeds, of an interrupted run: those feeds are skipped and the
            object is continued in place.
        checkpoint: called with the statistics so far after every ``checkpoint_every`` samples.
        checkpoint_every: samples between checkpoints.
        warn: called with a line for each value that has no statistics, and why.
        first: number of the first feed in the whole data, for messages.
    """

    progress: Progress | None = None
    threads: int | None = None
    memory: float = 2.0 * 2**30
    provider: str = CPU
    start: Statistics | None = None
    checkpoint: Callable[[Statistics], None] | None = None
    checkpoint_every: int = 32
    warn: Callable[[str], None] | None = None
    first: int = 0

    def note(self, line: str) -> None:
        """Warn, if anyone listens."""
        if self.warn is not None:
            self.warn(line)


_PLAINLY = Run()


def calibrate(
    model: Model,
    values: Iterable[str],
    reader: Iterable[Feed],
    run: Run = _PLAINLY,
    *,
    image_means: Iterable[str] = (),
    row_means: Iterable[str] = (),
    moments: Iterable[str] = (),
    peaks: Iterable[str] = (),
) -> Statistics:
    """Run samples through a model and gather statistics of its values, in memory that does not depend on their number.

    Args:
        model: the prepared model; unchanged.
        values: names of the float values wanted, of the main graph, its inputs or subgraphs. A value of a body that no
            sample runs has a statistic of nothing.
        reader: feeds, in a fixed order; batch size and dynamic axes may change from one to the next.
        run: threads, provider, progress, where to go on.
        image_means: values of (N, C, spatial …) whose channel means are wanted too.
        row_means: values of (N, C) whose channel means are wanted too; others of these are left out.
        moments: values of (…, C) whose second moments are wanted. Positions that the feed's attention mask calls
            padding are left out (`onnxq.runtime.padding`).
        peaks: values of (…, C) whose channel magnitudes are wanted, without padding likewise.

    Returns:
        Statistics that carry the number of feeds, the hashes of model and data and, of the values that a Conv writes,
        the largest magnitude of each channel. They see all elements of a value but those at padding tokens
        (`onnxq.runtime.padding`), and not always in its own order (`onnxq.runtime.layout`).

    Raises:
        CalibrationError: a sample does not fit or fails, there is none, the provider is not there, or ``start`` is
            of another model or other data.
        ModelError: the runtime cannot load the model.
    """
    provider = provider_named(run.provider)
    statistics = run.start if run.start is not None else Statistics()
    model_hash = io.model_hash(model)
    if run.start is not None and statistics.model_hash != model_hash:
        raise CalibrationError("saved statistics: they are of another model; calibrate this one from the beginning")
    statistics.model_hash = model_hash
    ranges, moments, peaks = dict.fromkeys(values), dict.fromkeys(moments), dict.fromkeys(peaks)
    augmented = _augmented(model, [*ranges, *moments, *peaks], run)
    for name in augmented.missing:
        run.note(f"value '{name}': unknown, or inside a subgraph that does not hand it out, so it has no statistics")
    pooled = add_channel_means(augmented, image_means)
    loudest = add_channel_peaks(augmented, [name for name in ranges if name not in moments and name not in peaks])
    masks = Masks.of(model)
    ordered = masks.fixed or moments or peaks  # where the tokens lie has to be known, or which channel is which

    def opened(threads: int) -> Session:
        if ordered:
            return session_of(augmented.model, threads=threads, providers=providers_from(provider))
        return unordered_session(augmented.model, threads=threads, provider=provider)

    threads = run.threads or free_processors()
    at_once = _samples_at_once(threads, _length(reader)) if provider == CPU else 1
    session = opened(threads // at_once)
    fetch, from_feed = _wanted(augmented, session, run.note)
    taken = Taken(
        fetch,
        from_feed,
        pooled,
        loudest,
        frozenset(ranges),
        frozenset(row_means),
        frozenset(moments),
        frozenset(peaks),
        augmented.inner,
        floors(model),
    )
    for name in augmented.inner:
        if name not in statistics:
            statistics.put(name, ValueStatistic())
    _stream(Gathering(session, opened, threads, at_once, taken, masks, statistics), reader, run)
    return statistics


def _samples_at_once(threads: int, samples: int | None) -> int:
    """How many samples to run at once: one on each thread costs less than all threads on one."""
    return max(min(threads, _MOST_AT_ONCE, threads if samples is None else samples), 1)


def _stream(gathering: Gathering, reader: Iterable[Feed], run: Run) -> None:
    """Run the feeds that the statistics have not seen yet, and fold what comes out in.

    Statistics are free of order, so it does not matter which of the samples that run at once is folded in first.
    """
    statistics = gathering.statistics
    total, done = _length(reader), statistics.samples
    digest = gathering.digest
    index = -1
    waiting: deque[tuple[int, Future[None]]] = deque()

    def settle(most: int) -> None:
        """Wait until at most so many samples are on their way; the first that failed is the one that is named."""
        while len(waiting) > most:
            number, folding = waiting.popleft()
            folding.result()
            if run.progress is not None:
                run.progress(number + 1, total)

    with ThreadPoolExecutor(gathering.at_once) as pool:  # more threads would only have more memory of their own
        for index, feed in enumerate(reader):
            if index >= done:
                settle(gathering.at_once + 1 if gathering.at_once > 1 else 1)  # one is ready where another ends
                waiting.append((index, gathering.begin(feed, run.first + index, pool, run.memory)))
                if run.checkpoint is not None and (index + 1) % run.checkpoint_every == 0:
                    settle(0)
                    statistics.samples, statistics.data_hash = index + 1, digest.hexdigest()
                    run.checkpoint(statistics)
            else:
                digest.update(feed)
                if index + 1 == done and digest.hexdigest() != statistics.data_hash:
                    raise CalibrationError(
                        f"saved statistics: they are of other data (its first {done} samples differ); "
                        "calibrate from the beginning"
                    )
                if run.progress is not None:
                    run.progress(index + 1, total)
        settle(0)
    if index < 0:
        raise CalibrationError("calibration data: there is not one sample; pass at least one feed")
    if index + 1 < done:
        raise CalibrationError(f"saved statistics: they are of {done} samples, the data has only {index + 1}")
    statistics.samples, statistics.data_hash = index + 1, digest.hexdigest()


def _augmented(model: Model, values: list[str], run: Run) -> Augmented:
    """The model with further outputs; without values of subgraphs where the runtime does not take it with them."""
    augmented = with_outputs(model, values)
    if augmented.inner:
        try:
            session_of(augmented.model, threads=run.threads, optimize=False, packed=False)
        except ModelError as error:
            run.note(f"values inside subgraphs have no statistics, since the runtime does not hand them out: {error}")
            return with_outputs(model, [name for name in values if name not in augmented.inner])
    return augmented


def _length(reader: Iterable[Feed]) -> int | None:
    if isinstance(reader, Reader):
        return reader.count
    return len(reader) if isinstance(reader, Sized) else None


def _is_float(dtype: np.dtype[Any] | None) -> bool:
    return dtype is not None and (dtype.kind == "f" or dtype.name == "bfloat16")


def _wanted(augmented: Augmented, session: Session, note: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """The float values to fetch, and those to take from the feed."""
    dtypes = {**session.output_dtypes, **{spec.name: spec.dtype for spec in session.input_specs}}
    for name in (*augmented.outputs, *augmented.inputs):
        if not _is_float(dtypes.get(name)):
            note(f"value '{name}': holds {dtypes.get(name) or 'no tensor'}, not real numbers, so it has no statistics")
    fetch = [name for name in augmented.outputs if _is_float(dtypes.get(name))]
    return fetch, [name for name in augmented.inputs if _is_float(dtypes.get(name))]
