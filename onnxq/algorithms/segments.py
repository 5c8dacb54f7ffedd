"""One-dimensional k-means on sorted values: the exact optimum, and Lloyd's iteration. Many groups at once.

A cluster on a line is a run of sorted values, so all that is needed of the values are running sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array


@dataclass(frozen=True, eq=False)
class Sorted:
    """Groups of sorted, weighted values.

    Attributes:
        values: float64, (groups, n), rising along each row.
        weight: running sum of the weights, (groups, n + 1), from 0.
        first: running sum of weight · value.
        second: running sum of weight · value².
    """

    values: Array
    weight: Array
    first: Array
    second: Array


def running(values: Array, weights: Array) -> Sorted:
    """Running sums of sorted values, float64."""

    def total(part: Array) -> Array:
        out = np.zeros((part.shape[0], part.shape[1] + 1))
        np.cumsum(part, axis=1, out=out[:, 1:])
        return out

    return Sorted(values, total(weights), total(weights * values), total(weights * values * values))


def count_up_to(ranked: Array, bounds: Array) -> Array:
    """How many values of each row are at or below each bound of that row, int64.

    Args:
        ranked: (groups, n), rising.
        bounds: (groups, m).
    """
    found = np.zeros(bounds.shape, np.int64)
    count = ranked.shape[1]
    rows = np.arange(ranked.shape[0])[:, None]
    step = 1 << max(count.bit_length() - 1, 0)
    while step and count:
        further = found + step
        inside = further <= count
        taken = inside & (ranked[rows, np.minimum(further, count) - 1] <= bounds)
        found = np.where(taken, further, found)
        step >>= 1
    return found


def cost(sums: Sorted, cuts: Array) -> Array:
    """Weighted squared distance to the means of the runs between cuts, (groups,).

    Args:
        sums: the values.
        cuts: (groups, k + 1), from 0 to n, not falling.
    """
    weight, first, second = (np.diff(np.take_along_axis(part, cuts, 1), axis=1) for part in _sums(sums))
    spread = second - np.divide(first * first, weight, out=np.zeros_like(first), where=weight > 0)
    return np.asarray(np.maximum(spread, 0).sum(axis=1))


def _sums(sums: Sorted) -> tuple[Array, Array, Array]:
    return sums.weight, sums.first, sums.second


def masses(sums: Sorted, cuts: Array) -> Array:
    """Weight of each run."""
    return np.diff(np.take_along_axis(sums.weight, cuts, 1), axis=1)


def centres(sums: Sorted, cuts: Array, before: Array) -> Array:
    """Mean of each run, and the value of ``before`` for an empty one."""
    weight, first = (np.diff(np.take_along_axis(part, cuts, 1), axis=1) for part in (sums.weight, sums.first))
    return np.asarray(np.divide(first, weight, out=before.copy(), where=weight > 0))


def quantile_centres(sums: Sorted, entries: int) -> Array:
    """The values at the middle of equal shares of the weight, (groups, entries)."""
    shares = (np.arange(entries) + 0.5) / entries
    at = count_up_to(sums.weight[:, 1:], sums.weight[:, -1:] * shares)
    return np.take_along_axis(sums.values, np.minimum(at, sums.values.shape[1] - 1), 1)


def cuts_of(sums: Sorted, centre: Array) -> Array:
    """The runs of values that are nearest to each of the (rising) centres; half way goes to the lower one."""
    groups, count = sums.values.shape
    middle = count_up_to(sums.values, (centre[:, :-1] + centre[:, 1:]) * 0.5)
    edge = np.zeros((groups, 1), np.int64)
    return np.concatenate([edge, middle, edge + count], axis=1)


def lloyd(sums: Sorted, centre: Array, iterations: int) -> Array:
    """Centres after Lloyd's iteration, (groups, entries), rising; no step raises the cost."""
    cuts = cuts_of(sums, centre)
    for _ in range(iterations):
        centre = centres(sums, cuts, centre)
        following = cuts_of(sums, centre)
        if np.array_equal(following, cuts):
            break
        cuts = following
    return centre


def optimal_cuts(sums: Sorted, places: Array, entries: int) -> Array:
    """The cuts, among given places, whose runs have the least cost, (groups, entries + 1).

    Dynamic programming over runs. The best last cut does not move back as the end moves on, so each layer is solved
    for the middle place first and then for the halves between known cuts, all groups and halves of a depth together:
    O(entries · places · log places).

    Args:
        sums: the values.
        places: int64, (groups, m), from 0 to n, not falling: where a cut may be.
        entries: runs; some may be empty.

    References:
        Grønlund et al., Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D, arXiv:1701.07204.
    """
    weight, first, second = (np.take_along_axis(part, places, 1) for part in _sums(sums))
    groups, count = places.shape
    whole = second - np.divide(first * first, weight, out=np.zeros_like(first), where=weight > 0)
    least = np.maximum(whole, 0.0)
    last = np.zeros((entries, groups, count), np.int32)
    flat = weight.ravel(), first.ravel(), second.ravel()
    for layer in range(1, entries):
        least, last[layer] = _next_layer(flat, least, groups, count)
    cuts = np.zeros((groups, entries + 1), np.int64)
    at = np.full(groups, count - 1)
    cuts[:, entries] = at
    for layer in range(entries - 1, 0, -1):
        at = last[layer, np.arange(groups), at]
        cuts[:, layer] = at
    return np.take_along_axis(places, cuts, 1)


def _next_layer(flat: tuple[Array, Array, Array], before: Array, groups: int, count: int) -> tuple[Array, Array]:
    """(least cost, last cut) of one run more, for every end."""
    weight, first, second = flat
    least = np.zeros((groups, count))
    last = np.zeros((groups, count), np.int32)
    base = (np.arange(groups) * count)[:, None]
    earlier = before.ravel()
    stride = 1 << (count - 1).bit_length()
    while stride:
        ends = np.arange(stride, count, 2 * stride)
        if ends.size:
            low = last[:, ends - stride].astype(np.int64)
            beyond = ends + stride
            known = np.minimum(beyond, count - 1)
            high = np.where(beyond < count, last[:, known], ends)
            high = np.minimum(high, ends)
            widths = (high - low + 1).ravel()
            starts = np.cumsum(widths) - widths
            # every (end, candidate) pair of this depth, one after the other
            shift = np.repeat((low + base).ravel() - starts, widths)
            cut = np.arange(int(widths.sum())) + shift
            end = np.repeat((ends + base).ravel(), widths)
            mass, moment = weight[end] - weight[cut], first[end] - first[cut]
            spread = second[end] - second[cut]
            spread -= np.divide(moment * moment, mass, out=np.zeros_like(moment), where=mass > 0)
            np.maximum(spread, 0.0, out=spread)
            spread += earlier[cut]
            best = np.minimum.reduceat(spread, starts)
            # the first candidate that reaches the minimum
            hit = np.flatnonzero(spread == np.repeat(best, widths))
            which = hit[np.searchsorted(hit, starts)]
            least[:, ends] = best.reshape(groups, -1)
            last[:, ends] = (cut[which].reshape(groups, -1) - base).astype(np.int32)
        stride >>= 1
    return least, last
