"""Grids of key and value caches: symmetric, a scale a channel, ranges by squared error.

Keys have channels that are large at every token, so that each channel needs its own scale; values mostly have not
(Liu et al., KIVI, arXiv:2402.02750; Hooper et al., KVQuant, arXiv:2401.18079).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels

BITS = {"int8": 8, "int4": 4}
"""Bits of a cached number, by what ``--kv-cache`` takes."""

_SHARES = np.linspace(1.0, 0.3, 29)
"""Of the largest magnitude, the ranges that are tried."""


@dataclass(frozen=True, eq=False)
class CacheGrid:
    """How a cache is stored: ``x ≈ scale · q`` with q in −2^(bits−1) … 2^(bits−1) − 1.

    Attributes:
        bits: 8, or 4: then two numbers share a byte, the first in its lower half, 8 added to each.
        scale: float32, (1, heads, 1, size). A negative one gives the level more below zero to the positive end.
        shared: "channel", or "tensor" where all scales are one.
        error_db: signal to noise on the rows that the grid was found on.
    """

    bits: int
    scale: Array
    shared: str
    error_db: float

    def quantize(self, cache: Array) -> Array:
        """A cache as the operator stores it; float, (batch, heads, tokens, size)."""
        low, high = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        levels = np.clip(np.rint(cache.astype(np.float32) / self.scale), low, high)
        if self.bits == 8:
            return levels.astype(np.int8)
        halves = (levels + 8).astype(np.uint8)
        packed: Array = halves[..., 0::2] | (halves[..., 1::2] << np.uint8(4))
        return packed

    def dequantize(self, stored: Array) -> Array:
        """What a stored cache stands for, float32, (batch, heads, tokens, size)."""
        if self.bits == 8:
            return stored.astype(np.float32) * self.scale
        levels = np.empty((*stored.shape[:-1], 2 * stored.shape[-1]), np.float32)
        levels[..., 0::2], levels[..., 1::2] = stored & 15, stored >> 4
        return (levels - 8.0) * self.scale


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """Angles that an operator turns pairs of channels by, for each position.

    Attributes:
        cos: (positions, pairs).
        sin: the same.
        interleaved: pairs are neighbours; else channel i goes with channel i + pairs.
    """

    cos: Array
    sin: Array
    interleaved: bool


def at_other_positions(rows: Array, table: RotaryTable, seed: int = 0) -> Array:
    """Keys as they would be stored further on in a text, which samples may never reach.

    A pair that turns slowly lies in another direction there, and each of its channels has another range. Positions are
    drawn evenly by their logarithm over all of the table.

    Args:
        rows: float32, (rows, heads, size), turned as at their own positions.
        table: of the operator; it may turn the first channels of a head alone.
        seed: of the positions.
    """
    positions, pairs = table.cos.shape
    drawn = np.random.default_rng(seed).uniform(0.0, np.log(max(positions - 1, 1)), len(rows))
    by = np.exp(drawn).astype(np.int64)
    cos, sin = (angles[by][:, None].astype(np.float32) for angles in (table.cos, table.sin))
    found: Array = rows.copy()
    one, other = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if table.interleaved
        else (slice(pairs), slice(pairs, 2 * pairs))
    )
    found[..., one] = rows[..., one] * cos - rows[..., other] * sin
    found[..., other] = rows[..., other] * cos + rows[..., one] * sin
    return found


def fit_grid(rows: Array, peaks: Array, bits: int, *, tensor: bool = False) -> CacheGrid:
    """The grid of a cache with the smallest squared error.

    Args:
        rows: float32, (rows, heads, size): some of what was stored.
        peaks: (heads, size), the largest magnitude of everything that was.
        bits: 8 or 4.
        tensor: one scale for all may be taken where it loses less: found on every other row and judged on the others,
            since what a channel gains by a scale of its own may be chance.
    """
    own = _scales(rows, peaks, bits)
    shared = "channel"
    if tensor and len(rows) >= 4:
        half, other = rows[0::2], rows[1::2]
        one = _one_scale(half, float(peaks.max()), bits)
        if _noise(other, one, bits) <= _noise(other, _scales(half, peaks, bits), bits):
            own, shared = _one_scale(rows, float(peaks.max()), bits), "tensor"
    noise = _noise(rows, own, bits)
    signal = float(np.square(rows, dtype=np.float64).sum())
    return CacheGrid(bits, own[None, :, None, :].astype(np.float32), shared, decibels(signal, noise))


def _candidates(bits: int) -> list[float]:
    """Scales to try, in units of the largest magnitude."""
    positive = [share / ((1 << (bits - 1)) - 1) for share in _SHARES]
    return positive + ([-step for step in positive] if bits < 8 else [])


def _scales(rows: Array, peaks: Array, bits: int) -> Array:
    """(heads, size): of each channel the scale with the smallest squared error."""
    peaks = np.where(peaks > 0, peaks, 1.0).astype(np.float32)
    best = np.full(peaks.shape, np.inf)
    found = peaks / ((1 << (bits - 1)) - 1)
    for step in _candidates(bits):
        scale = peaks * np.float32(step)
        error = np.square(_rounded(rows, scale, bits) - rows, dtype=np.float32).sum(axis=0, dtype=np.float64)
        better = error < best
        best, found = np.where(better, error, best), np.where(better, scale, found)
    return found


def _one_scale(rows: Array, peak: float, bits: int) -> Array:
    scales = [np.float32((peak or 1.0) * step) for step in _candidates(bits)]
    errors = [_noise(rows, np.full(rows.shape[1:], scale, np.float32), bits) for scale in scales]
    return np.full(rows.shape[1:], scales[int(np.argmin(errors))], np.float32)


def _rounded(rows: Array, scale: Array, bits: int) -> Array:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return np.clip(np.rint(rows / scale), low, high) * scale


def _noise(rows: Array, scale: Array, bits: int) -> float:
    return float(np.square(_rounded(rows, scale, bits) - rows, dtype=np.float64).sum())
