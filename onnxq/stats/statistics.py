"""The statistics of a calibration run: one `ValueStatistic` for each value, together a `Statistics`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats import statistics_file, tensorrt_cache
from onnxq.stats.means import ChannelMeans
from onnxq.stats.observation import Observation, observe
from onnxq.stats.second_moment import ChannelPeaks, SecondMoment
from onnxq.stats.value_statistic import ValueStatistic


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What a weight algorithm gets to know of the input that a weight is multiplied with.

    Attributes:
        moment: its second moment, of one row at least.
        peaks: magnitudes of its channels; None where they were not gathered.
        correction: (in, in): what is added to a weight, (out, in), times the weight itself before it is rounded, since
            the input is that of a quantized model; None where it is that of the float model.
    """

    moment: SecondMoment
    peaks: ChannelPeaks | None = None
    correction: Array | None = None


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
        try:
            self.take(name, observe(array, samples, shape))
        except CalibrationError as error:
            raise CalibrationError(f"value '{name}': {error}; only float values have ranges, leave it out") from None

    def take(self, name: str, seen: Observation) -> None:
        """Fold what an array showed into the statistic of ``name``."""
        statistic = self._values.get(name)
        if statistic is None:
            statistic = self._values[name] = ValueStatistic()
        statistic.take(seen)

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
        content = statistics_file.Content(
            model_hash=self.model_hash,
            data_hash=self.data_hash,
            samples=self.samples,
            masks=self.masks,
            values=self._values,
            means=self.means,
            moments=self.moments,
            peaks=self.peaks,
        )
        statistics_file.save(content, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote, or a calibration cache of TensorRT, which holds ranges alone.

        Raises:
            CalibrationError: the file is missing, is not of this kind or version, or is damaged.
        """
        if tensorrt_cache.is_cache(Path(path)):
            cached = cls()
            cached._values = tensorrt_cache.statistics_of(Path(path))
            return cached
        found = statistics_file.load(Path(path))
        statistics = cls(found.model_hash, found.data_hash, found.samples)
        statistics.masks, statistics._values = found.masks, found.values
        statistics.means, statistics.moments, statistics.peaks = found.means, found.moments, found.peaks
        return statistics


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
