"""Histograms of values and the ranges that follow from them, with the numbers of onnxruntime 1.32.

These are here for scripts that read such ranges. onnxq's own methods (`onnxq.stats.ranges`) need less memory and give
better ranges.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.calibrate.tensor_data import TensorData
from onnxq.core.dtypes import Array

_SMOOTHING = 1e-4
_FEWEST_BINS = 512


class CalibrationDataCollector(metaclass=abc.ABCMeta):
    """Gathers arrays by name and says what follows from them."""

    @abc.abstractmethod
    def collect(self, name_to_arr: Mapping[str, Any]) -> None:
        """Fold arrays in."""

    @abc.abstractmethod
    def compute_collection_result(self) -> dict[str, Any]:
        """What was found, by name."""


class HistogramCollector(CalibrationDataCollector):
    """Histograms, and ranges by percentile, entropy or distribution."""

    def __init__(
        self,
        method: str,
        symmetric: bool,
        num_bins: int,
        num_quantized_bins: int,
        percentile: float,
        scenario: str,
    ) -> None:
        """Start without data.

        Args:
            method: "entropy", "percentile" or "distribution".
            symmetric: of a percentile: that of the magnitudes.
            num_bins: of a histogram at first; more where later data reach further.
            num_quantized_bins: levels of the grid that entropy compares with.
            percentile: 0…100.
            scenario: of a distribution: "same", or "p3" for float8, the law of cube roots.
        """
        self.histogram_dict: dict[str, tuple[Any, ...]] = {}
        self.method = method
        self.symmetric = symmetric
        self.num_bins = num_bins
        self.num_quantized_bins = num_quantized_bins
        self.percentile = percentile
        self.scenario = scenario

    def get_histogram_dict(self) -> dict[str, tuple[Any, ...]]:
        """By name: (counts, edges, smallest, largest), and where they are of signed values the threshold."""
        return self.histogram_dict

    def collect(self, name_to_arr: Mapping[str, Any]) -> None:
        """Count the elements of arrays, or of lists of arrays, by name.

        Raises:
            ValueError: there is no such method, or a value is no array.
        """
        self._check()
        if self.method == "percentile" and self.symmetric:
            self.collect_absolute_value(name_to_arr)
        else:
            self.collect_value(name_to_arr)

    def _check(self) -> None:
        if self.method not in ("entropy", "percentile", "distribution"):
            raise ValueError("Only 'entropy', 'percentile' or 'distribution' methods are supported")

    def collect_absolute_value(self, name_to_arr: Mapping[str, Any]) -> None:
        """Count magnitudes, in bins from the smallest one on."""
        for name, given in name_to_arr.items():
            data = _flat(name, given)
            low, high = _ends(data)
            size = np.absolute(data)
            if name not in self.histogram_dict:
                counts, edges = np.histogram(size, bins=self.num_bins)
            else:
                old, edges, old_low, old_high = self.histogram_dict[name]
                low, high = min(old_low, low), max(old_high, high)
                if size.size and (top := np.nanmax(size)) > edges[-1]:
                    width = edges[1] - edges[0]
                    edges = np.hstack((edges, np.arange(edges[-1] + width, top + width, width)))
                counts, edges = np.histogram(size, bins=edges)
                counts[: len(old)] += old
            self.histogram_dict[name] = (counts, edges.astype(data.dtype), low, high)

    def collect_value(self, name_to_arr: Mapping[str, Any]) -> None:
        """Count values, in bins from −threshold to threshold."""
        for name, given in name_to_arr.items():
            data = _flat(name, given)
            low, high = _ends(data)
            threshold = np.array(max(abs(low), abs(high)), dtype=data.dtype)
            known = self.histogram_dict.get(name)
            if known is not None:
                self.histogram_dict[name] = self.merge_histogram(known, data, low, high, threshold)
                continue
            counts, edges = _counted(data, self.num_bins, threshold)
            self.histogram_dict[name] = (counts, edges, low, high, threshold)

    def merge_histogram(
        self, old_histogram: tuple[Any, ...], data_arr: Array, new_min: Any, new_max: Any, new_threshold: Any
    ) -> tuple[Any, ...]:
        """A histogram with further data; bins are added at both ends where these reach beyond it."""
        old, edges, low, high, threshold = old_histogram
        low, high = min(low, new_min), max(high, new_max)
        if new_threshold <= threshold:
            counts, _ = _counted(data_arr, len(old), threshold)
            return counts + old, edges, low, high, threshold
        if threshold == 0:
            counts, edges = _counted(data_arr, len(old), new_threshold)
            return counts + old, edges, low, high, new_threshold
        width = 2 * threshold / len(old)
        more = int((new_threshold - threshold) // width + 1)
        wider = more * width + threshold
        counts, edges = _counted(data_arr, len(old) + 2 * more, wider)
        counts[more : len(counts) - more] += old
        return counts, edges, low, high, wider

    def compute_collection_result(self) -> dict[str, Any]:
        """Ranges by name: (low, high, counts, edges), of a distribution `TensorData`.

        Raises:
            ValueError: nothing was collected, or a number of the method makes no sense.
        """
        if not self.histogram_dict:
            raise ValueError("Histogram has not been collected. Please run collect() first.")
        self._check()
        return {
            "entropy": self.compute_entropy,
            "percentile": self.compute_percentile,
            "distribution": self.compute_distribution,
        }[self.method]()

    def compute_percentile(self) -> dict[str, Any]:
        """The edges between which a share of the elements lies."""
        if not 0 <= self.percentile <= 100:
            raise ValueError("Invalid percentile. Must be in range 0 <= percentile <= 100.")
        found = {}
        for name, (counts, edges, low, high, *_) in self.histogram_dict.items():
            share = np.cumsum(counts / counts.sum())
            if self.symmetric:
                end = np.searchsorted(share, self.percentile / 100.0)
                left, right = -edges[end], edges[end]
            else:
                cut = (100.0 - self.percentile) / 200.0
                left, right = edges[np.searchsorted(share, cut)], edges[np.searchsorted(share, 1.0 - cut)]
            found[name] = (*_typed(max(left, low), min(right, high), edges), counts, edges)
        return found

    def compute_entropy(self) -> dict[str, Any]:
        """The window whose counts on a grid diverge least from those without one."""
        return {
            name: (*self.get_entropy_threshold(histogram, self.num_quantized_bins), *histogram[:2])
            for name, histogram in self.histogram_dict.items()
        }

    def get_entropy_threshold(self, histogram: tuple[Any, ...], num_quantized_bins: int) -> tuple[Any, Any]:
        """(low, high) of the window around zero of least divergence, cut to the extrema."""
        counts, edges, low, high = histogram[:4]
        middle, half = counts.size // 2, num_quantized_bins // 2
        windows = [(middle - reach, min(middle + reach + 1, counts.size)) for reach in range(half, middle + 1)]
        divergences = np.array([_divergence(counts, *window, num_quantized_bins) for window in windows], edges.dtype)
        start, end = windows[int(np.argmin(divergences))]
        return _typed(max(edges[start], low), min(edges[end], high), edges)

    def compute_distribution(self) -> dict[str, Any]:
        """Mean and deviation, of the values or of their cube roots."""
        if self.num_bins < _FEWEST_BINS:
            raise ValueError(f"Invalid num_bins. Must be in range {_FEWEST_BINS} <= num_bins.")
        if self.scenario not in ("same", "p3"):
            raise ValueError("Invalid scenario. Must be in {'same', 'p3'}.")
        power = 1.0 if self.scenario == "same" else 1.0 / 3.0
        found = {}
        for name, (counts, found_edges, *_) in self.histogram_dict.items():
            edges = found_edges.astype(np.float32) if found_edges.dtype == np.float64 else found_edges
            centres = (edges[:-1] + edges[1:]) * 0.5
            values = np.sign(centres) * np.abs(centres) ** power if power != 1.0 else centres
            mean = (counts * values).sum() / counts.sum()
            deviation = ((counts * values**2).sum() / counts.sum() - mean**2) ** 0.5
            average, spread = _typed(mean, deviation, edges)
            found[name] = TensorData(
                avg=average, std=spread, hist=counts, hist_edges=edges, lowest=edges.min(), highest=edges.max()
            )
        return found


def _flat(name: str, given: Any) -> Array:
    """All elements of an array, or of a list of arrays of one type, as float32: float16 has too few steps for bins.

    Raises:
        ValueError: it is neither.
    """
    arrays: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays):
        kind = type(given) if not arrays else next(type(a) for a in arrays if not isinstance(a, np.ndarray))
        raise ValueError(f"Unexpected type {kind} for tensor={name!r}; pass arrays")
    kinds = {array.dtype for array in arrays}
    if len(kinds) > 1 or not kinds <= {np.dtype(np.float32), np.dtype(np.float16)}:
        raise ValueError(
            f"tensor={name!r}: has elements of {', '.join(sorted(map(str, kinds)))}; pass float32 or float16 alone"
        )
    return np.concatenate([array.reshape(-1) for array in arrays], dtype=np.float32)


def _counted(data: Array, bins: int, threshold: Any) -> tuple[Array, Array]:
    return np.histogram(data, bins, range=(-threshold, threshold))


def _ends(data: Array) -> tuple[Any, Any]:
    zero = np.array(0, data.dtype)
    return (np.nanmin(data), np.nanmax(data)) if data.size else (zero, zero)


def _typed(low: Any, high: Any, like: Array) -> tuple[Any, Any]:
    kind = np.float32 if like.dtype == np.float64 else like.dtype
    return np.array(low, kind), np.array(high, kind)


def _divergence(counts: Array, start: int, end: int, levels: int) -> float:
    """KL divergence of a window on a grid of so many levels from the window with what lies outside at its ends."""
    inside = counts[start:end]
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end:].sum()
    width = inside.size // levels
    whole = width * levels
    merged = inside[:whole].reshape(levels, width).sum(axis=1)
    merged[-1] += inside[whole:].sum()
    filled = (reference[:whole] != 0).reshape(levels, width).sum(axis=1)
    spread = np.zeros(reference.size, np.int64)
    spread[:whole] = np.repeat(np.where(filled > 0, merged / np.maximum(filled, 1), 0.0), width)
    p, q = _smoothed(reference), _smoothed(spread)
    if p is None or q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _smoothed(counts: Array) -> Array | None:
    """Counts with a little taken from those that are not zero for those that are; None where all are."""
    empty = counts == 0
    zeros = int(empty.sum())
    if zeros == counts.size:
        return None
    found: Array = counts.astype(np.float32)
    found[empty] += np.float32(_SMOOTHING)
    found[~empty] -= np.float32(_SMOOTHING * zeros / (counts.size - zeros))
    return found
