"""Exact extrema and counters of everything a value held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array


@dataclass(slots=True)
class Extrema:
    """Extrema of the finite elements, and how many elements there were.

    Every element counts, none is sampled. `merge` is exact, associative and commutative.

    Attributes:
        low: smallest finite element; +inf before any was seen.
        high: largest finite element; −inf before any was seen.
        count: elements seen, non-finite ones included.
        nan_count: NaN among them.
        inf_count: infinities among them.
    """

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    nan_count: int = 0
    inf_count: int = 0

    @property
    def finite_count(self) -> int:
        """Finite elements seen."""
        return self.count - self.nan_count - self.inf_count

    @property
    def finite(self) -> bool:
        """Whether there was nothing else."""
        return not self.nan_count and not self.inf_count

    @classmethod
    def of(cls, flat: Array, low: float | None = None, high: float | None = None) -> Extrema:
        """Extrema of one array.

        Args:
            flat: floating point, of one axis.
            low: the smallest element, NaN aside, where it is known already.
            high: the largest element, or NaN where there is one, likewise.
        """
        if flat.size == 0:
            return cls()
        # NaN survives both reductions and an infinity is one of the two results: no third pass looks for them
        high = float(np.maximum.reduce(flat)) if high is None else high
        low = float(np.minimum.reduce(flat)) if low is None else low
        if -np.inf < low and high < np.inf:
            return cls(low, high, flat.size)
        mask = np.isfinite(flat)
        nans = int(np.count_nonzero(np.isnan(flat)))
        infinite = flat.size - int(np.count_nonzero(mask)) - nans
        low = float(np.min(flat, where=mask, initial=np.inf))
        high = float(np.max(flat, where=mask, initial=-np.inf))
        return cls(low, high, flat.size, nans, infinite)

    def include(self, other: Extrema) -> None:
        """Fold another array's in."""
        if other.low < self.low:
            self.low = other.low
        if other.high > self.high:
            self.high = other.high
        self.count += other.count
        self.nan_count += other.nan_count
        self.inf_count += other.inf_count

    def merge(self, other: Extrema) -> Extrema:
        """Extrema and counters of both."""
        return Extrema(
            min(self.low, other.low),
            max(self.high, other.high),
            self.count + other.count,
            self.nan_count + other.nan_count,
            self.inf_count + other.inf_count,
        )
