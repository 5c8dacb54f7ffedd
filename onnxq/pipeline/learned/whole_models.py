"""Which of several whole models is nearest to float: those that blocks learn from, and what learning came to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from onnxq.data.feeds import Feed
from onnxq.graph.types import Model
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.held_out import until_over
from onnxq.qat.computing_time import Allowance
from onnxq.runtime.session import session_of
from onnxq.verify.compare import Comparison, compare_all
from onnxq.verify.loss import share

FEEDS = 64
"""Samples that a block learns from, at most."""

HELD_OUT = 16
"""Samples that it is judged by, at most."""

_SECONDS = 20.0
"""Of computing, after which no further sample is begun where whole models are compared."""

_NOISIER_DB = 1.0
"""By which the SQNR of held-out samples is clearly another one: it moves by about that much with eight of them."""

_NO_LOSS = 1e-4
"""Losses that differ by less are equal: one decision in ten thousand."""


@dataclass(frozen=True)
class Measured:
    """A whole model beside float.

    Attributes:
        held_out: on samples that nothing learned from.
        every: on those and on the ones that blocks learn from.
    """

    held_out: Comparison
    every: Comparison


def measured(job: Job, models: Sequence[Model], until: float) -> list[Measured]:
    """Compare whole models with float, all on the same samples, by the measure of their outputs.

    Args:
        job: with samples.
        models: in QDQ.
        until: `time.monotonic` by which it should be done; a sample of each kind is run in any case.
    """
    assert job.data is not None
    half = until if until == math.inf else 0.5 * (until + time.monotonic())
    held_out = on_held_out(job, models, half)
    every = chain(islice(job.data.held_out, HELD_OUT), job.data.calibration.part(0, FEEDS))
    return [Measured(*pair) for pair in zip(held_out, _compared(job, models, every, until), strict=True)]


def on_held_out(job: Job, models: Sequence[Model], until: float) -> list[Comparison]:
    """The same on samples that nothing learned from alone."""
    assert job.data is not None
    return _compared(job, models, islice(job.data.held_out, HELD_OUT), until)


def _compared(job: Job, models: Sequence[Model], feeds: Iterable[Feed], until: float) -> list[Comparison]:
    sessions = [session_of(model, threads=job.threads) for model in models]
    reference = session_of(job.prepared.model, threads=job.threads)
    allowance = Allowance(_SECONDS, until=until)
    return compare_all(reference, sessions, until_over(feeds, lambda: allowance.over), facts=job.output_facts())


def why_worse(before: Measured, after: Measured) -> str:
    """Why a model that learned is not taken in place of the one that it started from; empty where it is.

    Few samples are held out, and what eight of them say of decisions is mostly chance, while the size of the noise is
    told by few. Where noise clearly fell, decisions are therefore counted on what the blocks learned from as well, and
    must not be clearly more; where it did not, what is taken must lose no more on held-out samples alone nor on all.
    """
    alone, all_of_them = (before.held_out, after.held_out), (before.every, after.every)
    if alone[0].sqnr_db is None or alone[1].sqnr_db is None:
        return ""
    gained = alone[1].sqnr_db - alone[0].sqnr_db
    if gained < -_NOISIER_DB:
        return (
            f"held-out samples have an SQNR of {alone[0].sqnr_db:.1f} dB without and {alone[1].sqnr_db:.1f} dB with it"
        )
    if gained <= _NOISIER_DB and _loses(*alone):
        return f"held-out samples lose {_losses(*alone)} what the blocks learned"
    if _loses(*all_of_them, 1.1 if gained > _NOISIER_DB else 1.0):
        return f"samples lose {_losses(*all_of_them)} what the blocks learned"
    return ""


def nearest(models: Sequence[Comparison]) -> list[int]:
    """Places of the models that may be nearest to float, by few samples; the later of equals first.

    The size of the noise decides, not decisions: eight texts found one model to lose 6 % and another one 10 %, and 250
    others 7 and 5 %; the SQNR was right both times. Models whose SQNR is not clearly another one are equals.
    """
    best = max((found.sqnr_db for found in models if found.sqnr_db is not None), default=None)
    return [
        place
        for place in reversed(range(len(models)))
        if best is None or (sqnr_db := models[place].sqnr_db) is None or sqnr_db >= best - _NOISIER_DB
    ]


def taken(figures: Sequence[Measured], starts: Sequence[int | None]) -> tuple[int, str]:
    """The model that is taken, and why it is none that learned; empty where it is one.

    Of several that learned from other starts, and are no worse than these, it is the one that is clearly nearest to
    float on samples that nothing learned from; where none is, the one that learned first.

    Args:
        figures: of the models.
        starts: place of the start that each learned from; None for the starts, which come first.
    """
    learned = [place for place, start in enumerate(starts) if start is not None]
    if not learned:
        return nearest([found.held_out for found in figures])[0], "no block came nearer to float"
    reasons = {place: why_worse(figures[starts[place] or 0], figures[place]) for place in learned}
    good = [place for place in learned if not reasons[place]]
    order = nearest([figures[place].held_out for place in reversed(good)])
    best = good[len(good) - 1 - order[0]] if order else starts[learned[0]] or 0
    reason = "" if good else reasons[learned[0]]
    for other in range(learned[0]):
        if other in (best, starts[best]) or not (worse := why_worse(figures[other], figures[best])):
            continue
        if not why_worse(figures[best], figures[other]):  # else samples do not tell
            best, reason = other, reason or worse
    return best, reason


def _loses(before: Comparison, after: Comparison, factor: float = 1.0) -> bool:
    return after.loss is not None and before.loss is not None and after.loss > factor * before.loss + _NO_LOSS


def _losses(before: Comparison, after: Comparison) -> str:
    return f"{share(before.loss or 0.0)} of decisions without and {share(after.loss or 0.0)} with"
