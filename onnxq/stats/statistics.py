"""The statistics of a calibration run: one `ValueStatistic` for each value, together a `Statistics`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.extrema import Extrema
from onnxq.stats.histogram import HALF, Histogram, exponent_of, stride
from onnxq.stats.means import ChannelMeans
from onnxq.stats.powers import SamplePowers
from onnxq.stats.second_moment import ChannelPeaks, SecondMoment


class ValueStatistic:
    """Extrema, histogram and counters of one value, folded in array by array; no element is kept.

    `merge` is exact and order-free: the statistics of shards, joined, have the bits that one run over all has.

    Attributes:
        extrema: exact, over every element.
        histogram: on a power-of-two grid; large arrays are sampled by position (`onnxq.stats.histogram`).
        powers: mean squares of the samples, one by one.
        shape: shape of the arrays; where they differ, the smallest in the order of (rank, lengths), so that the order
            in which they came does not matter. None before the first.
    """

    __slots__ = ("extrema", "histogram", "powers", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        """Make the statistic of a value not yet seen."""
        self.extrema = Extrema()
        self.histogram = Histogram()
        self.powers = SamplePowers()
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

    def merge(self, other: ValueStatistic) -> ValueStatistic:
        """The statistic of both together; neither is changed."""
        joined = ValueStatistic()
        joined.extrema = self.extrema.merge(other.extrema)
        joined.histogram = self.histogram.merge(other.histogram)
        joined.powers = self.powers.merge(other.powers)
        shapes = [shape for shape in (self.shape, other.shape) if shape is not None]
        joined.shape = min(shapes, key=_order, default=None)
        return joined

    def to_arrays(self) -> dict[str, Array]:
        """All state as arrays: ``extrema`` float64 (2,), ``counters`` int64 (6,), ``shape``, ``counts``, ``powers``.

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
        ):
            raise CalibrationError("from_arrays: the arrays of a statistic contradict each other")
        statistic.extrema = Extrema(low, high, count, nans, infs)
        statistic.histogram = Histogram(exponent, zeros=zeros, sampled=sampled)
        statistic.histogram.counts[first:last] = counts
        statistic.powers = SamplePowers.from_array(powers)
        statistic.shape = None if shape == (-1,) else shape
        return statistic

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValueStatistic):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[key], theirs[key]) for key in mine)

    def __repr__(self) -> str:
        return f"ValueStatistic(low={self.low}, high={self.high}, count={self.count}, shape={self.shape})"


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What a weight algorithm gets to know of the input that a weight is multiplied with.

    Attributes:
        moment: its second moment, of one row at least.
        peaks: magnitudes of its channels; None where they were not gathered.
    """

    moment: SecondMoment
    peaks: ChannelPeaks | None = None


class Statistics(Mapping[str, ValueStatistic]):
    """The statistics of a calibration run, by value name, in the order of the names.

    Attributes:
        model_hash: of the model that was run.
        data_hash: of the calibration data.
        samples: feeds that were run.
        masks: inputs of the model that said which positions are padding; these are left out of every value that has
            such positions.
        means: channel means of the values that have them, by name.
        moments: second moments of the values that have them, by name.
        peaks: channel magnitudes of the values that have them, by name.
        source: gives the moments and peaks of values in ``later``, in place of those that are here: all together would
            not fit in memory. None where there is nothing more to come. Not saved.
        later: names of the values that the source knows.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, model_hash: str = "", data_hash: str = "", samples: int = 0) -> None:
        """Make statistics without values."""
        self.model_hash = model_hash
        self.data_hash = data_hash
        self.samples = samples
        self.masks: tuple[str, ...] = ()
        self.means: dict[str, ChannelMeans] = {}
        self.moments: dict[str, SecondMoment] = {}
        self.peaks: dict[str, ChannelPeaks] = {}
        self.source: Callable[[str], Statistics] | None = None
        self.later: frozenset[str] = frozenset()
        self._values: dict[str, ValueStatistic] = {}

    def __getitem__(self, name: str) -> ValueStatistic:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        return self._state() == other._state()

    def _state(self) -> tuple[object, ...]:
        said = (self.model_hash, self.data_hash, self.samples, self.masks)
        return (*said, self._values, self.means, self.moments, self.peaks)

    def update(self, name: str, array: Array, samples: int = 1, shape: tuple[int, ...] | None = None) -> None:
        """Fold an array, of so many samples, into the statistic of ``name``; see `ValueStatistic.update`.

        Raises:
            CalibrationError: the array is not floating point.
        """
        statistic = self._values.get(name)
        if statistic is None:
            statistic = self._values[name] = ValueStatistic()
        try:
            statistic.update(array, samples, shape)
        except CalibrationError as error:
            raise CalibrationError(f"value '{name}': {error}; only float values have ranges, leave it out") from None

    def update_means(self, name: str, rows: Array) -> None:
        """Fold channel means, (items, channels), of the value ``name`` in; see `ChannelMeans.update`."""
        if name not in self.means:
            self.means[name] = ChannelMeans()
        try:
            self.means[name].update(rows)
        except CalibrationError as error:
            raise CalibrationError(f"value '{name}': {error}") from None

    def update_moments(self, name: str, array: Array) -> None:
        """Fold an array, (…, channels), into the second moment of the value ``name``; see `SecondMoment.update`."""
        try:
            self.moments.setdefault(name, SecondMoment()).update(array)
        except CalibrationError as error:
            raise CalibrationError(f"value '{name}': {error}") from None

    def update_peaks(self, name: str, array: Array) -> None:
        """Fold an array, (…, channels), into the channel magnitudes of the value ``name``."""
        try:
            self.peaks.setdefault(name, ChannelPeaks()).update(array)
        except CalibrationError as error:
            raise CalibrationError(f"value '{name}': {error}") from None

    def of_input(self, name: str) -> InputStatistics | None:
        """What is known of the channels of a value; those of other values may be dropped for it (see ``source``).

        Raises:
            CalibrationError: the source failed.
        """
        if name not in self.moments and self.source is not None and name in self.later:
            self.moments.clear()
            self.peaks.clear()
            found = self.source(name)
            self.moments, self.peaks = found.moments, found.peaks
            if name not in self.moments:  # nobody need ask again
                self.later -= {name}
        moment, peaks = self.moments.get(name), self.peaks.get(name)
        return None if moment is None or not moment.rows else InputStatistics(moment, peaks)

    def put(self, name: str, statistic: ValueStatistic) -> None:
        """Set the statistic of the value ``name``."""
        self._values[name] = statistic

    def add(self, other: Statistics) -> None:
        """Take over the values of another run over the same data."""
        self._values.update(other._values)
        self.means.update(other.means)
        self.moments.update(other.moments)
        self.peaks.update(other.peaks)

    def merge(self, *others: Statistics) -> Statistics:
        """Join any number of shards: ``a.merge(b)``, or ``Statistics.merge(a, b, c)``.

        Exact and order-free: whatever the order, the result has the bits of one run over all data. No shard is
        changed. The data's hash is `combine_hashes` of the shards'.

        Raises:
            CalibrationError: the shards are of different models.
        """
        joined = Statistics(self.model_hash, self.data_hash, self.samples)
        joined.masks = self.masks
        joined._values = {name: statistic.merge(ValueStatistic()) for name, statistic in self._values.items()}
        joined.means = {name: means.merge(ChannelMeans()) for name, means in self.means.items()}
        joined.moments = {name: moment.merge(SecondMoment()) for name, moment in self.moments.items()}
        joined.peaks = {name: peaks.merge(ChannelPeaks()) for name, peaks in self.peaks.items()}
        for other in others:
            if other.model_hash != self.model_hash:
                raise CalibrationError(
                    f"merge: statistics of two models, '{self.model_hash}' and '{other.model_hash}'; "
                    "join only runs of the same model"
                )
            joined.samples += other.samples
            joined.masks = tuple(sorted({*joined.masks, *other.masks}))
            for name, statistic in other._values.items():
                joined._values[name] = joined._values.get(name, ValueStatistic()).merge(statistic)
            for name, means in other.means.items():
                joined.means[name] = joined.means.get(name, ChannelMeans()).merge(means)
            for name, moment in other.moments.items():
                joined.moments[name] = joined.moments.get(name, SecondMoment()).merge(moment)
            for name, peaks in other.peaks.items():
                joined.peaks[name] = joined.peaks.get(name, ChannelPeaks()).merge(peaks)
        if others:
            joined.data_hash = combine_hashes(self.data_hash, *(other.data_hash for other in others))
        return joined

    def save(self, path: str | Path) -> None:
        """Write an .npz file, all or nothing; see `onnxq.stats.statistics_file.save`.

        Raises:
            CalibrationError: the file cannot be written.
        """
        from onnxq.stats import statistics_file

        statistics_file.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises:
            CalibrationError: the file is missing, is not of this kind or version, or is damaged.
        """
        from onnxq.stats import statistics_file

        return statistics_file.load(Path(path))


def _order(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(shape), shape


def combine_hashes(*hashes: str) -> str:
    """One hash for the data of several shards, the same in whatever order and grouping they are joined.

    The sum modulo 2^256 of the hashes read as hexadecimal numbers, so that a reader which hashes its data this way,
    sample by sample, gives one run the hash of its shards joined. Empty hashes are left out; what is not a
    hexadecimal number of up to 64 digits enters as its SHA-256.
    """
    total = 0
    for text in filter(None, hashes):
        try:
            number = int(text, 16) if len(text) <= 64 else -1
        except ValueError:
            number = -1
        total += number if number >= 0 else int(hashlib.sha256(text.encode()).hexdigest(), 16)
    return f"{total % (1 << 256):064x}" if any(hashes) else ""
