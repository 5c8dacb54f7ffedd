"""Even out the channels of activations that share one grid, by what a few samples show of them.

A grid's step follows the largest channel; what the small ones lose is seen where a layer weighs them. Dividing channel
c by s_c before rounding and multiplying what reads it by s_c leaves the float function as it is. With weights of one
scale for each output, that costs accuracy only where one output reads channels whose factors differ.

References:
    Nagel et al., arXiv:1906.04721, section 4.1; Xiao et al., SmoothQuant, arXiv:2211.10438, equation 4, whose scales
    these are, with convolutions as readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Exponents that are tried, besides leaving everything as it is."""

_ENOUGH = 0.7
"""Share of the error without factors below which that with them has to fall."""

_LEAST_PEAK = 2.0**-10
"""Channels that stay below this share of the largest one count as that large: silent ones are not blown up."""

_LARGEST = 2.0**8
"""No channel is scaled by more than this relative to the mean."""

_SHARES = (1.0, 0.8, 0.6)
"""Shares of the range that a grid may have; the best of them is taken, as calibration does."""

_LEVELS, _WEIGHT_LEVELS = 255, 127


@dataclass(frozen=True, eq=False)
class ReadingLayer:
    """A layer that reads channels.

    Attributes:
        peaks: float64, (outputs, inputs of each), the largest magnitude over the kernel.
        powers: the same shape, sums of squares over the kernel.
        kernel: elements of the kernel.
        groups: blocks of outputs that read different channels.
    """

    peaks: Array
    powers: Array
    kernel: int
    groups: int

    @classmethod
    def of(cls, weight: Array, groups: int) -> ReadingLayer:
        """From (outputs, inputs of each, kernel)."""
        magnitudes = np.abs(weight.astype(np.float64))
        return cls(magnitudes.max(axis=2, initial=0.0), np.square(magnitudes).sum(axis=2), weight.shape[2], groups)


@dataclass(frozen=True, eq=False)
class SampleExtremes:
    """What some samples showed of a value.

    Attributes:
        rows: float32, (rows, channels): what it was at some places.
        lowest: (channels,), over all places.
        highest: likewise.
    """

    rows: Array
    lowest: Array
    highest: Array

    @property
    def peaks(self) -> Array:
        """(channels,), largest magnitude."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))

    def joined(self, other: SampleExtremes) -> SampleExtremes:
        """What both showed together."""
        return SampleExtremes(
            np.concatenate([self.rows, other.rows]),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
        )


@dataclass(frozen=True, eq=False)
class SharedValue:
    """A value that layers read on one grid.

    Attributes:
        parts: what it was in two halves of the samples; the same one twice where there is one sample.
        factors: int, (channels,), the number of each channel's factor; −1 where it has to stay as it is.
        weights: of its readers.
    """

    parts: tuple[SampleExtremes, SampleExtremes]
    factors: Array
    weights: tuple[ReadingLayer, ...]

    def along(self, scales: Array) -> Array:
        """The scale of each channel."""
        return np.where(self.factors >= 0, scales[self.factors], 1.0)

    def peaks(self, parts: Sequence[int]) -> Array:
        """(channels,), largest magnitude in some of the parts."""
        return np.asarray(np.max([self.parts[part].peaks for part in parts], axis=0))


@dataclass(frozen=True, eq=False)
class Evened:
    """What a search found.

    Attributes:
        alpha: the exponent; None where leaving everything as it is was best.
        scales: float64, what the channels of each factor are divided by.
        error: share of noise in what the layers give, in the mean over them, on rows that were held out.
        plain: the same without scales.
    """

    alpha: float | None
    scales: Array
    error: float
    plain: float


def even_scales(values: Sequence[SharedValue], count: int, alpha: float, parts: Sequence[int] = (0, 1)) -> Array:
    """Scales max|x|^α / max|w|^(1−α), one for each factor, over all values and weights that it scales.

    Layers that read each channel by itself (depthwise) have a scale for each weight and do not count.

    Args:
        values: that the factors scale.
        count: of the factors.
        alpha: in 0…1; the larger, the more difficulty moves to the weights.
        parts: which halves of the samples are looked at.

    Returns:
        float64, (count,), positive, of geometric mean 1 where anything was seen.
    """
    peaks, read = np.zeros(count), np.zeros(count)
    for value in values:
        used = value.factors >= 0
        np.maximum.at(peaks, value.factors[used], value.peaks(parts)[used].astype(np.float64))
        for weight in value.weights:
            if weight.peaks.shape[1] > 1:
                by_input = _by_input(weight.peaks, weight.groups).max(axis=1, initial=0.0)
                np.maximum.at(read, value.factors[used], by_input[used])
    highest = float(peaks.max(initial=0.0))
    if not (np.isfinite(highest) and highest > 0):
        return np.ones(count)
    peaks = np.maximum(peaks, highest * _LEAST_PEAK)
    logs = alpha * np.log(peaks)
    if read.any():
        logs -= (1.0 - alpha) * np.log(np.maximum(read, float(read.max()) * _LEAST_PEAK))
    logs -= logs.mean()
    return np.asarray(np.exp(np.clip(logs, -np.log(_LARGEST), np.log(_LARGEST))))


def search_even(values: Sequence[SharedValue], count: int, alphas: Sequence[float] = ALPHAS) -> Evened:
    """The exponent with the least noise in what the layers give.

    Noise of activations is that of 8 bits on one grid for the tensor. One half of the samples makes scales and grids
    and the other half judges, and the other way round: scales that even out the very samples they come from always look
    good on those. Noise of weights is that of a symmetric 8-bit grid for each output. Noise counts as independent
    between places and channels.

    Args:
        values: that the factors scale.
        count: of the factors.
        alphas: exponents to try.
    """
    plain = _error(values, count, None)
    best = Evened(None, np.ones(count), plain, plain)
    for alpha in alphas:
        error = _error(values, count, alpha)
        if error < min(best.error, _ENOUGH * plain):
            best = Evened(alpha, even_scales(values, count, alpha), error, plain)
    return best


def _by_input(array: Array, groups: int) -> Array:
    """(outputs, inputs of each) as (inputs, outputs of each)."""
    outputs, each = array.shape
    grouped = array.reshape(groups, outputs // groups, each)
    return np.moveaxis(grouped, 2, 1).reshape(groups * each, outputs // groups)


def _error(values: Sequence[SharedValue], count: int, alpha: float | None) -> float:
    found = []
    for made, judged in ((0, 1), (1, 0)):
        scales = np.ones(count) if alpha is None else even_scales(values, count, alpha, (made,))
        for value in values:
            along = value.along(scales)
            rows = value.parts[judged].rows
            noise = _rounding_noise(rows, value.parts[made], along)
            power, spread = np.square(rows, dtype=np.float64).mean(axis=0), rows.var(axis=0, dtype=np.float64)
            found += [_share(weight, along, noise, power, spread) for weight in value.weights]
    return float(np.mean(found)) if found else 0.0


def _share(weight: ReadingLayer, along: Array, noise: Array, power: Array, spread: Array) -> float:
    """Noise against signal in what a layer gives, in the mean over its groups; all of it is the most."""
    groups, each = weight.groups, weight.peaks.shape[1]
    apart = (groups, 1, each)
    powers = weight.powers.reshape(groups, -1, each)
    steps = (weight.peaks.reshape(powers.shape) * along.reshape(apart)).max(axis=2) / _WEIGHT_LEVELS
    lost = (powers * noise.reshape(apart)).sum(axis=(1, 2))
    rounded = weight.kernel * (spread / np.square(along)).reshape(groups, each).sum(axis=1)
    lost += np.square(steps).sum(axis=1) / 12.0 * rounded
    signal = (powers * power.reshape(apart)).sum(axis=(1, 2))
    heard = signal > 0
    return float(np.minimum(lost[heard] / signal[heard], 1.0).mean()) if heard.any() else 0.0


def _rounding_noise(rows: Array, seen: SampleExtremes, along: Array) -> Array:
    """Mean square of what rounding changes in each channel, on the grid of least error on samples that were seen."""
    scaled = [(array / along).astype(np.float32) for array in (rows, seen.rows)]
    low, high = min(float((seen.lowest / along).min()), 0.0), max(float((seen.highest / along).max()), 0.0)
    if high <= low:
        return np.zeros(rows.shape[1])
    best, least = (1.0, 0.0), np.inf
    for share in _SHARES:
        step = (high - low) * share / _LEVELS
        first = float(np.rint(low * share / step))
        lost = float(np.square(_on_grid(scaled[1], step, first) - scaled[1]).sum())
        if lost < least:
            best, least = (step, first), lost
    lost_here = np.square(_on_grid(scaled[0], *best) - scaled[0], dtype=np.float64).mean(axis=0)
    return np.asarray(lost_here * np.square(along))


def _on_grid(rows: Array, step: float, first: float) -> Array:
    levels = np.clip(np.rint(rows / np.float32(step)), first, first + _LEVELS)
    return np.asarray(levels * np.float32(step), np.float32)
