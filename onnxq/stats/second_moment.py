"""What weight algorithms need to know of a layer's input: second moments XᵀX and magnitudes of its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.exact import ExactSum

_TILE = 256
"""Rows of XᵀX that are computed at once; only the part right of the diagonal's tile is."""

_ROWS = 512
"""Rows of X that are multiplied in float32 before the product is added to the exact sum."""

_PENDING = 64
"""Single rows that wait to be folded in together: of few channels, numpy's cost for a call is all there is."""

_LARGE = 2.0**40
"""Elements beyond this are multiplied in float64, where their squares cannot overflow."""


def moment_bytes(channels: int) -> int:
    """Bytes that a `SecondMoment` of so many channels takes, with what it needs while it is updated."""
    return 16 * packed_size(channels) + 32 * _TILE * channels


class SecondMoment:
    """XᵀX over the rows of a value: its last axis are the channels, all other axes are rows.

    The product of each array is computed in float32, 512 rows at a time, and added exactly (`onnxq.stats.exact`): an
    element is at worst 2⁻¹⁵·√(H_ii·H_jj) from the float64 product, and some 2⁻²⁰ on real data. What an array adds
    depends on that array alone, so `merge` is exact and order-free: shards that are cut between arrays give the bits
    of one run (on one machine: another BLAS may round a product otherwise). XᵀX is symmetric: half of it is kept.

    Attributes:
        rows: rows that were summed.
        ignored: rows that were left out because an element was not finite.
    """

    __slots__ = ("_sum", "channels", "ignored", "rows")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        """Make the second moment of a value not yet seen."""
        self.channels: int | None = None
        self.rows = 0
        self.ignored = 0
        self._sum = ExactSum.zeros(0)

    def update(self, array: Array) -> None:
        """Fold in an array.

        Args:
            array: floating point, (…, channels). Rows with an element that is not finite are counted and left out.

        Raises:
            CalibrationError: it has no axis, or another number of channels than those before.
        """
        rows, left_out = _usable_rows(array, self.channels)
        if self.channels is None:
            self.channels = rows.shape[1]
            self._sum = ExactSum.zeros(packed_size(self.channels))
        self.rows += len(rows)
        self.ignored += left_out
        for start in range(0, len(rows), _ROWS):
            self._fold(rows[start : start + _ROWS])

    def _fold(self, rows: Array) -> None:
        channels = rows.shape[1]
        if rows.dtype != np.float64:
            exact = float(np.abs(rows).max(initial=0.0)) > _LARGE
            rows = rows.astype(np.float64 if exact else np.float32, copy=False)
        for first, last, start in _tiles(channels):
            self._sum.add(rows[:, first:last].T @ rows[:, first:], start)
        self._sum.count_term()

    @property
    def matrix(self) -> Array | None:
        """float64, (channels, channels), symmetric: the sum XᵀX, in units of the value squared; None before any row."""
        return self._full(np.float64, 1.0)

    @property
    def normalized(self) -> Array | None:
        """float32, (channels, channels): `matrix` with a largest diagonal entry of 1; half of its memory."""
        if self.channels is None or not self.rows:
            return None
        peak = float(self.diagonal.max(initial=0.0))
        return self._full(np.float32, 1.0 / peak if peak > 0.0 else 1.0)

    @property
    def diagonal(self) -> Array:
        """float64, (channels,): the sums of squares."""
        parts = [
            (self._sum.high[place] + self._sum.low[place])
            for first, last, start in _tiles(self.channels or 0)
            for place in [start + np.arange(last - first) * ((self.channels or 0) - first + 1)]
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _full(self, dtype: type[np.floating[Any]], factor: float) -> Array | None:
        if self.channels is None or not self.rows:
            return None
        full = np.empty((self.channels, self.channels), dtype)
        for first, last, start in _tiles(self.channels):
            shape = (last - first, self.channels - first)
            part = slice(start, start + shape[0] * shape[1])
            tile = (self._sum.high[part] + self._sum.low[part]).reshape(shape)
            if factor != 1.0:
                tile *= factor
            full[first:last, first:] = tile
            full[last:, first:last] = tile[:, last - first :].T
            corner = full[first:last, first:last]
            corner[:] = np.triu(corner) + np.triu(corner, 1).T  # a product of floats is not quite symmetric
        return full

    def scaled(self, factors: Array) -> SecondMoment:
        """The second moment of the value with its channels multiplied by ``factors``, (channels,)."""
        scaled = SecondMoment()
        scaled.channels, scaled.rows, scaled.ignored = self.channels, self.rows, self.ignored
        if self.channels is None:
            return scaled
        scaled._sum = ExactSum.zeros(packed_size(self.channels))
        wide = factors.astype(np.float64)
        for first, last, start in _tiles(self.channels):
            shape = (last - first, self.channels - first)
            part = slice(start, start + shape[0] * shape[1])
            tile = (self._sum.high[part] + self._sum.low[part]).reshape(shape)
            scaled._sum.add(tile * wide[first:last, None] * wide[first:], start)
        scaled._sum.count_term()
        return scaled

    def merge(self, other: SecondMoment) -> SecondMoment:
        """The second moment over the rows of both; neither is changed."""
        joined = SecondMoment()
        joined.rows, joined.ignored = self.rows + other.rows, self.ignored + other.ignored
        known = [moment for moment in (self, other) if moment.channels is not None]
        if len({moment.channels for moment in known}) > 1:
            raise CalibrationError(f"merge: second moments of {self.channels} and of {other.channels} channels")
        if known:
            joined.channels = known[0].channels
            joined._sum = known[0]._sum.copy() if len(known) == 1 else self._sum.merge(other._sum)
        return joined

    def to_arrays(self) -> dict[str, Array]:
        """All state: ``counters`` int64 (channels or −1, rows, ignored), and the parts of the sum, ``high``, ``low``.

        Both are float64 and hold the tiles right of the diagonal one after the other.
        """
        self._sum.carry()
        channels = -1 if self.channels is None else self.channels
        return {
            "counters": np.array([channels, self.rows, self.ignored], np.int64),
            "high": self._sum.high.copy(),
            "low": self._sum.low.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> SecondMoment:
        """The second moment whose `to_arrays` gave ``arrays``.

        Raises:
            CalibrationError: the arrays contradict each other.
        """
        channels, rows, ignored = (int(number) for number in arrays["counters"])
        high, low = (np.array(arrays[key], np.float64) for key in ("high", "low"))
        size = 0 if channels < 0 else packed_size(channels)
        fits = high.shape == low.shape == (size,) and np.isfinite(high).all() and np.isfinite(low).all()
        if channels < -1 or min(rows, ignored) < 0 or not fits or (rows > 0 and channels < 0):
            raise CalibrationError("from_arrays: the arrays of a second moment contradict each other")
        moment = cls()
        moment.channels = None if channels < 0 else channels
        moment.rows, moment.ignored = rows, ignored
        moment._sum = ExactSum(high, low)
        return moment

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecondMoment):
            return NotImplemented
        mine, theirs = ((m.channels, m.rows, m.ignored) for m in (self, other))
        return mine == theirs and self._sum.equals(other._sum)


class ChannelPeaks:
    """Largest and mean magnitude of each channel of a value: its last axis, as in `SecondMoment`."""

    __slots__ = ("_highest", "_ignored", "_pending", "_rows", "_sum")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        """Make the magnitudes of a value not yet seen."""
        self._rows = 0
        self._ignored = 0
        self._highest: Array | None = None
        self._sum = ExactSum.zeros(0)
        self._pending: list[Array] = []

    @property
    def rows(self) -> int:
        """Rows that were folded in."""
        self._settle()
        return self._rows

    @property
    def ignored(self) -> int:
        """Rows that were left out because an element was not finite."""
        self._settle()
        return self._ignored

    @property
    def highest(self) -> Array | None:
        """float64, (channels,), largest magnitude, exact; None before any array."""
        self._settle()
        return self._highest

    def update(self, array: Array) -> None:
        """Fold in an array; as `SecondMoment.update`."""
        array = np.asarray(array)
        if array.ndim == 2 and len(array) == 1 and array.dtype == np.float32:
            known = self._pending[0] if self._pending else self._highest
            _check_channels(array, None if known is None else known.shape[-1])
            self._pending.append(array.copy())
            if len(self._pending) >= _PENDING:
                self._settle()
            return
        self._settle()
        rows, left_out = _usable_rows(array, None if self._highest is None else self._highest.size)
        magnitudes = np.abs(rows)
        self._count(magnitudes, left_out)
        if len(rows):
            self._sum.add(magnitudes.sum(axis=0, dtype=np.float64))
            self._sum.count_term()

    def _settle(self) -> None:
        """Fold in the single rows that wait; what comes of it does not depend on how many there are."""
        if not self._pending:
            return
        rows, left_out = _usable_rows(np.concatenate(self._pending), None)
        self._pending.clear()
        magnitudes = np.abs(rows, dtype=np.float64)
        self._count(magnitudes, left_out)
        self._sum.add_rows(magnitudes)

    def _count(self, magnitudes: Array, left_out: int) -> None:
        if self._highest is None:
            self._highest = np.zeros(magnitudes.shape[1])
            self._sum = ExactSum.zeros(magnitudes.shape[1])
        self._rows += len(magnitudes)
        self._ignored += left_out
        if len(magnitudes):
            self._highest = np.maximum(self._highest, magnitudes.max(axis=0))

    @property
    def mean(self) -> Array | None:
        """float64, (channels,), mean magnitude; None before any row."""
        return (self._sum.high + self._sum.low) / self._rows if self.rows else None

    def merge(self, other: ChannelPeaks) -> ChannelPeaks:
        """The magnitudes over the rows of both; neither is changed."""
        mine, theirs = self.highest, other.highest
        joined = ChannelPeaks()
        joined._rows, joined._ignored = self._rows + other._rows, self._ignored + other._ignored
        if mine is None or theirs is None:
            chosen = other if mine is None else self
            joined._highest = None if chosen._highest is None else chosen._highest.copy()
            joined._sum = chosen._sum.copy()
            return joined
        if mine.size != theirs.size:
            raise CalibrationError(f"merge: magnitudes of {mine.size} and of {theirs.size} channels")
        joined._highest = np.maximum(mine, theirs)
        joined._sum = self._sum.merge(other._sum)
        return joined

    def to_arrays(self) -> dict[str, Array]:
        """All state: ``counters`` int64 (channels or −1, rows, ignored), ``highest``, the sum's ``high``, ``low``."""
        self._settle()
        self._sum.carry()
        highest = np.zeros(0) if self._highest is None else self._highest
        channels = -1 if self._highest is None else highest.size
        return {
            "counters": np.array([channels, self._rows, self._ignored], np.int64),
            "highest": highest.copy(),
            "high": self._sum.high.copy(),
            "low": self._sum.low.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> ChannelPeaks:
        """The magnitudes whose `to_arrays` gave ``arrays``.

        Raises:
            CalibrationError: the arrays contradict each other.
        """
        channels, rows, ignored = (int(number) for number in arrays["counters"])
        highest, high, low = (np.array(arrays[key], np.float64) for key in ("highest", "high", "low"))
        finite = all(np.isfinite(array).all() for array in (highest, high, low))
        same = highest.shape == high.shape == low.shape == (max(channels, 0),)
        if channels < -1 or min(rows, ignored) < 0 or not same or not finite or (highest < 0).any():
            raise CalibrationError("from_arrays: the arrays of channel magnitudes contradict each other")
        peaks = cls()
        peaks._highest = None if channels < 0 else highest
        peaks._rows, peaks._ignored = rows, ignored
        peaks._sum = ExactSum(high, low)
        return peaks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelPeaks):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[key], theirs[key]) for key in mine)


def _usable_rows(array: Array, channels: int | None) -> tuple[Array, int]:
    """The rows without an element that is not finite, and how many others there were."""
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CalibrationError(f"update: element type {array.dtype} is not float16, float32 or float64")
    if array.ndim == 0:
        raise CalibrationError("update: a scalar has no channels")
    _check_channels(array, channels)
    rows = array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, array.shape[-1])
    if rows.dtype.itemsize == 2:
        rows = rows.astype(np.float32)
    finite = np.isfinite(rows)
    if finite.all():
        return rows, 0
    usable = finite.all(axis=1)
    return rows[usable], int(len(rows) - np.count_nonzero(usable))


def _check_channels(array: Array, channels: int | None) -> None:
    if channels is not None and array.shape[-1] != channels:
        raise CalibrationError(f"update: {array.shape[-1]} channels where there were {channels} before")


def packed_size(channels: int) -> int:
    """Elements of a packed second moment."""
    whole, rest = divmod(channels, _TILE)
    return _TILE * (whole * channels - _TILE * whole * (whole - 1) // 2) + rest * rest


def _tiles(channels: int) -> list[tuple[int, int, int]]:
    """(first row, last row + 1, place in the packed sum) of each tile, which reaches from its diagonal to the right."""
    found, place = [], 0
    for first in range(0, channels, _TILE):
        last = min(first + _TILE, channels)
        found.append((first, last, place))
        place += (last - first) * (channels - first)
    return found
