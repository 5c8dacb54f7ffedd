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

from onnxq.algorithms.awq import check_moments, output_loss
from onnxq.core.affine import params_for
from onnxq.core.dtypes import Array
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError

ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Exponents that a search tries, besides leaving everything as it is."""

_LARGEST = 1e4
"""No channel is scaled by more than this relative to the mean, so that nothing leaves the range of float32."""

_MOMENT = 8
"""The largest of the channels of a row is estimated by this norm over the channels' standard deviations."""


@dataclass(frozen=True, eq=False)
class Balance:
    """What a search found.

    Attributes:
        alpha: the exponent; None where leaving everything as it is was best.
        scales: float64, (channels,), what the channels are to be divided by.
        error: estimated share of noise in the layers' outputs, summed over the layers.
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
            f"{', '.join(str(weight.shape) for weight in weights)}; give one for each input"
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
    moment: Array,
    peaks: Array,
    *,
    by_row: bool,
    tied: Array | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Balance:
    """The exponent with the smallest estimated error of the layers' outputs.

    The error of the weights is exact over the samples, tr(E H Eᵀ). That of the activations is taken as independent of
    them and uniform: Δ²/12 for each channel, or the channel's own power where that is less, because what is below half
    a step becomes zero. A step Δ is 2·max/255 of the tensor, or 1/127 of a row's largest channel, which is estimated
    from the channels' powers.

    Args:
        weights: float32, each (out, channels): the layers that are quantized.
        specs: the grid of each, for (out, channels).
        moment: (channels, channels), E[xxᵀ] of the input, or a multiple of it, ``peaks`` excepted: it has to be E.
        peaks: (channels,), largest magnitude of each channel.
        by_row: activations have a scale for each row, not one for the tensor.
        tied: see `smooth_scales`.
        alphas: exponents to try.

    Raises:
        CalibrationError: the statistics do not fit the weights or are not finite.
    """
    channels = peaks.size
    check_moments(moment, channels, 2, "smooth")
    exact = moment.astype(np.float64)
    powers = np.maximum(np.diagonal(exact), 0.0)
    signals = [max(float(np.vdot(weight @ exact, weight)), 1e-30) for weight in weights]
    hessian = exact.astype(np.float32)

    def error_of(scales: Array) -> float:
        inverse = (1.0 / scales).astype(np.float32)
        step = _step(powers / scales**2, peaks / scales, by_row)
        noise = np.minimum(step**2 / 12.0, powers / scales**2)
        total = 0.0
        for weight, spec, signal in zip(weights, specs, signals, strict=True):
            scaled = (weight * scales).astype(np.float32)
            lost = output_loss(scaled, params_for(scaled, spec), hessian, inverse)
            total += (lost + float((scaled.astype(np.float64) ** 2 @ noise).sum())) / signal
        return total

    plain = error_of(np.ones(channels))
    best = Balance(None, np.ones(channels), plain, plain)
    for alpha in alphas:
        scales = smooth_scales(peaks, weights, alpha, tied)
        error = error_of(scales)
        if error < best.error:
            best = Balance(alpha, scales, error, plain)
    return best


def _step(powers: Array, peaks: Array, by_row: bool) -> float:
    """The step of the grid of activations, for channels of these mean squares and largest magnitudes."""
    highest = float(peaks.max(initial=0.0))
    if not by_row:
        return 2.0 * highest / 255.0
    # E max x_j² ≤ (Σ E|x_j|^p)^(2/p), and E|x|^8 = 105 σ^8 of a normal distribution
    scale = float(powers.max(initial=0.0))
    if scale == 0.0:
        return 0.0
    mean = scale * (105.0 * float(((powers / scale) ** (_MOMENT / 2)).sum())) ** (2.0 / _MOMENT)
    return min(float(np.sqrt(mean)), highest) / 127.0


__all__ = ["ALPHAS", "Balance", "search_balance", "smooth_scales"]
