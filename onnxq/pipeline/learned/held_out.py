"""Compare what one job has made in two ways, on samples that neither has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.types import Model
from onnxq.pipeline.job import Job, contents
from onnxq.runtime.session import open_session
from onnxq.verify.compare import Comparison, compare_all

_JUDGED_FEEDS = 32
"""Held-out samples that models are compared on, at most."""

_JUDGED_SECONDS = 10.0
"""After which no further sample is begun."""


def compared(models: Sequence[Model], job: Job) -> list[Comparison] | None:
    """How far quantized models are from the float model on held-out samples; None where one cannot be run.

    Args:
        models: quantized.
        job: holds the float model and the samples.
    """
    data = job.data
    assert data is not None
    with job.clock.step("compare"), ExitStack() as stack:
        try:
            sessions = [open_session(contents(model, stack), threads=job.threads) for model in models]
            reference = open_session(job.prepared.original, threads=job.threads, label="float model")
            feeds = in_time(islice(data.held_out, _JUDGED_FEEDS), _JUDGED_SECONDS)
            return compare_all(reference, sessions, feeds, facts=job.output_facts())
        except ModelError:
            return None  # whoever verifies the model says so


def in_time(feeds: Iterable[Feed], seconds: float) -> Iterator[Feed]:
    """Feeds until some seconds are over; one at least."""
    end = time.monotonic() + seconds
    yield from until_over(feeds, lambda: time.monotonic() > end)


def until_over(feeds: Iterable[Feed], over: Callable[[], bool]) -> Iterator[Feed]:
    """Feeds until the time is over; one at least."""
    for feed in feeds:
        yield feed
        if over():
            return
