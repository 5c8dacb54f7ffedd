"""Calibration in shards that are run apart and merged: the bits of one run over all samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from onnxq.core.tasks import Tasks
from onnxq.data.feeds import Feed
from onnxq.errors import CalibrationError
from onnxq.graph.files import io
from onnxq.graph.views.outputs import Model
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.stats.statistics import Statistics

_FEEDS = 4
"""Samples of a shard: few enough that the last ones keep all machines busy."""


@dataclass(frozen=True)
class Gathered:
    """What is gathered of a run, by the names that `onnxq.runtime.calibrate.calibrate` has for it."""

    values: tuple[str, ...] = ()
    image_means: tuple[str, ...] = ()
    row_means: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    peaks: tuple[str, ...] = ()


def gather(tasks: Tasks | None, model: Model, gathered: Gathered, reader: Iterable[Feed], run: Run) -> Statistics:
    """Run samples through a model, as `onnxq.runtime.calibrate.calibrate` does, on whatever runs the tasks.

    Args:
        tasks: run the shards; None runs the samples here, one after the other, as does a model of more than 2 GB, which
            is not sent, and a run that goes on from saved statistics.
        model: the prepared model.
        gathered: what is wanted.
        reader: feeds.
        run: threads, provider and progress.

    Raises:
        CalibrationError: as of that function.
    """
    if tasks is None or run.start is not None or io.weights_bytes(model) > io.PROTOBUF_LIMIT:
        wanted = dict(vars(gathered))
        return calibrate(model, wanted.pop("values"), reader, run, **wanted)
    content = io.to_bytes(model)
    count = 0

    def shards() -> Iterator[tuple[int, list[Feed]]]:
        nonlocal count
        shard: list[Feed] = []
        for feed in reader:
            shard.append({name: array.copy() for name, array in feed.items()})  # a reader may use its arrays again
            count += 1
            if len(shard) == _FEEDS:
                yield count - _FEEDS, shard
                shard = []
        if shard:
            yield count - len(shard), shard

    joined: Statistics | None = None
    said: dict[str, None] = {}
    for part, notes in tasks.map(run_shard, shards(), (content, gathered, run.threads, run.provider)):
        joined = part if joined is None else joined.merge(part)
        said.update(dict.fromkeys(notes))
        if run.progress is not None:
            run.progress(joined.samples, None)
    if joined is None:
        raise CalibrationError("calibration data: there is not one sample; pass at least one feed")
    for line in said:
        run.note(line)
    joined.model_hash = io.model_hash(model)
    return joined


def run_shard(
    first: int, feeds: list[Feed], content: bytes, gathered: Gathered, threads: int | None, provider: str
) -> tuple[Statistics, list[str]]:
    """The statistics of some samples, and what was said about them.

    Raises:
        CalibrationError: as of `onnxq.runtime.calibrate.calibrate`; numbers of samples are those of the whole data.
    """
    notes: list[str] = []
    wanted: dict[str, Any] = dict(vars(gathered))
    values = wanted.pop("values")
    run = Run(threads=threads, provider=provider, warn=notes.append, first=first)
    return calibrate(io.load(content), values, feeds, run, **wanted), notes
