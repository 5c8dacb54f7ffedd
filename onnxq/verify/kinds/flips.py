"""Decisions that two models take, by how sure the first one was: how many change, and how many may be expected to."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array

_BINS_PER_OCTAVE = 4
_LOWEST, _HIGHEST = -12, 16
_BINS = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE
_NEAR = _BINS_PER_OCTAVE
"""Bins to either side whose noise is pooled with a bin's own: an octave."""


class Flips:
    """Counts of decisions in bins of their margin; memory does not depend on how many there are.

    A margin is a difference of two log-odds or log-probabilities: by how much the first model preferred what it chose.
    The second model decides otherwise where the same difference is negative.
    """

    def __init__(self) -> None:
        """Start with no decision."""
        self._count = np.zeros(_BINS, np.int64)
        self._flipped = np.zeros(_BINS, np.int64)
        self._noise = np.zeros(_BINS, np.float64)
        self._margins = np.zeros(_BINS, np.float64)

    def add(self, margins: Array, moved: Array) -> None:
        """Add decisions.

        Args:
            margins: (n,) of the first model, not negative.
            moved: (n,) the same differences in the second model; NaN counts as the other decision.
        """
        margins = np.abs(np.asarray(margins, np.float64)).ravel()
        moved = np.asarray(moved, np.float64).ravel()
        known = np.isfinite(margins)
        margins, moved = margins[known], moved[known]
        flipped = ~(moved >= 0)
        moved = np.where(np.isfinite(moved), moved, np.where(moved > 0, margins, -margins))
        with np.errstate(divide="ignore"):
            place = np.floor((np.log2(margins) - _LOWEST) * _BINS_PER_OCTAVE)
        bins = np.clip(place, 0, _BINS - 1).astype(np.int64)
        self._count += np.bincount(bins, minlength=_BINS)
        self._flipped += np.bincount(bins[flipped], minlength=_BINS)
        self._noise += np.bincount(bins, weights=(moved - margins) ** 2, minlength=_BINS)
        self._margins += np.bincount(bins, weights=margins, minlength=_BINS)

    @property
    def decisions(self) -> int:
        """How many were added."""
        return int(self._count.sum())

    @property
    def changed(self) -> int:
        """How many the second model takes otherwise."""
        return int(self._flipped.sum())

    def weighted(self, full_price: float) -> float:
        """Decisions that change, each at a price that grows with how sure the first model was.

        The price is (p − q) / (p + q) for probabilities p and q of the two best choices, tanh(margin / 2): what is lost
        on average if the first model's probabilities are right; from ``full_price`` on it is counted as 1.

        What is expected from the size of the noise is compared with what was seen. The expectation takes the second
        model's margins as Gaussian around the first one's, Φ(−margin / σ), with the σ found among decisions of about
        the same margin: it says more than a count where few decisions were seen. Where more of them change than that
        and chance explain (the count less its standard deviation), the count holds.
        """
        price = np.minimum(1.0, np.tanh(self._centers / 2) / full_price)
        seen = float(price @ self._flipped)
        spread = math.sqrt(float(price**2 @ self._flipped))
        return max(float(price @ self._expected()), seen - spread)

    def _expected(self) -> Array:
        """Changes expected in each bin."""
        pool = np.ones(2 * _NEAR + 1)
        count = np.convolve(self._count, pool, "same")
        noise = np.convolve(self._noise, pool, "same")
        deviation = np.sqrt(noise / np.maximum(count, 1))
        with np.errstate(over="ignore"):
            ratio = np.where(deviation > 0, self._centers / np.maximum(deviation, 1e-300), np.inf)
        chances = np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in ratio])
        return np.asarray(self._count * chances)

    @property
    def _centers(self) -> Array:
        """The mean margin in each bin."""
        return np.asarray(self._margins / np.maximum(self._count, 1))


def best_and_next(logs: Array) -> tuple[Array, Array]:
    """The index of the largest element of each row, and by how much it is larger than every other one."""
    rows = np.arange(len(logs))
    best = logs.argmax(axis=-1)
    return best, margin_of(logs, best, rows)


def margin_of(logs: Array, chosen: Array, rows: Array) -> Array:
    """By how much the chosen element of each row is larger than every other one; negative where one is larger."""
    own = logs[rows, chosen]
    others = logs.copy()
    others[rows, chosen] = -np.inf
    with np.errstate(invalid="ignore"):
        return np.asarray(own - others.max(axis=-1))


def log_probabilities(scores: Array, *, normalized: bool) -> Array:
    """Logarithms of the probabilities in each row, float64; given probabilities are bounded at 1e-7."""
    wide = scores.astype(np.float64)
    if normalized:
        return np.asarray(np.log(np.clip(wide, 1e-7, None)))
    with np.errstate(invalid="ignore", over="ignore"):
        wide -= wide.max(axis=-1, keepdims=True)
        return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def log_odds(probabilities: Array) -> Array:
    """Of probabilities bounded at 1e-6 to either side, float64."""
    bounded = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(bounded / (1 - bounded)))
