"""Signal, noise and clipping of one value, summed over samples."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.graph.views.apart.isolated_units import ActivationGrid, Unit

_SAMPLED = 1 << 16
"""Elements of a value, evenly spaced, that tell its error in one sample: enough for a tenth of a dB."""


class ErrorSum:
    """Signal and noise of one value, summed over samples; elements that are not finite in float are left out."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: Array, actual: Array) -> None:
        """Count the elements of a value in one sample; arrays of other shapes are no pair and do not count."""
        if reference.shape != actual.shape:
            return
        left = np.asarray(reference, np.float32)
        error = np.asarray(actual, np.float32) - left
        with np.errstate(over="ignore", invalid="ignore"):  # said of below
            signal, noise = float(left @ left), float(error @ error)
        if not (math.isfinite(signal) and math.isfinite(noise)):
            finite = np.isfinite(left)
            left, error = left[finite].astype(np.float64), error[finite].astype(np.float64)
            error = np.nan_to_num(error, nan=np.inf)
            signal, noise = float(left @ left), float(error @ error)
        self.signal += signal
        self.noise += noise

    @property
    def db(self) -> float:
        """SQNR in dB."""
        return decibels(self.signal, self.noise)


class SeenRange:
    """What a value held, and how much of it a grid clips and rounds."""

    def __init__(self, grid: ActivationGrid) -> None:
        self._grid = grid
        self.low, self.high = math.inf, -math.inf
        self.clipped = self.count = 0
        self.clip_noise = 0.0

    def add(self, array: Array) -> None:
        """Count the elements of the float value in one sample."""
        if array.size == 0:
            return
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            array = array[np.isfinite(array)]
            if array.size == 0:
                return
            low, high = float(array.min()), float(array.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        array = some(array)
        self.count += array.size
        grid = self._grid
        if low < grid.low - grid.scale / 2 or high > grid.high + grid.scale / 2:
            beyond = array - np.clip(array, grid.low, grid.high)
            outside = np.abs(beyond) > grid.scale / 2
            self.clipped += int(np.count_nonzero(outside))
            self.clip_noise += float(np.square(beyond[outside], dtype=np.float64).sum())

    @property
    def rounding_noise(self) -> float:
        """Expected noise of rounding alone: scale²/12 an element."""
        return self._grid.scale**2 / 12.0 * self.count


def some(array: Array) -> Array:
    """Evenly spaced elements of an array, all where it is small; (elements,)."""
    flat = array.reshape(-1)
    step = -(-flat.size // _SAMPLED)
    return flat if step <= 1 else flat[:: step + 1 - step % 2]  # odd, so that no axis of even length is skipped over


def as_real(array: Array, unit: Unit) -> Array:
    """What the integers of a unit's output stand for; floats as they are."""
    if array.dtype.kind not in "iu" or unit.grid is None:
        return array
    return np.asarray((array.astype(np.float32) - unit.grid.zero_point) * np.float32(unit.grid.scale))
