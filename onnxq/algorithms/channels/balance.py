"""SmoothQuant's scales: divide the channels of an activation and multiply the weights that read them.

One scale serves a whole tensor or row of activations, so that a channel with large numbers makes all others coarse;
weights have a scale for each output, and no such trouble. Dividing channel j by s_j and multiplying row j of the
weights by it leaves the product as it is and moves the difficulty over.

References:
    Xiao et al., SmoothQuant, arXiv:2211.10438, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.affine import fake_quantize, params_for
from onnxq.core.dtypes import Array
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError

ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Exponents that a search tries, besides leaving everything as it is."""

_LARGEST = 1e4
"""No channel is scaled by more than this relative to the mean, so that nothing leaves the range of float32."""

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of a tensor's range that a search tries."""

_SMALLEST = 1e-30

_USUAL, _AS_GOOD = 0.5, 1.1
"""The exponent that the paper recommends, and how much larger an error may be that counts as equal."""


@dataclass(frozen=True, eq=False)
class Balance:
    """What a search found.

    Attributes:
        alpha: the exponent; None where leaving everything as it is was best.
        scales: float64, (channels,), what the channels are to be divided by.
        error: share of noise in the layers' outputs on rows that were held out, summed over the layers.
        plain: the same without scales.
    """

    alpha: float | None
    scales: Array
    error: float
    plain: float


def smooth_scales(peaks: Array, weights: Sequence[Array], alpha: float, tied: Array | None = None) -> Array:
    """s_j = max|x_j|^α / max|w_j|^(1−α), over all layers that read the channel.

    Args:
        peaks: (channels,), largest magnitude of each channel.
        weights: each (out, channels).
        alpha: in 0…1; the larger, the more difficulty moves to the weights.
        tied: int, (channels,), channels with the same number share a scale (those of one key-value head); None for
            none.

    Returns:
        float64, (channels,), positive, with a geometric mean of 1 over the channels that are in use; others have 1.

    Raises:
        CalibrationError: magnitudes do not fit the weights or are not finite.
    """
    highest = peaks.astype(np.float64)
    channels = highest.size
    if highest.ndim != 1 or any(weight.ndim != 2 or weight.shape[1] != channels for weight in weights):
        raise CalibrationError(
            f"smooth: magnitudes of shape {highest.shape} do not fit weights of shapes "
            f"{', '.join(str(weight.shape) for weight in weights)}; pass one for each input"
        )
    if not np.isfinite(highest).all():
        raise CalibrationError("smooth: magnitudes hold NaN or infinite entries; check the calibration samples")
    read = np.zeros(channels)
    for weight in weights:
        read = np.maximum(read, np.abs(weight).max(axis=0, initial=0.0))
    if tied is not None:
        highest, read = (_highest_of(tied, array) for array in (highest, read))
    used = (highest > 0) & (read > 0) & np.isfinite(read)
    scales = np.ones(channels)
    if used.any():
        logs = alpha * np.log(highest[used]) - (1.0 - alpha) * np.log(read[used])
        logs -= logs.mean()
        scales[used] = np.exp(np.clip(logs, -np.log(_LARGEST), np.log(_LARGEST)))
    return scales


def _highest_of(tied: Array, array: Array) -> Array:
    found = np.zeros(int(tied.max(initial=0)) + 1)
    np.maximum.at(found, tied, array)
    return np.asarray(found[tied])


def search_balance(
    weights: Sequence[Array],
    specs: Sequence[TensorSpec],
    rows: Array,
    peaks: Array,
    *,
    by_row: bool,
    tied: Array | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Balance:
    """The exponent with the smallest error of the layers' outputs, both operands rounded to 8 bits.

    The error is that on rows which made neither the scales nor the range: half of the rows makes them and the other
    half judges, and the other way round. Scales that even out the very rows they come from always look good on those,
    and of a few rows they clip the next ones.

    Of those within a tenth of it, the one nearest to 0.5 is taken: it fits the samples less closely, and leaves more
    room for what they do not show.

    Args:
        weights: float32, each (out, channels): the layers that are quantized.
        specs: the grid of each, for (out, channels).
        rows: float32, (rows, channels), finite: inputs to try on, sample by sample.
        peaks: (channels,), largest magnitude of each channel over all samples.
        by_row: activations have a scale for each row, not one for the tensor.
        tied: see `smooth_scales`.
        alphas: exponents to try.

    Raises:
        CalibrationError: rows or magnitudes do not fit the weights, or are not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != peaks.size or not np.isfinite(rows).all():
        raise CalibrationError(f"smooth: rows of shape {rows.shape} do not fit {peaks.size} inputs or are not finite")
    folds = _folds(rows)
    targets = [[judged @ weight.T for weight in weights] for _, judged in folds]

    def error_of(alpha: float | None) -> float:
        total = 0.0
        for (seen, judged), wanted in zip(folds, targets, strict=True):
            scales = np.ones(peaks.size)
            if alpha is not None:
                scales = smooth_scales(np.abs(seen).max(axis=0, initial=0.0), weights, alpha, tied)
            moved = _rounded((judged / scales).astype(np.float32), (seen / scales).astype(np.float32), by_row)
            for weight, spec, target in zip(weights, specs, wanted, strict=True):
                scaled = (weight * scales).astype(np.float32)
                lost = moved @ fake_quantize(scaled, params_for(scaled, spec)).T - target
                total += float(np.vdot(lost, lost)) / max(float(np.vdot(target, target)), 1e-30)
        return total / len(folds)

    plain = error_of(None)
    tried = [Balance(None, np.ones(peaks.size), plain, plain)]
    for alpha in alphas:
        tried.append(Balance(alpha, smooth_scales(peaks, weights, alpha, tied), error_of(alpha), plain))
    best = min(tried, key=lambda balance: balance.error)
    if best.alpha is None:
        return best
    close = [balance for balance in tried if balance.alpha is not None and balance.error <= best.error * _AS_GOOD]
    return min(close, key=lambda balance: abs((balance.alpha or 0.0) - _USUAL))


def _folds(rows: Array) -> list[tuple[Array, Array]]:
    """(rows that make scales and ranges, rows that judge them): each half once.

    Rows come sample by sample, so that halves are of different samples. A single row can only judge itself.
    """
    half = len(rows) // 2
    if not half:
        return [(rows, rows)]
    return [(rows[:half], rows[half:]), (rows[half:], rows[:half])]


def _rounded(rows: Array, seen: Array, by_row: bool) -> Array:
    """Rows after rounding: symmetric by row, or on the tensor's grid of least squared error on ``seen``."""
    if by_row:
        steps = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / 127.0, _SMALLEST)
        return np.asarray(np.rint(rows / steps) * steps, np.float32)
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    best, least = (1.0, 0.0), np.inf
    for share in _SHARES:
        step = max((high - low) * share / 255.0, _SMALLEST)
        first = float(np.rint(low * share / step))
        lost = float(np.square(_on_grid(seen, step, first) - seen).sum())
        if lost < least:
            best, least = (step, first), lost
    return _on_grid(rows, *best)


def _on_grid(rows: Array, step: float, first: float) -> Array:
    levels = np.clip(np.rint(rows / np.float32(step)), first, first + 255)
    return np.asarray(levels * np.float32(step), np.float32)


__all__ = ["ALPHAS", "Balance", "search_balance", "smooth_scales"]
