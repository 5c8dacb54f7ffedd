"""What candidates are compared on: the float model's outputs, remembered, and as many samples as it takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader
from onnxq.pipeline.job import Data, Job
from onnxq.runtime.session import Session
from onnxq.verify.compare import Comparison, Patience, compare_all
from onnxq.verify.loss import BUDGET, Judged
from onnxq.verify.reference import Reference

_SAMPLES = 64
"""Samples that candidates are compared on, at most."""

ENOUGH, _FAR = 8, 4.0
"""Samples after which a candidate that misses the budget by this factor is looked at no further."""

_MOST_BYTES = 2**27
"""Samples that are kept in memory, so that they are read once."""


class Judge:
    """Compares candidates of one job with its float model.

    Under the default budget a candidate is compared on held-out samples and then on those that made the ranges: how
    often a decision is close is a matter of the float model, and a choice among many candidates needs more of them than
    were held out. The noise is that of held-out samples wherever it is larger there. Limits of the user's are about
    samples that were held out, and about those alone.

    Attributes:
        reference: the float model, open.
    """

    def __init__(self, job: Job, session: Session, first: Feed, *, widely: bool) -> None:
        """Start with nothing compared.

        Args:
            job: has the samples.
            session: of the float model, open.
            first: a sample that it runs on; the only one where the job has none.
            widely: the default budget stands.
        """
        self.reference = Reference(session)
        self._facts = job.output_facts()
        self._first = first
        self._widely = widely and job.data is not None
        self._readers = [] if job.data is None else _readers(job.data, widely=widely)
        self._kept: list[Feed] | None = None

    def compare(self, sessions: Sequence[Session], seconds: float, *, briefly: bool = False) -> list[Comparison]:
        """Compare models with float, which runs once for all.

        Args:
            sessions: of the models, open.
            seconds: that the runs of each may take.
            briefly: on the first few samples only.

        Raises:
            OnnxqError: a model does not run, or the samples do not fit.
        """
        unseen = self._readers[0].count_feeds() if len(self._readers) > 1 else None
        patience = Patience(seconds, _hopeless if self._widely else None, unseen)
        return compare_all(
            self.reference,
            sessions,
            itertools.islice(self._feeds(), ENOUGH if briefly else None),
            labels=self._labels(),
            patience=[patience] * len(sessions),
            facts=self._facts,
        )

    @property
    def is_long(self) -> bool:
        """Whether there are more samples than those of a brief comparison."""
        return sum(reader.count_feeds() for reader in self._readers) > ENOUGH

    def _feeds(self) -> Iterable[Feed]:
        """The samples: the same objects each time where there is room for them."""
        if not self._readers:
            return [self._first]
        if self._kept is None:
            self._kept = list(_within(itertools.chain(*self._readers), _MOST_BYTES))
        known = len(self._kept)
        return itertools.chain(self._kept, self._further(known))

    def _further(self, known: int) -> Iterator[Feed]:
        """Those from a number on that there was no room for."""
        for reader in self._readers:
            count = reader.count_feeds()
            if known < count:
                yield from reader.part(known, count)
            known = max(known - count, 0)

    def _labels(self) -> Array | None:
        found = [labels for reader in self._readers if (labels := reader.labels) is not None]
        return np.concatenate(found) if found and len(found) == len(self._readers) else None


def _readers(data: Data, *, widely: bool) -> list[Reader]:
    held = data.held_out.count_feeds()
    more = min(_SAMPLES - held, data.calibration.count_feeds())
    if not widely or more <= 0 or data.every.count_feeds() < 2:
        return [data.held_out]
    return [data.held_out, data.calibration.part(0, more)]


def _within(feeds: Iterable[Feed], most_bytes: int) -> Iterator[Feed]:
    """Feeds as long as they fit."""
    for feed in feeds:
        most_bytes -= sum(array.nbytes for array in feed.values())
        if most_bytes < 0:
            return
        yield feed


def _hopeless(worst: Judged, samples: int) -> bool:
    """Whether further samples will not bring a loss inside the default budget: it is far, and not for want of them."""
    sure = worst.loss - 2 * worst.loss_error > BUDGET  # the estimate less one standard error
    return samples >= ENOUGH and worst.loss > _FAR * BUDGET and sure
