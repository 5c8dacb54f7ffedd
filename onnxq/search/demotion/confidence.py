"""How sure it has to be that a model is inside the budget which was picked among several."""

from __future__ import annotations

import math
from statistics import NormalDist

from onnxq.pipeline.candidate import Candidate
from onnxq.search.trials import Trials
from onnxq.verify.loss import BUDGET

_ONE = NormalDist().cdf(1.0)
"""How sure a loss is an upper end: it holds the estimate and one standard error."""

_AT_THE_EDGE = 2.0
"""What the estimate counts for of a model that was searched until it was inside."""

_UNKNOWN_EXCESS = 4.0
"""Factor of the noise that is to go where nothing tells more, as with a fall of accuracy."""

_USUAL = 4
"""Models that a search tries, about; before it begins, what is to be reached is taken for that."""


def errors_for(tries: int) -> float:
    """Standard errors that keep the best of so many as sure as one that was not picked (Šidák 1967)."""
    return NormalDist().inv_cdf(_ONE ** (1.0 / max(tries, 1)))


class Confidence:
    """Judges candidates of a search by the default budget; limits of the user's are held as they are."""

    def __init__(self, trials: Trials) -> None:
        """Start.

        Args:
            trials: the candidates; they say what limits hold.
        """
        self._trials = trials

    def upper_loss(self, trial: Candidate, tries: int) -> float:
        """What a trial loses at most, as surely as one loss is an upper end, if it is picked among so many.

        A search goes on until it is at the edge, and what is there is outside on other samples half of the time: the
        estimate itself has to be inside half of the budget, so that it counts twice.
        """
        error = 0.0 if trial.comparison is None else trial.comparison.loss_error
        loss = self._trials.loss(trial)
        return max(_AT_THE_EDGE * (loss - error), loss + (errors_for(tries) - 1.0) * error)

    def is_sure(self, trial: Candidate, tries: int) -> bool:
        """Whether a trial that is inside the limits would be so although it was picked among so many."""
        known = self.upper_loss(trial, tries)
        return not self._trials.by_budget or not math.isfinite(known) or known <= BUDGET

    def excess(self, trial: Candidate, tries: int = _USUAL) -> float:
        """By what factor the noise of a trial is too large for the limits; a guess where they do not say."""
        recipe, comparison = self._trials.job.recipe, trial.comparison
        known = self.upper_loss(trial, tries)
        if self._trials.by_budget and math.isfinite(known):
            return (known / BUDGET) ** 2  # what changes goes with the size of the noise
        sqnr = None if comparison is None else comparison.sqnr_db
        if recipe.min_sqnr is not None and sqnr is not None and math.isfinite(sqnr):
            return float(10 ** ((recipe.min_sqnr - sqnr) / 10))
        return _UNKNOWN_EXCESS
