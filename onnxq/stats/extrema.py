"""Exact extrema and counters of everything a value held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxq.core.dtypes import Array


class Seen(NamedTuple):
    """What one array showed: extrema of its finite elements, and whether it held others.

    Without any finite element, ``low > high``.
    """

    low: float
    high: float
    finite: bool


@dataclass
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

    def update(self, flat: Array) -> Seen:
        """Fold in an array.

        Args:
            flat: floating point, any shape.

        Returns:
            Extrema of this array alone.
        """
        if flat.size == 0:
            return Seen(np.inf, -np.inf, True)
        self.count += flat.size
        # NaN survives both reductions and an infinity is one of the two results: no third pass looks for them
        low, high = float(flat.min()), float(flat.max())
        finite = -np.inf < low and high < np.inf
        if not finite:
            mask = np.isfinite(flat)
            nans = int(np.count_nonzero(np.isnan(flat)))
            self.nan_count += nans
            self.inf_count += flat.size - int(np.count_nonzero(mask)) - nans
            low = float(np.min(flat, where=mask, initial=np.inf))
            high = float(np.max(flat, where=mask, initial=-np.inf))
        self.low = min(self.low, low)
        self.high = max(self.high, high)
        return Seen(low, high, finite)

    def merge(self, other: Extrema) -> Extrema:
        """Extrema and counters of both."""
        return Extrema(
            min(self.low, other.low),
            max(self.high, other.high),
            self.count + other.count,
            self.nan_count + other.nan_count,
            self.inf_count + other.inf_count,
        )
