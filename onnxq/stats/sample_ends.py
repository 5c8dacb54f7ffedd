"""Means of the samples' own extrema, exact and order-free to merge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from onnxq.core.dtypes import Array

_STEP_BITS = 149
"""Sums are whole numbers of steps of 2^−149, the smallest float32 above zero: whole numbers add without any error."""

_MANTISSA = 53

_SCALE = 2.0**_STEP_BITS


def _steps(x: float) -> int:
    """``floor(x / step)``."""
    scaled = x * _SCALE  # exact, unless it overflows
    if -math.inf < scaled < math.inf:
        return math.floor(scaled)
    fraction, exponent = math.frexp(x)
    shift = exponent - _MANTISSA + _STEP_BITS
    whole = int(math.ldexp(fraction, _MANTISSA))
    return whole << shift if shift >= 0 else whole >> -shift


def ends_of(array: Array, samples: int, *, finite: bool) -> list[tuple[float, float]]:
    """Smallest and largest finite element of each sample of a batch; (+inf, −inf) of one without.

    Args:
        array: floating point, (samples, …).
        samples: how many.
        finite: the array is known to hold no NaN and no infinities.
    """
    rows = array.reshape(samples, -1)
    where = True if finite else np.isfinite(rows)
    lows = np.min(rows, axis=1, where=where, initial=np.inf).tolist()
    highs = np.max(rows, axis=1, where=where, initial=-np.inf).tolist()
    return list(zip(lows, highs, strict=True))


class SampleEnds:
    """Sums over samples of their smallest and of their largest finite element.

    Attributes:
        low: sum of the smallest ones, in steps.
        high: sum of the largest ones, in steps.
        samples: that had a finite element.
    """

    __slots__ = ("high", "low", "samples")

    def __init__(self, low: int = 0, high: int = 0, samples: int = 0) -> None:
        """Make the sums of a value not yet seen, or restore them."""
        self.low, self.high, self.samples = low, high, samples

    def update(self, ends: Iterable[tuple[float, float]]) -> None:
        """Fold in samples.

        Args:
            ends: smallest and largest finite element of each; the smallest is the larger one where there is none.
        """
        for low, high in ends:
            if low <= high:
                self.low += _steps(low)
                self.high += _steps(high)
                self.samples += 1

    def merge(self, other: SampleEnds) -> SampleEnds:
        """The sums of both; neither is changed."""
        return SampleEnds(self.low + other.low, self.high + other.high, self.samples + other.samples)

    @property
    def means(self) -> tuple[float, float] | None:
        """(low, high), units of the value; None where no sample was seen."""
        if not self.samples:
            return None
        whole = self.samples << _STEP_BITS
        return float(Fraction(self.low, whole)), float(Fraction(self.high, whole))

    def inside(self, low: float, high: float) -> bool:
        """Whether the sums can be those of samples with these extrema over all."""
        means = self.means if self.samples > 0 else None
        return self.samples == 0 if means is None else low - 2.0**-_STEP_BITS <= means[0] <= means[1] <= high

    def to_array(self) -> Array:
        """Unicode, (3,): low, high and samples as hexadecimal numbers, which are longer than any integer of numpy."""
        return np.array([format(number, "x") for number in (self.low, self.high, self.samples)])

    @classmethod
    def from_array(cls, array: Array) -> SampleEnds:
        """The sums whose `to_array` gave ``array``.

        Raises:
            ValueError: it holds no numbers.
        """
        low, high, samples = (int(str(text), 16) for text in array)
        return cls(low, high, samples)
