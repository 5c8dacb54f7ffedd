"""Decisions that two models take, by how sure the first one was: how many change, and how many may be expected to."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array

_BINS_PER_OCTAVE = 4
_LOWEST, _HIGHEST = -12, 16
_BINS = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE
_NEAR = _BINS_PER_OCTAVE
"""Bins to either side whose noise is pooled with a bin's own, at the least: an octave."""

_ENOUGH = 64
"""Decisions whose noise is pooled, where there are so many: their deviation is known to within a tenth. Models that are
picked among several would else be those in which the few decisions near the threshold happened to move little."""

_EDGES = 2.0 ** (_LOWEST + np.arange(1, _BINS + 1) / _BINS_PER_OCTAVE)
"""Upper ends of the bins; the first one begins at 0."""

_WIDTHS = np.diff(_EDGES, prepend=0.0)

_NEAREST = 4
"""Decisions nearest to their threshold, below which margins are taken as equally frequent: with four, the fewest that
tell a density to within half of it."""

_GROUPS = 64
"""Samples whose decisions are counted apart; further ones join them in turn."""


_SURE = 2.0
"""Standard errors by which samples that made no ranges have to have more noise than the others."""


class Flips:
    """Counts of decisions in bins of their margin; memory does not depend on how many there are.

    A margin is a difference of two log-odds or log-probabilities: by how much the first model preferred what it chose.
    The second model decides otherwise where the same difference is negative.
    """

    def __init__(self) -> None:
        """Start with no decision."""
        self._groups = np.zeros((_GROUPS, _BINS), np.int64)
        self._flipped = np.zeros(_BINS, np.int64)
        self._noise = np.zeros((_GROUPS, _BINS), np.float64)
        self._margins = np.zeros(_BINS, np.float64)
        self._bases = np.zeros(_GROUPS)
        self._unseen = 0
        self._samples = 0

    def add(self, margins: Array, moved: Array, base: float) -> None:
        """Add the decisions of one sample, which may depend on each other.

        Args:
            margins: (n,) of the first model, not negative.
            moved: (n,) the same differences in the second model; NaN counts as the other decision.
            base: what the changes of this sample are a share of, such as its decisions: samples differ in it.
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
        self._groups[self._samples % _GROUPS] += np.bincount(bins, minlength=_BINS)
        self._noise[self._samples % _GROUPS] += np.bincount(bins, weights=(moved - margins) ** 2, minlength=_BINS)
        self._bases[self._samples % _GROUPS] += base
        self._samples += 1
        self._flipped += np.bincount(bins[flipped], minlength=_BINS)
        self._margins += np.bincount(bins, weights=margins, minlength=_BINS)

    def others_follow(self) -> None:
        """Samples from here on made the ranges; their noise is not taken for smaller than that of those before."""
        self._unseen = min(self._samples, _GROUPS)

    @property
    def decisions(self) -> int:
        """How many were added."""
        return int(self._groups.sum())

    @property
    def changed(self) -> int:
        """How many the second model takes otherwise."""
        return int(self._flipped.sum())

    def weighted(self, full_price: float | None = None) -> float:
        """Decisions that change, each at a price: the upper end of what the samples leave open.

        A standard error is added to what is expected, so that few decisions have to be better than many. Where more of
        them change than that and chance explain (the count less its standard deviation), the count holds.

        Args:
            full_price: as for `estimate`.
        """
        return self.bound(full_price)[0]

    def bound(self, full_price: float | None = None) -> tuple[float, float]:
        """What `weighted` gives, and the standard error of it."""
        expected, error = self.estimate(full_price)
        price = self._prices(full_price)
        seen, spread = float(price @ self._flipped), math.sqrt(float(price**2 @ self._flipped))
        return max((expected + error, error), (seen - spread, spread))

    def estimate(self, full_price: float | None = None) -> tuple[float, float]:
        """Decisions that are expected to change, each at a price, and the standard error of that.

        The second model's margins are taken as Gaussian around the first one's, Φ(−margin / σ), with the σ found among
        decisions of about the same margin: that says more than a count where few decisions were seen. The few nearest
        to their threshold would decide by where they happen to lie: they are spread evenly over the margins up to the
        last of them, as the density of margins is even over a short enough way.

        Decisions of one sample depend on each other: the error is that of the sum over samples (Cochran 1977, section
        6.3), or of independent decisions if that is larger. Of the few nearest ones it is the upper end of a count
        (Gehrels 1986, equation 7).

        Args:
            full_price: None counts each decision as 1. Otherwise it costs (p − q) / (p + q) for probabilities p and q
                of the two best choices, tanh(margin / 2): what is lost on average if the first model's probabilities
                are right; from ``full_price`` on it is counted as 1.
        """
        count = self._groups.sum(axis=0)
        if not count.any():
            return 0.0, 0.0
        cost = self._prices(full_price) * self._chances(count)
        last = int(np.searchsorted(np.cumsum(count), min(_NEAREST, count.sum())))
        near = int(count[: last + 1].sum())
        within = near - 1 if near >= _NEAREST else near  # the last of them is where the way ends, whatever the density
        close = within * float(_WIDTHS[: last + 1] @ cost[: last + 1]) / float(_EDGES[last])
        parts = self._groups[: min(self._samples, _GROUPS), last + 1 :] @ cost[last + 1 :]
        bases = self._bases[: len(parts)]
        apart = parts - bases * (parts.sum() / max(bases.sum(), 1e-300))
        joint = float(apart @ apart) * len(parts) / max(len(parts) - 1, 1)
        alone = float(count[last + 1 :] @ cost[last + 1 :] ** 2)
        few = close * (1 + math.sqrt(near + 0.75)) / near
        return close + float(parts.sum()), math.sqrt(few**2 + max(alone, joint))

    def _prices(self, full_price: float | None) -> Array:
        if full_price is None:
            return np.ones(_BINS)
        return np.asarray(np.minimum(1.0, np.tanh(self._centers / 2) / full_price))

    def _chances(self, count: Array) -> Array:
        """The chance of a change in each bin."""
        power = self._pooled(count)
        deviation = np.sqrt(power * self._more_noise(power))
        with np.errstate(over="ignore"):
            ratio = np.where(deviation > 0, self._centers / np.maximum(deviation, 1e-300), np.inf)
        return np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in ratio])

    def _pooled(self, count: Array) -> Array:
        """Mean square of the noise by bin: of decisions an octave around it, or as far as there are enough."""
        held, noise = (np.r_[0, np.cumsum(each)] for each in (count, self._noise.sum(axis=0)))
        enough = min(_ENOUGH, int(held[-1]))
        places = np.arange(_BINS)
        reach = np.full(_BINS, _NEAR)
        while True:
            low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, _BINS)
            short = held[high] - held[low] < enough
            if not short.any():
                return np.asarray((noise[high] - noise[low]) / np.maximum(held[high] - held[low], 1))
            reach = reach + short

    def _more_noise(self, power: Array) -> float:
        """By what factor samples that made no ranges have more noise, at equal margins; 1 where that may be chance.

        Args:
            power: mean square of the noise of all samples, by bin.
        """
        if not self._unseen or self._samples <= self._unseen:
            return 1.0
        weights = np.divide(1.0, power, out=np.zeros(_BINS), where=power > 0)
        counts = self._groups[: self._samples] @ (power > 0)
        ratios = (self._noise[: self._samples] @ weights)[counts > 0] / counts[counts > 0]
        first = int(np.count_nonzero(counts[: self._unseen]))
        if not first or len(ratios) < 2:
            return 1.0
        apart = float(ratios.std(ddof=1)) / math.sqrt(first)
        more = float(ratios[:first] @ counts[counts > 0][:first]) / float(counts[: self._unseen].sum())
        return max(more - _SURE * apart, 1.0)

    @property
    def _centers(self) -> Array:
        """The mean margin in each bin, or its middle where no decision lies in it."""
        count = self._groups.sum(axis=0)
        return np.where(count > 0, self._margins / np.maximum(count, 1), _EDGES - _WIDTHS / 2)


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
