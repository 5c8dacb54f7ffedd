"""The scale of each of many groups by weighted least squares, on arrays that are worked on again and again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.spec import TensorSpec

_TINY = np.finfo(np.float32).tiny
_MOST = np.float32(1 / float(_TINY))


@dataclass(frozen=True)
class Tried:
    """Which scales are tried.

    Attributes:
        offsets: how much farther than the plain range they reach, in steps of the grid.
        quick: whether the plain scale has one other on either side.
        refined: how often the best grid is rounded on again and fitted to that.
    """

    offsets: Sequence[np.float32]
    quick: bool
    refined: int


def near_one(x: Array, axis: int) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """(groups, exponent, ends): groups so large or small that their squares leave float32 are divided by 2^exponent.

    Their ends, the least and the largest element with zero among them, come with it; None where not all are finite.
    """
    low = np.minimum(x.min(axis=axis, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=axis, keepdims=True), np.float32(0))
    peak = np.maximum(high, -low)
    exponent = np.where((peak > 1e12) | (peak < 1e-12), np.frexp(peak)[1], 0)
    if not np.isfinite(peak).all():
        return x, exponent, None
    if exponent.any():
        x, low, high = (np.ldexp(array, -exponent) for array in (x, low, high))
    return x, exponent, (low, high)


def _weigh(space: Space, x: Array, columns: Array | None, importance: Array | None) -> None:
    """What each element's error counts: more for large elements, and by the importance of its input.

    As in k-quants: rms + |x| alone, and importance · √(mean x² + x²) where importance is known.
    """
    squares = np.multiply(x, x, out=space.levels)
    mean = np.add.reduce(squares, axis=space.axis, keepdims=True) / np.float32(x.shape[space.axis])
    if importance is not None and columns is not None:
        squares += mean
        np.multiply(np.sqrt(squares, out=squares), columns, out=space.weights, casting="same_kind")
        return
    np.add(np.abs(x, out=space.weights), np.sqrt(mean), out=space.weights)
    if columns is not None:
        space.weights[np.broadcast_to(columns <= 0, x.shape)] = 0


class Space:
    """Arrays that one group of elements after the other is worked on in: new ones would cost as much as the work.

    Attributes:
        axis: along which groups lie.
        x: the elements.
        weights: what their errors count.
        levels: integers that are tried.
        product: whatever is summed up next.
    """

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        """Make them."""
        self.axis = axis
        self.x, self.weights, self.levels, self.product = (np.empty(shape, np.float32) for _ in range(4))

    @classmethod
    def of_thread(cls, spaces: threading.local, shape: tuple[int, int]) -> Space:
        """That of this thread, for groups along the first axis."""
        known: dict[tuple[int, int], Space] = spaces.__dict__.setdefault("known", {})
        if shape not in known:
            known[shape] = cls(shape, 0)
        return known[shape]


class Groups:
    """Groups on their way through a search: the best grid of each so far, by weighted squared error.

    With levels l, Σw(x − s·l)² = Σwx² − (Σwxl)² / Σwl² for the best s: what is compared is the last term, from two
    sums, and no candidate is rounded a second time. Short groups lie along the first axis, so that every pass runs
    over neighbours.
    """

    def __init__(
        self,
        space: Space,
        x: Array,
        counts: tuple[Array | None, Array | None],
        spec: TensorSpec,
        ends: tuple[Array, Array],
    ) -> None:
        """Take groups, what is known of their inputs as `_weigh` takes it, and their ends as of `near_one`."""
        self.qmin, self.qmax = np.float32(spec.qmin), np.float32(spec.qmax)
        _weigh(space, x, *counts)
        self.x, self.weights, self.axis = x, space.weights, space.axis
        self.low, self.high = ends
        self.scale = np.ones_like(self.low)
        self.zero_point = np.full_like(self.low, spec.midpoint)
        self.gain = np.full_like(self.low, -1.0)
        self._levels, self._product = space.levels, space.product

    def sum(self, a: Array, b: Array) -> Array:
        """Σab over each group."""
        total = np.asarray(np.einsum("ge,ge->g" if self.axis else "eg,eg->g", a, b))
        return total[:, None] if self.axis else total[None]

    def levels(self, scale: Array, zero_point: Array | np.float32) -> Array:
        """Levels less the zero point; the array is used again by the next call."""
        inverse = np.divide(np.float32(1), scale)
        inverse[~(np.abs(inverse) <= _MOST)] = 1  # no scale at all, or one that float32 has no inverse of
        levels = np.multiply(self.x, inverse, out=self._levels)
        np.rint(levels, out=levels)
        return np.asarray(np.clip(levels, self.qmin - zero_point, self.qmax - zero_point, out=levels))

    def sums(self, levels: Array) -> tuple[Array, Array]:
        """(Σwxl, Σwl²)."""
        product = np.multiply(self.weights, levels, out=self._product)
        return self.sum(product, self.x), self.sum(product, levels)

    def keep(self, product: Array, squares: Array, zero_point: Array | np.float32) -> None:
        """Take the grid of least error for levels with these sums, where it is the best so far."""
        fitted = product / squares  # NaN where all levels are 0, which is better than nothing
        gain = fitted * product
        better = (gain > self.gain) & (np.abs(fitted) >= _TINY)
        for kept, found in ((self.gain, gain), (self.scale, fitted), (self.zero_point, zero_point)):
            np.copyto(kept, found, where=better)


def search_symmetric(groups: Groups, spec: TensorSpec, wanted: Tried) -> None:
    """Find the scale of each group on a symmetric grid; it stands in ``groups`` then, as do their gains."""
    below, above = np.float32(spec.midpoint - spec.qmin), np.float32(spec.qmax - spec.midpoint)
    low, high, zero_point = groups.low, groups.high, np.float32(spec.midpoint)
    peak = np.maximum(-low, high)
    sign = np.where((high > -low) & spec.mirrored, np.float32(-1), np.float32(1))
    tried = [np.maximum(-low / below, high / above)]
    if spec.mirrored:
        near = np.minimum(-low, high) / (above + np.float32(0.5))
        mirrored = sign * np.maximum(peak / below, near)
        # what rounding to nearest takes is the plain grid but where both ends are nearly as large
        tried = [mirrored] if wanted.quick else [*tried, sign * peak / below, mirrored]
    reaches = [below + step for step in wanted.offsets if step or not (wanted.quick and spec.mirrored)]
    tried += [sign * peak / reach for reach in reaches if reach > 0]
    for scale in tried:
        groups.keep(*groups.sums(groups.levels(scale, zero_point)), zero_point)
    for _ in range(wanted.refined):
        groups.keep(*groups.sums(groups.levels(groups.scale, zero_point)), zero_point)


def search_affine(groups: Groups, spec: TensorSpec, wanted: Tried) -> None:
    """As `search_symmetric`, for scale and zero point together."""
    span = groups.high - groups.low
    top = np.float32(spec.qmax - spec.qmin)
    ones = np.broadcast_to(np.float32(1), groups.x.shape)
    total = np.maximum(groups.sum(groups.weights, ones), _TINY)
    mean = groups.sum(groups.weights, groups.x) / total

    def offer(scale: Array, zero_point: Array) -> None:
        levels = groups.levels(scale, zero_point)
        product, squares = groups.sums(levels)
        groups.keep(product, squares, zero_point)
        # least squares for scale and offset at once: x ≈ offset + scale · level
        centre = groups.sum(groups.weights, levels) / total
        spread = squares / total - centre * centre
        fitted = np.divide(product / total - centre * mean, spread, out=scale.copy(), where=spread > 1e-6)
        fitted = np.where(fitted >= _TINY, fitted, scale)
        moved = np.clip(np.rint(zero_point - (mean - fitted * centre) / fitted), spec.qmin, spec.qmax)
        by = zero_point - moved
        groups.keep(product + by * mean * total, squares + by * (2 * centre + by) * total, moved)

    for step in wanted.offsets:
        reach = top + step
        if reach > 0:
            scale = np.where(span > 0, span / reach, np.float32(1))
            offer(scale, np.clip(np.rint(spec.qmin - groups.low / scale), spec.qmin, spec.qmax))
    for _ in range(wanted.refined):
        offer(groups.scale, groups.zero_point)
