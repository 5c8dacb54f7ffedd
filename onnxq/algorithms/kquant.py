"""GGML's ways to choose the scale of a block: by its largest element, or by a search with weighted least squares.

The formats of GGML are blocks on grids of 4, 5 or 8 bits with float16 scales; on the same grid the integers and scales
here are GGML's, bit for bit. A grid of 5 bits is stored on 8 (``grid_bits=5``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.algorithms.groups import as_scale, check_finite, check_layout, join, row_slabs, split, split_columns
from onnxq.core.affine import to_storage
from onnxq.core.dtypes import Array
from onnxq.core.in_order import each
from onnxq.core.spec import PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError

_TINY = np.finfo(np.float32).tiny

_SHORT = 512
"""Elements of a group up to which all groups are worked on at once, element by element."""

_SLAB = 1 << 18
"""Elements that a thread works on at a time: few enough to stay in its cache."""

_NONE = (np.zeros((0, 1), np.float32),)


@dataclass(frozen=True)
class KQuantConfig:
    """How scales are chosen.

    Attributes:
        method: ``search`` tries scales around the plain one, rounds on each, fits scale and offset by weighted least
            squares and keeps the best, as k-quants do; ``legacy`` takes the scale from the largest element, as
            Q4_0, Q5_0 and Q8_0 do: below 8 bits as on a mirrored grid.
        steps: scales tried on either side of the plain one.
        width: how far apart they are, in steps of the grid over the whole range.
        float16_scale: scales are rounded to float16, as GGML stores them (kept in float32 where float16 cannot hold
            them).
        refined: how often the best grid is rounded on again and fitted to that.
    """

    method: Literal["search", "legacy"] = "search"
    steps: int = 5
    width: float = 0.2
    float16_scale: bool = False
    refined: int = 2

    @property
    def quick(self) -> bool:
        """Whether the plain scale has one other on either side."""
        return self.steps == 1

    @property
    def offsets(self) -> list[np.float32]:
        """How much farther than the plain range those of the scales that are tried reach, in steps."""
        return [np.float32(step * self.width) for step in range(-self.steps, self.steps + 1)]

    def __post_init__(self) -> None:
        if self.method not in ("search", "legacy") or self.steps < 1 or self.width <= 0.0:
            raise RecipeError(
                f"KQuantConfig: method {self.method!r}, steps {self.steps}, width {self.width} make no search; use "
                "method 'search' or 'legacy', 1 step or more, a positive width"
            )


QUICK = KQuantConfig(steps=1, width=0.5, refined=1)
"""A search that takes half the time and loses 0.04 dB: what weights get that are large."""

LARGE = 1 << 20
"""Elements from which a weight is."""


def kquant_by_size(weight: Array, spec: TensorSpec, importance: Array | None = None) -> QTensor:
    """`kquant` with the search that the size of a weight allows: `QUICK` from `LARGE` elements on."""
    return kquant(weight, spec, QUICK if weight.size >= LARGE else None, importance)


def _half(scale: Array, wanted: bool) -> Array:
    """Scales rounded to float16 where it can hold them."""
    if not wanted:
        return scale
    with np.errstate(over="ignore", under="ignore"):
        rounded = scale.astype(np.float16).astype(np.float32)
    return np.asarray(np.where(np.isfinite(rounded) & ((rounded != 0) | (scale == 0)), rounded, scale))


def _inverse(scale: Array) -> Array:
    """1/scale, and 0 where it is 0."""
    return np.asarray(np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0))


def kquant(
    weight: Array, spec: TensorSpec, config: KQuantConfig | None = None, importance: Array | None = None
) -> QTensor:
    """Quantize a weight with scales chosen as GGML chooses them.

    Args:
        weight: float32, (out, in).
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`. GGML's Q4_0 is a symmetric 4-bit grid in
            blocks of 32, Q5_0 the same with ``grid_bits=5`` in 8-bit storage, Q8_0 an 8-bit one.
        config: see `KQuantConfig`; None takes the defaults.
        importance: (in,), not negative, such as mean x² of the inputs; None weighs by the size of the weights alone.

    Returns:
        QTensor. A block's weighted error is not above that of rounding to nearest (method ``search``).

    Raises:
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows; ``legacy`` with an affine grid, whose offset is not an integer
            number of steps.

    References:
        ggml, quantize_row_q4_0_ref, quantize_row_q8_0_ref, make_qx_quants and make_qkx2_quants.
    """
    config = config or KQuantConfig()
    weight = check_layout(weight, spec.granularity, "kquant")
    if config.method == "legacy" and not spec.symmetric:
        raise RecipeError(
            "kquant: the legacy formats with an offset (Q4_1, Q5_1) have no integer zero point; use a symmetric grid, "
            "or method 'search'"
        )
    values = np.empty(weight.shape, spec.dtype.numpy)

    def solve(rows: slice) -> tuple[Array, Array]:
        part = np.ascontiguousarray(weight[rows])  # of a transposed view no more than this is copied
        check_finite(part, "kquant", rows.start, weight.shape)
        groups = split(part, spec.granularity)
        if config.method == "legacy":
            levels, scale = _legacy(groups, spec)
            scale = _half(scale, config.float16_scale)
            zero_point = np.full_like(scale, spec.midpoint)
        else:
            near, exponent = _near_one(groups)
            weights = _weights(near, split_columns(importance, part.shape, spec.granularity), importance)
            search = _search_symmetric if spec.symmetric else _search_affine
            scale, zero_point = search(near, weights, spec, config)
            scale = _half(np.ldexp(scale, exponent), config.float16_scale)
            levels = _round(groups, scale, zero_point, spec)
        values[rows] = to_storage(join(levels, part.shape, spec.granularity), spec.dtype)
        return np.where(scale == 0, np.float32(1), scale), zero_point

    scales, zero_points = zip(*each(solve, _slabs(weight, spec)), strict=True) if weight.size else (_NONE, _NONE)
    shape = weight.shape
    scale = as_scale(np.concatenate(scales), shape, spec.granularity)
    zero_point = as_scale(np.concatenate(zero_points), shape, spec.granularity)
    return QTensor(values, QParams(spec, scale.astype(np.float32), to_storage(zero_point, spec.dtype)))


def _slabs(weight: Array, spec: TensorSpec) -> list[slice]:
    if not weight.size:
        return []
    if isinstance(spec.granularity, PerTensor):
        return [slice(0, weight.shape[0])]
    return list(row_slabs(weight.shape, _SLAB))


def _legacy(x: Array, spec: TensorSpec) -> tuple[Array, Array]:
    """(levels, scale) of groups, as Q4_0 below 8 bits and as Q8_0 at 8."""
    magnitude = np.abs(x)
    if spec.bits == 8:
        scale = np.asarray(magnitude.max(axis=1, keepdims=True) / np.float32(127), np.float32)
        whole = x * _inverse(scale)
        size = np.abs(whole)
        below = np.floor(size)
        levels = np.copysign(below + (size - below >= 0.5), whole)  # half away from zero
        return levels + spec.midpoint, scale
    largest = np.take_along_axis(x, magnitude.argmax(axis=1)[:, None], axis=1)
    half = 1 << (spec.bits - 1)
    scale = np.asarray(largest / np.float32(-half), np.float32)
    levels = np.trunc(x * _inverse(scale) + np.float32(half + 0.5))
    return np.clip(levels, 0, 2 * half - 1) - half + spec.midpoint, scale


def _near_one(x: Array) -> tuple[Array, Array]:
    """(groups, exponent): those so large or small that their squares leave float32 are divided by 2^exponent."""
    peak = np.maximum(x.max(axis=1), -x.min(axis=1))[:, None]
    exponent = np.where((peak > 1e12) | (peak < 1e-12), np.frexp(peak)[1], 0)
    return (np.ldexp(x, -exponent) if exponent.any() else x), exponent


def _weights(x: Array, columns: Array, importance: Array | None) -> Array:
    """What each element's error counts: more for large elements, and by the importance of its input.

    As in k-quants: rms + |x| alone, and importance · √(mean x² + x²) where importance is known.
    """
    mean = np.mean(x * x, axis=1, keepdims=True)
    if importance is None:
        weights = np.sqrt(mean) + np.abs(x)
        return np.asarray(np.where(columns > 0, weights, np.float32(0)))
    return np.asarray(columns * np.sqrt(mean + x * x), np.float32)


def _round(x: Array, scale: Array, zero_point: Array, spec: TensorSpec) -> Array:
    """Levels on a grid: x / scale + zero_point, half to even, saturated."""
    levels = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale != 0))
    levels += zero_point
    return np.clip(levels, spec.qmin, spec.qmax, out=levels)


class _Groups:
    """Groups on their way through a search: the best grid of each so far, by weighted squared error.

    With levels l, Σw(x − s·l)² = Σwx² − (Σwxl)² / Σwl² for the best s: what is compared is the last term, from two
    sums, and no candidate is rounded a second time. Short groups lie along the first axis, so that every pass runs
    over neighbours.
    """

    def __init__(self, x: Array, weights: Array, spec: TensorSpec) -> None:
        self.qmin, self.qmax = np.float32(spec.qmin), np.float32(spec.qmax)
        self.columns = x.shape[1] <= _SHORT
        self.x = np.ascontiguousarray(x.T) if self.columns else x
        self.weights = np.ascontiguousarray(weights.T) if self.columns else weights
        self.weighted = self.weights * self.x
        self.axis = 0 if self.columns else 1
        shape = (1, x.shape[0]) if self.columns else (x.shape[0], 1)
        self.scale = np.ones(shape, np.float32)
        self.zero_point = np.full(shape, spec.midpoint, np.float32)
        self.gain = np.full(shape, -1.0, np.float32)
        self._levels: Array = np.empty_like(self.x)
        self._product = np.empty_like(self.x)
        self.low = np.minimum(self.x.min(axis=self.axis, keepdims=True), 0)
        self.high = np.maximum(self.x.max(axis=self.axis, keepdims=True), 0)

    def sum(self, a: Array, b: Array) -> Array:
        """Σab over each group."""
        total = np.asarray(np.einsum("eg,eg->g" if self.columns else "ge,ge->g", a, b))
        return total[None] if self.columns else total[:, None]

    def levels(self, scale: Array, zero_point: Array | np.float32) -> Array:
        """Levels less the zero point; the array is used again by the next call."""
        usable = np.isfinite(scale) & (np.abs(scale) >= _TINY)
        levels = np.multiply(self.x, _inverse(np.where(usable, scale, np.float32(1))), out=self._levels)
        np.rint(levels, out=levels)
        low, high = self.qmin - zero_point, self.qmax - zero_point
        np.clip(levels, low, high, out=levels)
        return self._levels

    def sums(self, levels: Array) -> tuple[Array, Array]:
        """(Σwxl, Σwl²)."""
        return self.sum(self.weighted, levels), self.sum(np.multiply(self.weights, levels, out=self._product), levels)

    def keep(self, product: Array, squares: Array, zero_point: Array | np.float32) -> None:
        """Take the grid of least error for levels with these sums, where it is the best so far."""
        fitted = np.divide(product, squares, out=np.zeros_like(product), where=squares > 0)
        gain = fitted * product
        better = (gain > self.gain) & (np.abs(fitted) >= _TINY)
        self.gain = np.where(better, gain, self.gain)
        self.scale = np.where(better, fitted, self.scale)
        self.zero_point = np.where(better, zero_point, self.zero_point)

    def best(self) -> tuple[Array, Array]:
        """(scale, zero point) of each group, (groups, 1)."""
        return self.scale.reshape(-1, 1), self.zero_point.reshape(-1, 1)


def _search_symmetric(x: Array, weights: Array, spec: TensorSpec, config: KQuantConfig) -> tuple[Array, Array]:
    groups = _Groups(x, weights, spec)
    below, above = np.float32(spec.midpoint - spec.qmin), np.float32(spec.qmax - spec.midpoint)
    low, high, zero_point = groups.low, groups.high, np.float32(spec.midpoint)
    peak = np.maximum(-low, high)
    sign = np.where((high > -low) & spec.mirrored, np.float32(-1), np.float32(1))
    tried = [np.maximum(-low / below, high / above)]
    if spec.mirrored:
        near = np.minimum(-low, high) / (above + np.float32(0.5))
        mirrored = sign * np.maximum(peak / below, near)
        # of a quick search the plain grid is only what rounding to nearest takes
        tried = [mirrored] if config.quick else [*tried, sign * peak / below, mirrored]
    reaches = [below + step for step in config.offsets]
    tried += [sign * peak / reach for reach in reaches if reach > 0]
    for scale in tried:
        groups.keep(*groups.sums(groups.levels(scale, zero_point)), zero_point)
    for _ in range(config.refined):
        groups.keep(*groups.sums(groups.levels(groups.scale, zero_point)), zero_point)
    return groups.best()


def _search_affine(x: Array, weights: Array, spec: TensorSpec, config: KQuantConfig) -> tuple[Array, Array]:
    groups = _Groups(x, weights, spec)
    span = groups.high - groups.low
    top = np.float32(spec.qmax - spec.qmin)
    ones = np.broadcast_to(np.float32(1), groups.x.shape)
    total = np.maximum(groups.sum(groups.weights, ones), _TINY)
    mean = groups.sum(groups.weighted, ones) / total

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

    for step in config.offsets:
        reach = top + step
        if reach > 0:
            scale = np.where(span > 0, span / reach, np.float32(1))
            offer(scale, np.clip(np.rint(spec.qmin - groups.low / scale), spec.qmin, spec.qmax))
    for _ in range(config.refined):
        offer(groups.scale, groups.zero_point)
    return groups.best()
