"""Range methods: from the statistic of a value to the range its grid should cover.

All read the same statistic, so that one calibration run serves them all. Each returns (low, high), units of the value,
with ``min ≤ low ≤ 0 ≤ high ≤ max`` for the exact extrema widened to hold zero.

Exact zeros, which the histogram counts apart, have no error on any grid. `percentile` counts them as the elements they
are; `entropy` and `mse`, which weigh resolution, leave them out: the half or more of zeros behind a ReLU says nothing
about where resolution is needed, and as a spike in one bin it would dominate a divergence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError, RecipeError
from onnxq.stats.histogram import HALF
from onnxq.stats.value_statistic import ValueStatistic

DEFAULT_PERCENTILE = 99.99

_ENTROPY_THRESHOLDS = 512
_NOISE = 0.772
_INSIDE = 0.9
_COUNTED_LEVELS = 1024
_FEW_LEVELS = 32
_SHRINK = 0.82
_SHRINKS = 24
_LOWEST_PERCENTILE, _HIGHEST_PERCENTILE = 50.0, 100.0

Range = tuple[float, float]
RangeMethod = Callable[[ValueStatistic, TensorSpec, float], Range]


def _ends(statistic: ValueStatistic) -> Range:
    """Exact extrema, widened to hold zero; (0, 0) where nothing finite was seen."""
    low, high = statistic.low, statistic.high
    return (0.0, 0.0) if low is None or high is None else (min(low, 0.0), max(high, 0.0))


def _clipped(ends: Range, low: float, high: float) -> Range:
    return max(ends[0], low), min(ends[1], high)


def minmax(statistic: ValueStatistic, spec: TensorSpec, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The exact extrema: nothing is clipped. ``spec`` and ``percent`` play no part."""
    del spec, percent
    return _ends(statistic)


def average(statistic: ValueStatistic, spec: TensorSpec, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The mean over samples of each one's smallest and largest element.

    What a moving average of extrema tends to, whatever its constant and the order of the samples, and what onnxruntime
    computes with ``CalibMovingAverage``. ``spec`` and ``percent`` play no part.

    Raises:
        CalibrationError: the statistics are of a time before samples were told apart.
    """
    del spec, percent
    ends = _ends(statistic)
    means = statistic.ends.means
    if means is None:
        if statistic.low is None:
            return ends
        raise CalibrationError(
            "--range average: these statistics have no extrema of single samples; run onnxq calibrate again"
        )
    return max(ends[0], min(means[0], 0.0)), min(ends[1], max(means[1], 0.0))


def percentile(statistic: ValueStatistic, spec: TensorSpec, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The range that holds at least ``percent`` % of the elements.

    Data on both sides of zero loses at most (100 − percent)/2 % at either end, data on one side all of it at its
    one end. For a symmetric grid the percentile is that of the magnitudes. Ends lie on bin edges, outwards. An end
    where less than one sampled element may go stays at the exact extremum.

    Raises:
        RecipeError: the percentile is not above 50 and at most 100.
    """
    if not _LOWEST_PERCENTILE < percent <= _HIGHEST_PERCENTILE:
        raise RecipeError(f"percentile: {percent} is out of range; use more than 50 and at most 100, such as 99.99")
    ends = _ends(statistic)
    histogram = statistic.histogram
    above = histogram.counts[HALF:].copy()
    below = histogram.counts[HALF - 1 :: -1].copy()
    above[0] += histogram.zeros
    total = float(histogram.total)
    spared = total * (1.0 - percent / 100.0)
    grain = (total - histogram.zeros) / max(histogram.sampled, 1)
    if spec.symmetric:
        threshold = _tail_edge(above + below, spared, grain) * histogram.width
        return _clipped(ends, -threshold, threshold)
    if ends[0] < 0.0 < ends[1]:
        spared /= 2.0
    low, high = _tail_edge(below, spared, grain), _tail_edge(above, spared, grain)
    return _clipped(ends, -low * histogram.width, high * histogram.width)


def _tail_edge(counts: Array, spared: float, grain: float) -> float:
    """Outer edge, in bins, of the last bin that must be kept for at most ``spared`` elements to lie beyond it.

    Infinite where ``spared`` is less than ``grain``, the elements that a sampled one stands for.
    """
    if spared < grain:
        return np.inf
    tail = np.cumsum(counts[::-1])[::-1]  # elements in this bin and beyond
    return float(np.count_nonzero(tail > spared))


def entropy(statistic: ValueStatistic, spec: TensorSpec, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The range whose quantized distribution is closest to the original, by KL divergence.

    A threshold T grows out from zero, bin by bin (in at most 512 steps). The window is [−T, T], cut to the extrema if
    the grid is affine: once T has passed the nearer extremum only the other side still grows, so one-sided data has
    the window [0, T] and no level is spent on the empty side. For each T the reference P is the window's histogram
    with what lies outside added to its outermost bins that are not empty; the candidate Q is the window divided into
    as many equal parts as the grid has levels, each part's count spread evenly over its bins that are not empty.
    Windows that hold less than nine tenths of the elements are left out: where most of P is what was clipped, a Q of
    few bins can match it and say nothing.

    A histogram of a finite sample is ragged where the density is smooth, and the divergence of that noise grows with
    the window: uncorrected, it makes small samples ask for clipping. Its expectation is subtracted, and of all T
    within one standard error of the smallest KL(P‖Q) the largest wins. Exact zeros are left out on both sides.

    With fewer than twice as many counted elements (zeros aside) as levels, or no more bins than levels (16-bit
    grids), a divergence says nothing and the extrema are returned. ``percent`` plays no part.

    References:
        Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    del percent
    ends = _ends(statistic)
    histogram = statistic.histogram
    levels = spec.qmax - spec.qmin + 1
    if histogram.sampled < 2 * levels:
        return ends
    extrema = _in_bins(ends, histogram.width)
    thresholds, divergences, errors = kl_divergences(
        histogram.counts, histogram.sampled, extrema, levels, spec.symmetric
    )
    if not thresholds.size:
        return ends
    best = int(np.argmin(divergences))
    near = divergences <= divergences[best] + errors[best]
    threshold = float(thresholds[near][-1]) * histogram.width
    return _clipped(ends, -threshold, threshold)


def _in_bins(ends: Range, width: float) -> Range:
    return ends[0] / width, ends[1] / width


def kl_divergences(
    counts: Array, sampled: int, ends: Range, levels: int, symmetric: bool
) -> tuple[Array, Array, Array]:
    """KL(P‖Q) of every threshold that `entropy` considers, less what sampling noise contributes.

    Q is constant on a part, so its divergence needs only sums over parts, which differences of running sums give: the
    cost is thresholds × levels, whatever the number of bins.

    For n counts spread evenly by chance over m occupied bins the noise is n·KL ≈ (m − 1)/2 · (1 − exp(−0.772·(n/m −
    1))): the classical (m − 1)/2 of a χ² where bins are well filled, none where each holds one element (fitted to the
    Poisson expectation to within 2 % of (m − 1)/2).

    Args:
        counts: int64, (2·HALF,), zeros aside.
        sampled: elements that the counts come from.
        ends: extrema in bins.
        levels: of the grid.
        symmetric: whether windows reach as far below zero as above.

    Returns:
        Thresholds, in bins, ascending, int64 (n,); divergences, nats, float64 (n,), inf where a window holds less than
        nine tenths of the elements, or all of its own in one bin that would take what lies outside on both sides; and
        the standard errors of the noise, (n,).
    """
    reach_low, reach_high = int(np.ceil(-ends[0])), int(np.ceil(ends[1]))
    largest = max(reach_low, reach_high)
    if symmetric:
        reach_low = reach_high = largest
    if reach_low + reach_high <= levels or not counts.any():
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    smallest = max(-(-levels // 2), levels - min(reach_low, reach_high))
    steps = min(_ENTROPY_THRESHOLDS, largest - smallest + 1)
    thresholds = np.unique(np.rint(np.linspace(smallest, largest, steps)).astype(np.int64))
    start = HALF - np.minimum(thresholds, reach_low)
    end = HALF + np.minimum(thresholds, reach_high)
    width = end - start

    weight = counts.astype(np.float64)
    mass = _running(weight)
    filled = _running((counts > 0).astype(np.float64))
    edges = start[:, None] - (np.arange(levels + 1) * -width[:, None]) // levels  # rounds up
    parts, bins = np.diff(mass[edges], axis=1), np.diff(filled[edges], axis=1)
    level = np.log(np.maximum(parts, 1.0)) - np.log(np.maximum(bins, 1.0))  # log Q of a bin; empty parts weigh nothing
    inside = mass[end] - mass[start]
    left, right = mass[start], mass[-1] - mass[end]

    position = np.arange(counts.size)
    last = np.maximum.accumulate(np.where(counts > 0, position, -1))[end - 1]
    first = np.minimum.accumulate(np.where(counts > 0, position, counts.size)[::-1])[::-1][start]
    impossible = (inside < _INSIDE * mass[-1]) | ((first == last) & (left > 0) & (right > 0))
    first, last = np.where(inside == 0, start, first), np.where(inside == 0, end - 1, last)

    own = _running(_x_log_x(weight))
    p_log_p = own[end] - own[start] - _x_log_x(weight[first]) - _x_log_x(weight[last])
    p_log_p += _x_log_x(weight[first] + left) + _x_log_x(weight[last] + right)
    row = np.arange(thresholds.size)
    p_log_q = np.einsum("ij,ij->i", parts, level)
    p_log_q += left * level[row, (first - start) * levels // width]
    p_log_q += right * level[row, (last - start) * levels // width]
    divergence = (p_log_p - p_log_q) / mass[-1] - np.log(mass[-1]) + np.log(np.maximum(inside, 1.0))

    freedom = np.maximum(bins - 1.0, 0.0)
    crowd = parts * (sampled / mass[-1]) / np.maximum(bins, 1.0)
    freedom *= -np.expm1(-_NOISE * np.maximum(crowd - 1.0, 0.0))
    degrees = freedom.sum(axis=1)
    divergence -= degrees / (2.0 * sampled)
    return thresholds, np.where(impossible, np.inf, divergence), np.sqrt(2.0 * degrees) / (2.0 * sampled)


def _running(values: Array) -> Array:
    """Sums before each position and after the last, (n + 1,)."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(x: Array) -> Array:
    return np.asarray(x * np.log(np.maximum(x, 1.0)))  # counts: 0 log 0 = 0, and none is below 1


def mse(statistic: ValueStatistic, spec: TensorSpec, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The range with the smallest expected squared error of quantization, rounding and clipping together.

    Searched on a geometric grid of shrunken ends, refined twice around the best. On an affine grid the ends of
    two-sided data shrink independently. Extrema and the ``percentile`` range are candidates too, so the result is
    never worse than theirs by this measure. The error is exact for a density that is constant within bins, and takes
    the real grid, with its rounded zero point, into account; above 1024 levels rounding counts as scale²/12.
    Exact zeros have no error.
    """
    ends = _ends(statistic)
    histogram = statistic.histogram
    if not histogram.counts.any():
        return ends
    extrema = _in_bins(ends, histogram.width)
    error = _ExpectedError(histogram.counts.astype(np.float64), spec)
    others = [extrema, _in_bins(percentile(statistic, spec, percent), histogram.width)]
    if spec.symmetric:
        low, high = _search_symmetric(error, extrema)
    else:
        low, high = _search(error, extrema)
    lows, highs = (np.array(column) for column in zip(*others, (low, high), strict=True))
    best = int(np.argmin(error.exact(lows, highs)))
    return _clipped(ends, float(lows[best]) * histogram.width, float(highs[best]) * histogram.width)


def _search(error: _ExpectedError, extrema: Range) -> Range:
    """Best ends when both may shrink independently; an end at zero stays there."""
    centre, step, count = np.zeros(2), np.log(_SHRINK), _SHRINKS
    for stage in range(3):
        offsets = np.arange(count) if stage == 0 else np.arange(-3, 4)
        axes = [
            np.minimum(middle + step * offsets, 0.0) if end else np.zeros(1)
            for middle, end in zip(centre, extrema, strict=True)
        ]
        lows = extrema[0] * np.exp(axes[0])[:, None]
        highs = extrema[1] * np.exp(axes[1])[None, :]
        cost = error.approximate(lows, highs) if stage == 0 and error.levels > _FEW_LEVELS else error.exact(lows, highs)
        row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
        centre = np.array([axes[0][row], axes[1][column]])
        step = step / 3.0
    return float(extrema[0] * np.exp(centre[0])), float(extrema[1] * np.exp(centre[1]))


def _search_symmetric(error: _ExpectedError, extrema: Range) -> Range:
    """Best ends when one threshold cuts both."""
    largest = max(-extrema[0], extrema[1])
    centre, step = 0.0, np.log(_SHRINK)
    for stage in range(3):
        offsets = np.arange(_SHRINKS) if stage == 0 else np.arange(-3, 4)
        shrinks = np.minimum(centre + step * offsets, 0.0)
        thresholds = largest * np.exp(shrinks)
        cost = error.exact(np.maximum(-thresholds, extrema[0]), np.minimum(thresholds, extrema[1]))
        centre = float(shrinks[int(np.argmin(cost))])
        step = step / 3.0
    threshold = float(largest * np.exp(centre))
    return max(-threshold, extrema[0]), min(threshold, extrema[1])


class _ExpectedError:
    """Summed squared error of quantizing a histogram, for many ranges at once; all lengths are in bins.

    With levels v_0 … v_L one scale s apart and cell borders b_l between them, the error is
    ∫(x − v_L)² dμ − 2s·Σ F(b_l), F(b) = ∫_{x<b} (b − x) dμ: one function, read at the borders, does all.
    """

    def __init__(self, weight: Array, spec: TensorSpec) -> None:
        self.spec = spec
        self.levels = spec.qmax - spec.qmin + 1
        self.weight = weight
        edge = np.arange(-HALF, HALF, dtype=np.float64)
        self.mass = _running(weight)
        self.first = _running(weight * (edge + 0.5))
        self.second = _running(weight * (edge * (edge + 1.0) + 1.0 / 3.0))
        self.ramp = np.arange(-HALF, HALF + 1) * self.mass - self.first

    def _locate(self, x: Array) -> tuple[Array, Array]:
        """Bin and place within it, 0 to 1."""
        position = np.clip(x, -HALF, HALF) + HALF
        index = np.minimum(position.astype(np.intp), 2 * HALF - 1)
        return index, position - index

    def _grid(self, lows: Array, highs: Array) -> tuple[Array, Array]:
        """Scale and value of the lowest level of each range's grid, as `params_from_range` would have them."""
        spec = self.spec
        if spec.symmetric:
            scale = np.maximum(-lows / (spec.midpoint - spec.qmin), highs / (spec.qmax - spec.midpoint))
            return scale, (spec.qmin - spec.midpoint) * scale
        scale = (highs - lows) / (spec.qmax - spec.qmin)
        zero_point = np.clip(np.rint(spec.qmin - lows / scale), spec.qmin, spec.qmax)
        return scale, (spec.qmin - zero_point) * scale

    def exact(self, lows: Array, highs: Array) -> Array:
        """Error of each range; shapes broadcast."""
        if self.levels > _COUNTED_LEVELS:
            return self.approximate(lows, highs)
        lows, highs = np.broadcast_arrays(lows, highs)
        scale, bottom = self._grid(lows, highs)
        borders = bottom[..., None] + scale[..., None] * (np.arange(self.levels - 1) + 0.5)
        index, part = self._locate(borders)
        ramp = self.ramp[index] + part * (self.mass[index] + 0.5 * part * self.weight[index])
        beyond = np.maximum(borders - HALF, 0.0)  # the ramp goes on with slope 1 outside the histogram
        ramp += beyond * self.mass[-1]
        top = bottom + scale * (self.levels - 1)
        around_top = self.second[-1] - 2.0 * top * self.first[-1] + top**2 * self.mass[-1]
        return np.asarray(around_top - 2.0 * scale * ramp.sum(axis=-1))

    def approximate(self, lows: Array, highs: Array) -> Array:
        """The same with scale²/12 for rounding; the cost does not depend on the number of levels."""
        scale, bottom = self._grid(*np.broadcast_arrays(lows, highs))
        top = bottom + scale * (self.levels - 1)
        below, above = self._moments(bottom), self._moments(top)
        clipped = below[2] - 2.0 * bottom * below[1] + bottom**2 * below[0]
        total = self.mass[-1], self.first[-1], self.second[-1]
        beyond = [whole - part for whole, part in zip(total, above, strict=True)]
        clipped = clipped + (beyond[2] - 2.0 * top * beyond[1] + top**2 * beyond[0])
        return np.asarray(clipped + (above[0] - below[0]) * scale**2 / 12.0)

    def _moments(self, x: Array) -> tuple[Array, Array, Array]:
        """∫ dμ, ∫ x dμ and ∫ x² dμ up to each ``x``."""
        index, part = self._locate(x)
        edge, weight = index - float(HALF), self.weight[index] * part
        first = self.first[index] + weight * (edge + part / 2.0)
        second = self.second[index] + weight * (edge * (edge + part) + part**2 / 3.0)
        return self.mass[index] + weight, first, second


RANGE_METHODS: dict[str, RangeMethod] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "average": average,
}
"""By the name that recipes and the command line use."""


def compute_range(
    statistic: ValueStatistic, spec: TensorSpec, method: str, *, percentile: float = DEFAULT_PERCENTILE
) -> Range:
    """The range of a value by a named method.

    Args:
        statistic: of the value.
        spec: the grid; its number of levels and its symmetry matter.
        method: a key of `RANGE_METHODS`.
        percentile: for ``percentile``, in percent.

    Returns:
        (low, high), units of the value, ``low ≤ 0 ≤ high``, inside the exact extrema (widened to hold zero);
        (0, 0) where nothing finite was seen.

    Raises:
        RecipeError: there is no such method, or the percentile makes no sense.
    """
    if method not in RANGE_METHODS:
        raise RecipeError(f"range method '{method}' is unknown; use one of {', '.join(RANGE_METHODS)}")
    return RANGE_METHODS[method](statistic, spec, percentile)
