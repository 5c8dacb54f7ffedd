"""How loud the samples of a value are, one by one: a histogram of their mean squares, exact and order-free to merge.

A range that the loudest sample needs has steps of one size for all. Extrema and a histogram over all elements do not
say how many samples are left with next to nothing on it; this does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.stats.histogram import stride

Squares = tuple[float, int]
"""Sum of the squares of a sample, and how many of its elements were not zero."""

_BINS_AN_OCTAVE = 4

_ENOUGH = 1024
"""Elements of a sample that give its mean square to about 0.2 dB."""


@functools.lru_cache(maxsize=4096)
def powers_step(shape: tuple[int, ...]) -> int:
    """A multiple of the histogram's `stride`, as that coprime to every axis where it is not 1."""
    size, step = math.prod(shape), stride(shape)
    return next(
        (step * more for more in (7, 5, 3) if size >= _ENOUGH * step * more and math.gcd(more, size) == 1), step
    )


@functools.lru_cache(maxsize=4096)
def steps_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """The histogram's `stride` for arrays of a shape; of every so many elements so chosen the powers look at one."""
    step = stride(shape)
    return step, powers_step(shape) // step


def squares_of(array: Array, samples: int, *, finite: bool) -> list[Squares]:
    """Of each sample of an array the sum of squares and the number of elements that are not zero.

    Args:
        array: floating point, (samples, …), or of any shape where it is one sample; of large samples about a thousand
            elements are looked at.
        samples: how many.
        finite: the array is known to hold no NaN and no infinities.
    """
    if not array.size:
        return []
    step = powers_step(array.shape[1:] if samples > 1 else array.shape)
    rows = array.reshape(samples, -1)[:, ::step].astype(np.float64)
    if not finite:
        rows[~np.isfinite(rows)] = 0.0
    return squares_of_rows(rows)


def squares_of_rows(rows: Array) -> list[Squares]:
    """The same of rows, finite float64, (samples, elements), that are looked at as they are."""
    squares = np.einsum("ij,ij->i", rows, rows).tolist()
    return list(zip(squares, np.count_nonzero(rows, axis=1).tolist(), strict=True))


class SamplePowers:
    """Counts of samples by mean square, in bins of a quarter of an octave (0.75 dB).

    The mean is over the elements that are not zero: zero is exact on every grid, and a ReLU leaves many.

    Attributes:
        bins: number of samples by bin; bin ``i`` covers ``2^(i/4) ≤ mean square < 2^((i+1)/4)``.
    """

    __slots__ = ("bins",)

    def __init__(self, bins: dict[int, int] | None = None) -> None:
        """Make the powers of a value not yet seen, or restore them."""
        self.bins: dict[int, int] = dict(bins or {})

    def update(self, squares: Iterable[Squares]) -> None:
        """Fold in samples, each as the sum of its squares and the number of its elements that are not zero."""
        for square, count in squares:
            if count and 0.0 < square < math.inf:  # a square that overflows is no power to hold a grid against
                key = math.floor(math.log2(square / count) * _BINS_AN_OCTAVE)
                self.bins[key] = self.bins.get(key, 0) + 1

    def merge(self, other: SamplePowers) -> SamplePowers:
        """The counts of both; neither is changed."""
        joined = SamplePowers(self.bins)
        for key, count in other.bins.items():
            joined.bins[key] = joined.bins.get(key, 0) + count
        return joined

    def quantile(self, share: float) -> float | None:
        """A mean square that a share of the samples does not exceed, to within a bin.

        Args:
            share: 0 … 1; the quietest sample always counts.

        Returns:
            Units of the value, squared; None where no sample had anything but zeros.
        """
        needed = max(math.ceil(share * sum(self.bins.values())), 1)
        for key in sorted(self.bins):
            needed -= self.bins[key]
            if needed <= 0:
                return float(2.0 ** ((key + 0.5) / _BINS_AN_OCTAVE))
        return None

    def to_array(self) -> Array:
        """int64, (bins, 2): each bin that is not empty and its count, in order."""
        return np.array(sorted(self.bins.items()), np.int64).reshape(-1, 2)

    @classmethod
    def from_array(cls, array: Array) -> SamplePowers:
        """The powers whose `to_array` gave ``array``."""
        return cls({int(key): int(count) for key, count in array})
