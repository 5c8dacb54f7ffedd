"""The statistic of one value: extrema, histogram, extrema and mean squares of its samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.extrema import Extrema
from onnxq.stats.histogram import HALF, Histogram, exponent_of
from onnxq.stats.observation import Observation, observe
from onnxq.stats.powers import SamplePowers, squares_of_rows
from onnxq.stats.sample_ends import SampleEnds

_WAITING = 1 << 15
"""Elements that wait to be counted together."""

_MOST_WAITING = 32
"""Arrays likewise: of the smallest, numpy's cost for a call is all there is."""


class ValueStatistic:
    """Extrema, histogram and counters of one value, folded in array by array; no element is kept.

    `merge` is exact and order-free: the statistics of shards, joined, have the bits that one run over all has.

    Attributes:
        extrema: exact, over every element.
        shape: shape of the arrays; where they differ, the smallest in the order of (rank, lengths), so that the order
            in which they came does not matter. None before the first.
    """

    __slots__ = ("_ends", "_histogram", "_powers", "_waiting", "extrema", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        """Make the statistic of a value not yet seen."""
        self.extrema = Extrema()
        self._ends = SampleEnds()
        self.shape: tuple[int, ...] | None = None
        self._histogram = Histogram()
        self._powers = SamplePowers()
        self._waiting: list[Observation] = []

    @property
    def histogram(self) -> Histogram:
        """On a power-of-two grid, over every array so far."""
        self._settle()
        return self._histogram

    @property
    def powers(self) -> SamplePowers:
        """Mean squares of the samples, one by one."""
        self._settle()
        return self._powers

    @property
    def ends(self) -> SampleEnds:
        """Extrema of the samples, summed."""
        self._settle()
        return self._ends

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
        self.take(observe(array, samples, shape))

    def take(self, seen: Observation) -> None:
        """Fold in what an array showed."""
        if seen.shape != self.shape and (self.shape is None or _order(seen.shape) < _order(self.shape)):
            self.shape = seen.shape
        self.extrema.include(seen.extrema)
        if not seen.extrema.finite_count:
            return
        if self._waiting and not _alike(seen, self._waiting[0]):
            self._settle()
        self._waiting.append(seen)
        if len(self._waiting) >= _MOST_WAITING or len(self._waiting) * seen.sample.size >= _WAITING:
            self._settle()

    def _settle(self) -> None:
        """Count the samples that wait; what comes of it does not depend on how many there are."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        first = waiting[0]
        samples = first.sample if len(waiting) == 1 else np.concatenate([seen.sample for seen in waiting])
        samples = samples.reshape(len(waiting), -1)
        self._histogram.grow(exponent_of(self.extrema.low, self.extrema.high))
        self._histogram.update(samples, first.step, [seen.extrema for seen in waiting])
        for seen in waiting:
            self._ends.update(seen.ends)
        if first.squares is None:
            self._powers.update(squares_of_rows(samples[:, :: first.further].astype(np.float64)))
        else:
            for seen in waiting:
                self._powers.update(seen.squares or ())

    def merge(self, other: ValueStatistic) -> ValueStatistic:
        """The statistic of both together; neither is changed."""
        joined = ValueStatistic()
        joined.extrema = self.extrema.merge(other.extrema)
        joined._histogram = self.histogram.merge(other.histogram)
        joined._powers = self.powers.merge(other.powers)
        joined._ends = self.ends.merge(other.ends)
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
        statistic._histogram = Histogram(exponent, zeros=zeros, sampled=sampled)
        statistic._histogram.counts[first:last] = counts
        statistic._powers = SamplePowers.from_array(powers)
        statistic._ends = ends
        statistic.shape = None if shape == (-1,) else shape
        return statistic

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValueStatistic):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[key], theirs[key]) for key in mine)

    def __repr__(self) -> str:
        return f"ValueStatistic(low={self.low}, high={self.high}, count={self.count}, shape={self.shape})"


def _alike(one: Observation, other: Observation) -> bool:
    """Whether two samples can be counted together."""
    return (
        one.sample.shape == other.sample.shape
        and one.sample.dtype == other.sample.dtype
        and one.step == other.step
        and one.further == other.further
        and (one.squares is None) == (other.squares is None)
    )


def _order(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(shape), shape
