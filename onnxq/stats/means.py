"""The mean of each channel of a value, exact and order-free like every statistic here."""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError

_STEPS = 1 << 24
"""Steps a unit: sums are kept as whole numbers of steps, so that adding them is exact in any order."""

_LARGEST = float(1 << 15)
"""Means beyond this are left out: their sum over 16 million items would not fit 64 bits."""


_PENDING = 1 << 14
"""Elements that are gathered before they are summed: one pass over many small arrays is cheaper than many passes."""


class ChannelMeans:
    """Sums of channel means over items (images, rows)."""

    __slots__ = ("_items", "_pending", "_sums", "_waiting")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: int = 0, sums: Array | None = None) -> None:
        """Make the means of a value not yet seen, or restore them."""
        self._items = items
        self._sums = sums
        self._pending: list[Array] = []
        self._waiting = 0

    @property
    def items(self) -> int:
        """Items folded in."""
        self._settle()
        return self._items

    @property
    def sums(self) -> Array | None:
        """int64, (channels,), in steps of 2⁻²⁴; None before the first item."""
        self._settle()
        return self._sums

    def update(self, rows: Array) -> None:
        """Fold in items.

        Args:
            rows: floating point, (items, channels), not to be written to afterwards: the mean of each channel in each
                item. Items with an element that is not finite, or larger than 32768, are left out.
        """
        known = self._pending[0] if self._pending else self._sums
        if known is not None and known.shape[-1] != rows.shape[1]:
            raise CalibrationError(f"update: {rows.shape[1]} channels where there were {known.shape[-1]} before")
        self._pending.append(rows)
        self._waiting += rows.size
        if self._waiting >= _PENDING:
            self._settle()

    def _settle(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending).astype(np.float64)
        self._pending.clear()
        self._waiting = 0
        rows = rows[(np.abs(rows) <= _LARGEST).all(axis=1)]  # false for NaN too
        sums = np.rint(rows * _STEPS).astype(np.int64).sum(axis=0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._items += len(rows)

    def merge(self, other: ChannelMeans) -> ChannelMeans:
        """The means over the items of both; neither is changed."""
        mine, theirs = self.sums, other.sums
        if mine is None or theirs is None:
            chosen = self if theirs is None else other
            return ChannelMeans(chosen.items, None if chosen.sums is None else chosen.sums.copy())
        if mine.shape != theirs.shape:
            raise CalibrationError(f"merge: channel means of {mine.size} and of {theirs.size} channels")
        return ChannelMeans(self.items + other.items, mine + theirs)

    @property
    def mean(self) -> Array | None:
        """float64, (channels,), units of the value; None where no item was usable."""
        return None if self.sums is None or not self.items else self.sums / (_STEPS * self.items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelMeans):
            return NotImplemented
        if self.sums is None or other.sums is None:
            return self.sums is other.sums and self.items == other.items
        return self.items == other.items and bool(np.array_equal(self.sums, other.sums))
