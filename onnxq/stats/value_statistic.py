"""The statistic of one value: extrema, histogram, extrema and mean squares of its samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.extrema import Extrema
from onnxq.stats.histogram import HALF, Histogram, exponent_of, stride
from onnxq.stats.powers import SamplePowers
from onnxq.stats.sample_ends import SampleEnds


class ValueStatistic:
    """Extrema, histogram and counters of one value, folded in array by array; no element is kept.

    `merge` is exact and order-free: the statistics of shards, joined, have the bits that one run over all has.

    Attributes:
        extrema: exact, over every element.
        histogram: on a power-of-two grid; large arrays are sampled by position (`onnxq.stats.histogram`).
        powers: mean squares of the samples, one by one.
        ends: extrema of the samples, summed.
        shape: shape of the arrays; where they differ, the smallest in the order of (rank, lengths), so that the order
            in which they came does not matter. None before the first.
    """

    __slots__ = ("ends", "extrema", "histogram", "powers", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        """Make the statistic of a value not yet seen."""
        self.extrema = Extrema()
        self.histogram = Histogram()
        self.powers = SamplePowers()
        self.ends = SampleEnds()
        self.shape: tuple[int, ...] | None = None

    @property
    def low(self) -> float | None:
        """Smallest finite element, exact; None where none was seen."""
        return self.extrema.low if self.extrema.finite_count else None

    @property
    def high(self) -> float | None:
        """Largest finite element, exact; None where none was seen."""
        return self.extrema.high if self.extrema.finite_count else None

    @property
    def count(self) -> int:
        """Elements seen, non-finite ones included."""
        return self.extrema.count

    @property
    def nan_count(self) -> int:
        """NaN elements seen."""
        return self.extrema.nan_count

    @property
    def inf_count(self) -> int:
        """Infinite elements seen."""
        return self.extrema.inf_count

    def update(self, array: Array, samples: int = 1, shape: tuple[int, ...] | None = None) -> None:
        """Fold in an array of any shape, which may differ from the ones before.

        Args:
            array: float16, float32 or float64; non-finite elements are counted and otherwise ignored.
            samples: how many samples were run at once; where the first axis has this length, it is the samples'.
            shape: shape of the value, where the array is only a part of it.

        Raises:
            CalibrationError: the array is not floating point.
        """
        array = np.asarray(array)
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise CalibrationError(f"update: element type {array.dtype} is not float16, float32 or float64")
        shape = array.shape if shape is None else shape
        if self.shape is None or _order(shape) < _order(self.shape):
            self.shape = shape
        flat = array.reshape(-1)
        if flat.dtype.itemsize == 2:
            flat = flat.astype(np.float32)  # four times faster than reducing float16
        seen = self.extrema.update(flat)
        if seen.low <= seen.high:
            self.histogram.grow(exponent_of(self.extrema.low, self.extrema.high))
            self.histogram.update(flat, stride(array.shape), seen)
            self.powers.update(array, samples, seen.finite)
            self.ends.update(array, samples, seen)

    def merge(self, other: ValueStatistic) -> ValueStatistic:
        """The statistic of both together; neither is changed."""
        joined = ValueStatistic()
        joined.extrema = self.extrema.merge(other.extrema)
        joined.histogram = self.histogram.merge(other.histogram)
        joined.powers = self.powers.merge(other.powers)
        joined.ends = self.ends.merge(other.ends)
        shapes = [shape for shape in (self.shape, other.shape) if shape is not None]
        joined.shape = min(shapes, key=_order, default=None)
        return joined

    def to_arrays(self) -> dict[str, Array]:
        """All state as arrays: ``extrema`` float64 (2,), ``counters`` int64 (6,), ``counts`` and so on.

        ``counters`` holds count, nan_count, inf_count, zeros, sampled and the grid's exponent; ``span`` is (first,
        last + 1) of the bins that are not zero and ``counts`` the int64 counts between; ``shape`` is [-1] before the
        first array.
        """
        filled = np.flatnonzero(self.histogram.counts)
        first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
        extrema, histogram = self.extrema, self.histogram
        return {
            "extrema": np.array([extrema.low, extrema.high], np.float64),
            "counters": np.array(
                [
                    extrema.count,
                    extrema.nan_count,
                    extrema.inf_count,
                    histogram.zeros,
                    histogram.sampled,
                    histogram.exponent,
                ],
                np.int64,
            ),
            "shape": np.array([-1] if self.shape is None else self.shape, np.int64),
            "span": np.array([first, last], np.int64),
            "counts": histogram.counts[first:last].copy(),
            "powers": self.powers.to_array(),
            "ends": self.ends.to_array(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> ValueStatistic:
        """The statistic whose `to_arrays` gave ``arrays``.

        Raises:
            CalibrationError: the arrays contradict each other.
        """
        statistic = cls()
        low, high = (float(end) for end in arrays["extrema"])
        count, nans, infs, zeros, sampled, exponent = (int(number) for number in arrays["counters"])
        first, last = (int(end) for end in arrays["span"])
        counts = np.asarray(arrays["counts"], np.int64)
        shape = tuple(int(length) for length in arrays["shape"])
        powers = arrays.get("powers", np.zeros((0, 2), np.int64))
        ends = SampleEnds.from_array(arrays["ends"]) if "ends" in arrays else SampleEnds()
        seen = count - nans - infs
        if (
            not 0 <= first <= last <= 2 * HALF
            or counts.shape != (last - first,)
            or min(nans, infs, seen, zeros, sampled) < 0
            or (counts < 0).any()
            or (seen > 0 and not (-np.inf < low <= high < np.inf and exponent == exponent_of(low, high)))
            or (shape != (-1,) and min(shape, default=0) < 0)
            or powers.shape != (len(powers), 2)
            or (powers[:, 1] < 0).any()
            or not ends.inside(low, high)
        ):
            raise CalibrationError("from_arrays: the arrays of a statistic contradict each other")
        statistic.extrema = Extrema(low, high, count, nans, infs)
        statistic.histogram = Histogram(exponent, zeros=zeros, sampled=sampled)
        statistic.histogram.counts[first:last] = counts
        statistic.powers = SamplePowers.from_array(powers)
        statistic.ends = ends
        statistic.shape = None if shape == (-1,) else shape
        return statistic

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValueStatistic):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[key], theirs[key]) for key in mine)

    def __repr__(self) -> str:
        return f"ValueStatistic(low={self.low}, high={self.high}, count={self.count}, shape={self.shape})"


def _order(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(shape), shape
