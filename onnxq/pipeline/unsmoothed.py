"""Whether smoothing that was searched pays end to end: on held-out samples the model must not be worse than without."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice

from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.types import Model
from onnxq.pipeline.job import Job, contents
from onnxq.runtime.session import open_session
from onnxq.verify.compare import compare_all

_FEEDS = 32
"""Held-out samples that the two are compared on, at most."""

_SECONDS = 10.0
"""After which no further sample is begun."""


def why_unsmoothed(smoothed: Model, plain: Model, job: Job) -> str | None:
    """A warning, if the model without smoothing has the smaller error on held-out samples.

    The search of the exponents sees one layer at a time. What scales do to values in between, which take them up on
    their way into the weights before, only shows in the whole model.

    Args:
        smoothed: quantized, with smoothing.
        plain: quantized, without.
        job: holds the float model and the samples.
    """
    data = job.data
    assert data is not None
    with job.clock.step("compare"), ExitStack() as stack:
        try:
            sessions = [open_session(contents(model, stack), threads=job.threads) for model in (smoothed, plain)]
            reference = open_session(job.prepared.original, threads=job.threads, label="float model")
            with_it, without = compare_all(reference, sessions, in_time(islice(data.held_out, _FEEDS), _SECONDS))
        except ModelError:
            return None  # whoever verifies the model says so
    if with_it.sqnr_db is None or without.sqnr_db is None or with_it.sqnr_db >= without.sqnr_db:
        return None
    return (
        f"--smooth: nothing was smoothed, since held-out samples have an SQNR of {without.sqnr_db:.1f} dB without and "
        f"{with_it.sqnr_db:.1f} dB with it; name an exponent to insist, such as --smooth 0.5"
    )


def in_time(feeds: Iterable[Feed], seconds: float) -> Iterator[Feed]:
    """Feeds until some seconds are over; one at least."""
    end = time.monotonic() + seconds
    for feed in feeds:
        yield feed
        if time.monotonic() > end:
            return
