"""After preparing: the outputs of the prepared float model are those of the user's, else the step at fault is left out.

Float noise is told from a changed meaning by what the runtime's own optimizations change in the user's model.
"""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.error_measures import sqnr_db
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.prepare import STEPS
from onnxq.graph.types import Model
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Prepared, prepare_again, reload
from onnxq.runtime.session import Session, session_of
from onnxq.runtime.synthetic import runnable_feed

EQUAL_DB = 60.0
"""From here on two float32 results are one: a thousandth of the signal's amplitude."""

HALF_DB = 30.0
"""From here on a float16 or bfloat16 result and that of float32 are one; the float32 one is the more exact."""

_NOISIER_DB = 10.0
"""By how much a result may be farther off than what the runtime's optimizations themselves change."""


def confirm(prepared: Prepared, feed: Feed | None, clock: Clock, threads: int | None = None) -> None:
    """Compare the prepared model with the user's on one sample; take back what changed the outputs.

    Args:
        prepared: changed in place where a step of preparing has to be left out, with a note for the user.
        feed: a sample; None makes one up, and where none runs nothing is compared.
        clock: takes the time.
        threads: threads an operator may use.

    Raises:
        ModelError: no step of preparing that could be left out is at fault.
    """
    session, prepared.session = prepared.session, None
    if session is None:
        return
    with clock.step("prepare"):
        try:
            feed = runnable_feed(session) if feed is None else feed
            expected = session.run(feed)
        except ModelError:
            return  # whoever runs the user's model next says so
        reference = _Reference(session, prepared, feed, expected, threads)
        fault = reference.fault(prepared.model)
        if fault:
            _leave_out(prepared, reference, fault)


class _Reference:
    """What the user's model gives for one sample, and how much of that is noise."""

    def __init__(
        self, session: Session, prepared: Prepared, feed: Feed, expected: list[object], threads: int | None
    ) -> None:
        self._session, self._prepared, self._threads = session, prepared, threads
        self._feed, self._expected = feed, expected
        self._noise: list[float] | None = None

    def fault(self, model: Model) -> str:
        """Why a model is not equivalent; empty where it is."""
        try:
            found = session_of(model, optimize=False, packed=False, threads=self._threads).run(
                self._feed, self._session.output_names
            )
        except ModelError as error:
            return f"it cannot be run then ({error})"
        widened = self._prepared.changes["widen"] > 0
        likeness = _likeness_of_widened if widened else _likeness
        apart = [likeness(*pair) for pair in zip(self._expected, found, strict=True)]
        equal = HALF_DB if widened else EQUAL_DB
        if all(figure >= equal for figure in apart):
            return ""
        for name, figure, noise in zip(self._session.output_names, apart, self._noise_of_the_runtime(), strict=True):
            if figure < equal and figure < noise - _NOISIER_DB:
                shown = f"{figure:.1f} dB SQNR" if math.isfinite(figure) else "nothing of it is left"
                return f"output '{name}' would change ({shown})"
        return ""

    def _noise_of_the_runtime(self) -> list[float]:
        """By output, the likeness of two runs of the user's model: the same again, and optimized."""
        if self._noise is None:
            again = [_likeness(*pair) for pair in zip(self._expected, self._session.run(self._feed), strict=True)]
            optimized = again
            try:
                results = session_of(reload(self._prepared), threads=self._threads).run(
                    self._feed, self._session.output_names
                )
                optimized = [_likeness(*pair) for pair in zip(self._expected, results, strict=True)]
            except ModelError:
                pass  # the runtime's optimizations do not take the model: there is nothing to learn from them
            self._noise = [min(pair) for pair in zip(again, optimized, strict=True)]
        return self._noise


def _leave_out(prepared: Prepared, reference: _Reference, fault: str) -> None:
    done = [step for step in STEPS if prepared.changes[step]]
    tries = [(step,) for step in done] + ([tuple(done)] if len(done) > 1 else [])
    for steps in tries:
        prepare_again(prepared, steps)
        if not reference.fault(prepared.model):
            for step in steps:
                prepared.notes.append(f"{STEPS[step]} was left out: {fault}")
            return
    raise ModelError(f"{prepared.label}: cleaning the float model up changes what it computes: {fault}")


def _likeness_of_widened(expected: object, actual: object) -> float:
    """The same where float16 may have overflowed, or have decided a tie otherwise: neither counts."""
    left, right = np.asarray(expected), np.asarray(actual)
    if isinstance(expected, list) or left.dtype.kind not in "fV" or left.shape != right.shape:
        return _likeness(expected, actual) if left.dtype.kind in "fV" else math.inf
    finite = np.isfinite(left.astype(np.float64))
    return _likeness(left[finite], right[finite])


def _likeness(expected: object, actual: object) -> float:
    """How much of one output is in another: SQNR in dB of numbers, +inf for what is equal, −inf for anything else."""
    if isinstance(expected, list) or isinstance(actual, list):  # sequences
        if not isinstance(expected, list) or not isinstance(actual, list) or len(expected) != len(actual):
            return -math.inf
        return min((_likeness(*pair) for pair in zip(expected, actual, strict=True)), default=math.inf)
    left, right = np.asarray(expected), np.asarray(actual)
    if left.shape != right.shape or left.dtype != right.dtype:
        return -math.inf
    if left.dtype.kind in "biufV" and left.size:
        return sqnr_db(left.astype(np.float64), right.astype(np.float64))
    return math.inf if np.array_equal(left, right) else -math.inf
