"""k-means: a table of reals fitted to each tensor, channel or block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.algorithms import segments
from onnxq.algorithms.groups import as_scale, check_finite, check_layout, join, split, split_columns
from onnxq.core.codebook import CodebookTensor
from onnxq.core.dtypes import Array
from onnxq.core.spec import Granularity, PerBlock, PerTensor
from onnxq.errors import RecipeError

_BATCH = 1 << 20
_BINS = 1 << 16
_EXACT_WORK = 1 << 23


@dataclass(frozen=True)
class KMeansConfig:
    """How tables are fitted.

    Attributes:
        bits: bits of an index, 4 or 8.
        entries: entries of a table; None takes 2^bits.
        method: ``optimal`` finds the least squared error there is, ``lloyd`` improves on quantiles until nothing
            changes, ``quantile`` takes those as they are, ``auto`` the optimum unless there are too many groups for it.
        iterations: of Lloyd's method, at most.
        places: between how many runs of values the optimum is sought where a group has more values than this; Lloyd's
            method then finishes on the values themselves.
    """

    bits: int = 4
    entries: int | None = None
    method: Literal["auto", "optimal", "lloyd", "quantile"] = "auto"
    iterations: int = 100
    places: int = 2048

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or not 1 <= self.count <= 1 << self.bits:
            raise RecipeError(
                f"KMeansConfig: {self.count} entries in {self.bits} bits do not fit; use 4 or 8 bits and up to 2^bits "
                "entries"
            )
        if self.method not in ("auto", "optimal", "lloyd", "quantile") or self.iterations < 0 or self.places < 2:
            raise RecipeError(
                f"KMeansConfig: method {self.method!r}, iterations {self.iterations}, places {self.places} make no "
                "search; use auto, optimal, lloyd or quantile, iterations of 0 or more, 2 places or more"
            )

    @property
    def count(self) -> int:
        """Entries of a table."""
        return self.entries if self.entries is not None else 1 << self.bits


def kmeans(
    weight: Array, granularity: Granularity, config: KMeansConfig | None = None, importance: Array | None = None
) -> CodebookTensor:
    """Store each element as the nearest of a few reals, chosen for the least (weighted) squared error.

    Nothing is random: the same weight gives the same table.

    Args:
        weight: float32, (out, in).
        granularity: which elements share a table; `PerTensor`, `PerAxis` 0 or `PerBlock` along axis 1.
        config: see `KMeansConfig`; None takes the defaults.
        importance: (in,), not negative, such as mean x² of the inputs; None counts all elements alike.

    Returns:
        CodebookTensor with rising tables and scales of 1. A group of no more different values than entries is exact.

    Raises:
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.

    References:
        Lloyd, Least squares quantization in PCM, 1982; Han et al., Deep Compression, arXiv:1510.00149; Wang and Song,
        Ckmeans.1d.dp, 2011.
    """
    config = config or KMeansConfig()
    weight = check_layout(weight, granularity, "kmeans")
    check_finite(weight, "kmeans")
    groups = split(weight, granularity)
    counts = split_columns(importance, weight.shape, granularity)
    filled = _filling(weight.shape, groups.shape, granularity)
    method = config.method
    if method == "auto":
        work = groups.shape[0] * min(groups.shape[1], config.places) * config.count
        method = "optimal" if work <= _EXACT_WORK else "lloyd"
    tables = np.zeros((groups.shape[0], config.count), np.float32)
    indices = np.zeros(groups.shape, np.uint8)
    step = max(1, _BATCH // max(groups.shape[1], 1))
    for start in range(0, groups.shape[0] if groups.shape[1] else 0, step):
        rows = slice(start, start + step)
        tables[rows] = _fit(groups[rows], counts[rows], filled[rows], config, method)
        indices[rows] = _nearest(groups[rows], tables[rows])
    table = tables[0] if isinstance(granularity, PerTensor) else tables
    scale = as_scale(np.ones(groups.shape[0], np.float32), weight.shape, granularity)
    return CodebookTensor(join(indices, weight.shape, granularity).copy(), table, scale, granularity, config.bits)


def _filling(shape: tuple[int, ...], groups: tuple[int, ...], granularity: Granularity) -> Array:
    """How many elements of each group are its own, (groups,)."""
    own = np.full(groups[0], groups[1])
    if isinstance(granularity, PerBlock) and groups[1] and shape[1] % groups[1]:
        blocks = -(-shape[1] // groups[1])
        own.reshape(-1, blocks)[:, -1] = shape[1] % groups[1]
    return own


def _fit(x: Array, counts: Array, own: Array, config: KMeansConfig, method: str) -> Array:
    """Tables of a batch of groups, float32, (groups, entries), rising."""
    if x.shape[1] > _BATCH:
        values, weights = _binned(x, counts)
    else:
        values, weights = _ranked(x, counts, own)
    shift = values[:, values.shape[1] // 2, None].copy()  # sums of squares lose less near zero
    sums = segments.running(values - shift, weights)
    centre = segments.quantile_centres(sums, config.count)
    if method != "quantile":
        centre = segments.lloyd(sums, centre, config.iterations)
    if method == "optimal":
        cuts = segments.optimal_cuts(sums, _places(sums, config.places), config.count)
        other = _rising(segments.centres(sums, cuts, np.zeros_like(centre)), segments.masses(sums, cuts))
        if values.shape[1] > config.places:
            other = segments.lloyd(sums, other, config.iterations)
        worse = segments.cost(sums, segments.cuts_of(sums, other)) > segments.cost(sums, segments.cuts_of(sums, centre))
        centre = np.where(worse[:, None], centre, other)
    table = np.asarray(centre + shift, np.float32)
    return _exact_where_few(table, values)


def _ranked(x: Array, counts: Array, own: Array) -> tuple[Array, Array]:
    """(sorted values, their weights), float64; filling repeats the largest value with no weight."""
    values, weights = x.astype(np.float64), counts.astype(np.float64)
    short = np.flatnonzero(own < x.shape[1])
    for group in short:
        values[group, own[group] :] = values[group, : own[group]].max()
        weights[group, own[group] :] = 0.0
    unweighted = weights.sum(axis=1) <= 0.0
    if unweighted.any():  # nothing matters: then all elements matter alike
        weights[unweighted] = np.arange(x.shape[1]) < own[unweighted, None]
    order = np.argsort(values, axis=1, kind="stable")
    return np.take_along_axis(values, order, 1), np.take_along_axis(weights, order, 1)


def _binned(x: Array, counts: Array) -> tuple[Array, Array]:
    """As `_ranked`, for one group of very many values: the means of narrow bins, in little memory."""
    flat = x[0]
    low, high = float(flat.min()), float(flat.max())
    width = (high - low) / _BINS or 1.0
    mass, moment = np.zeros(_BINS), np.zeros(_BINS)
    for start in range(0, flat.size, _BATCH):
        part = flat[start : start + _BATCH].astype(np.float64)
        share = counts[0, start : start + _BATCH].astype(np.float64)
        index = np.minimum(((part - low) / width).astype(np.int64), _BINS - 1)
        mass += np.bincount(index, share, _BINS)
        moment += np.bincount(index, share * part, _BINS)
    used = mass > 0
    if not used.any():
        return _binned(x, np.ones_like(x))
    return np.asarray((moment[used] / mass[used])[None]), mass[used][None]


def _places(sums: segments.Sorted, wanted: int) -> Array:
    """Where cuts may be: everywhere, or at equal distances and at equal shares of the weight, half each."""
    groups, count = sums.values.shape
    if count <= wanted:
        return np.broadcast_to(np.arange(count + 1), (groups, count + 1)).astype(np.int64)
    half = wanted // 2
    shares = np.arange(1, half) / half
    low, high = sums.values[:, :1], sums.values[:, -1:]
    even = segments.count_up_to(sums.values, low + (high - low) * shares)
    massed = segments.count_up_to(sums.weight[:, 1:], sums.weight[:, -1:] * shares)
    ends = np.broadcast_to(np.array([0, count]), (groups, 2))
    return np.sort(np.concatenate([even, massed, ends], axis=1), axis=1)


def _rising(centre: Array, mass: Array) -> Array:
    """Centres in rising order: an empty run takes the centre of the one before it, or of the first that is not."""
    empty = mass <= 0
    position = np.where(empty, 0, np.arange(centre.shape[1]))
    position = np.maximum.accumulate(position, axis=1)
    first = np.argmin(empty, axis=1)[:, None]
    return np.take_along_axis(centre, np.maximum(position, first), 1)


def _exact_where_few(table: Array, values: Array) -> Array:
    """Groups of no more different values than entries get those values themselves."""
    entries = table.shape[1]
    new = np.ones(values.shape, bool)
    new[:, 1:] = values[:, 1:] != values[:, :-1]
    few = np.flatnonzero(new.sum(axis=1) <= entries)
    for group in few:
        different = values[group, new[group]]
        table[group] = np.pad(different, (0, entries - different.size), mode="edge")
    return table


def _nearest(x: Array, tables: Array) -> Array:
    """Index of the nearest entry of each group's table; half way takes the lower one."""
    middles = ((tables[:, :-1].astype(np.float64) + tables[:, 1:]) * 0.5).astype(np.float32)
    out = np.empty(x.shape, np.uint8)
    if x.shape[0] == 1:
        flat, target = x.ravel(), out.ravel()
        for start in range(0, flat.size, _BATCH):
            target[start : start + _BATCH] = np.searchsorted(middles[0], flat[start : start + _BATCH])
        return target.reshape(x.shape)
    for group in range(x.shape[0]):
        out[group] = np.searchsorted(middles[group], x[group])
    return out
