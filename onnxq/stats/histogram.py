"""A histogram on a power-of-two grid, whose merge is exact.

The grid spans ±2^k with `HALF` bins on each side of zero; bin ``i`` covers ``[i·w, (i+1)·w)``, ``w = 2^k / HALF``. k is
the smallest exponent that holds the exact extrema. When it grows, pairs of bins become one: ``floor(floor(x/w) / 2)``
is ``floor(x / 2w)``, so a histogram that grew is, bit for bit, the one that had the final grid from the start, in
whatever order arrays and shards came.

Large arrays are sampled. What is sampled depends on the array's shape alone (`stride`), never on what came before, so
this holds for sampled histograms too. A sampled element counts for the ``stride`` elements it stands for, so that long
and short arrays have the weight they should; the smallest and the largest element of each array, which are known
exactly, count once each whether sampled or not, so that an outlier is neither missed nor multiplied.

Exact zeros are counted apart. They are bin 0's business by value, but zero is representable on every grid without
error: counting them there would let the spike that ReLU leaves at zero look like a density that needs resolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.stats.extrema import Extrema

HALF = 4096
"""Bins on each side of zero."""

SMALLEST_EXPONENT = -100
"""k is not taken lower: all of what is smaller shares the bins next to zero."""

SAMPLED = 4096
"""Arrays of up to this many elements are counted whole; of larger ones at least about as many."""

LARGEST_STRIDE = 64
"""However large the array, about one element in this many is counted."""

_BITS = HALF.bit_length() - 1
_LONGEST_AXIS = 1 << 15  # longer ones are signals, not channels


def exponent_of(low: float, high: float) -> int:
    """Smallest k, not below `SMALLEST_EXPONENT`, with ``-2^k < low`` and ``high < 2^k``."""
    largest = max(-low, high)
    return max(math.frexp(largest)[1], SMALLEST_EXPONENT) if largest else SMALLEST_EXPONENT  # frexp(0) has exponent 0


@functools.lru_cache(maxsize=4096)
def stride(shape: tuple[int, ...]) -> int:
    """Step between the elements of an array of ``shape``, in C order, that the histogram counts.

    About as large as leaves `SAMPLED` elements, at most about `LARGEST_STRIDE`, and small enough that there are as
    many visits as the longest axis has indices. It is coprime to every axis, and so visits all indices of every axis
    equally often (to within one visit for each run through the array) instead of falling again and again on the same
    channels or columns. No channel is left out.
    """
    size = math.prod(shape)
    if size <= SAMPLED:
        return 1
    longest = max(length for length in (1, *shape) if length <= _LONGEST_AXIS)
    largest = size // longest
    step = min(-(-size // SAMPLED), LARGEST_STRIDE, largest)
    wider = step
    while math.gcd(wider, size) != 1:
        wider += 1
    if wider <= largest:
        return wider
    while math.gcd(step, size) != 1:
        step -= 1
    return step


class Histogram:
    """Counts of one value's elements; see the module's description.

    Attributes:
        exponent: k; the grid spans ±2^k.
        counts: int64, (2·HALF,), elements, those that sampled ones stand for included; bin ``i`` of the grid is at
            ``HALF + i``. Exact zeros are not among them.
        zeros: exact zeros, of either sign, in the same measure.
        sampled: elements, zeros aside, that were looked at.
    """

    __slots__ = ("counts", "exponent", "sampled", "zeros")

    def __init__(
        self, exponent: int = SMALLEST_EXPONENT, counts: Array | None = None, zeros: int = 0, sampled: int = 0
    ) -> None:
        """Make an empty histogram, or one of given counts, which are not copied."""
        self.exponent = exponent
        self.counts = np.zeros(2 * HALF, np.int64) if counts is None else counts
        self.zeros = zeros
        self.sampled = sampled

    @property
    def width(self) -> float:
        """Width of a bin, units of the value."""
        return math.ldexp(1.0, self.exponent - _BITS)

    @property
    def total(self) -> int:
        """Elements counted or stood for, zeros included."""
        return int(self.counts.sum()) + self.zeros

    def grow(self, exponent: int) -> None:
        """Widen the grid to ±2^exponent by joining pairs of bins; a smaller exponent changes nothing."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        steps = min(steps, _BITS)  # by then each side is one bin
        joined = self.counts.reshape(-1, 1 << steps).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[HALF - (HALF >> steps) : HALF + (HALF >> steps)] = joined

    def update(self, samples: Array, step: int, extrema: Sequence[Extrema]) -> None:
        """Count the elements of some arrays; many small ones cost hardly more together than one alone.

        Args:
            samples: (arrays, elements), of each array every ``step``-th element that is finite, inside ±2^k.
            step: `stride` of the arrays' shapes.
            extrema: of each whole array.
        """
        kind = np.float64 if samples.dtype == np.float64 else np.float32
        scaled = np.multiply(samples, kind(math.ldexp(1.0, _BITS - self.exponent)), dtype=kind)
        np.floor(scaled, out=scaled)
        if self.exponent > _BITS:  # a tiny negative product may have vanished: its bin is -1 all the same
            scaled[(scaled == 0) & (samples < 0)] = -1
        index = scaled.reshape(-1).astype(np.int32)  # a fifth of the time that int64 takes
        first = min(self._bin(min([part.low for part in extrema])), 0)
        last = max(self._bin(max([part.high for part in extrema])), 0)
        if first:
            index -= first
        found = np.bincount(index, minlength=last - first + 1)
        zeros = int(np.count_nonzero(samples == 0))  # four times as fast as counting floats
        found[-first] -= zeros
        self.sampled += samples.size - zeros
        if step > 1:
            zeros *= step
            found *= step
            if samples.shape[1]:
                lows, highs = samples.min(axis=1).tolist(), samples.max(axis=1).tolist()
                for part, low, high in zip(extrema, lows, highs, strict=True):
                    if part.low < part.high:
                        if part.low:
                            self._settle(found, first, part.low, low, step)
                        if part.high:
                            self._settle(found, first, part.high, high, step)
        self.zeros += zeros
        self.counts[HALF + first : HALF + last + 1] += found

    def _bin(self, x: float) -> int:
        """The bin of ``x``, counted from zero."""
        index = math.floor(math.ldexp(x, _BITS - self.exponent))
        return -1 if index == 0 and x < 0.0 else index

    def _settle(self, found: Array, first: int, end: float, sampled_end: float, step: int) -> None:
        """Count the extreme ``end`` of an array, not 0, once: not ``step`` times if sampled, nor never if not."""
        if sampled_end == end:
            found[self._bin(end) - first] -= step - 1
        else:
            found[self._bin(end) - first] += 1
            self.sampled += 1

    def merge(self, other: Histogram) -> Histogram:
        """Counts of both, on the wider of the two grids."""
        wide = Histogram(self.exponent, self.counts.copy(), self.zeros + other.zeros, self.sampled + other.sampled)
        more = Histogram(other.exponent, other.counts)
        wide.grow(other.exponent)
        more.grow(self.exponent)
        wide.counts += more.counts
        return wide
