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
from onnxq.core.floatzero import FloatZeroTensor
from onnxq.core.spec import PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError

_TINY = np.finfo(np.float32).tiny


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
    """

    method: Literal["search", "legacy"] = "search"
    steps: int = 10
    width: float = 0.1
    float16_scale: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("search", "legacy") or self.steps < 1 or self.width <= 0.0:
            raise RecipeError(
                f"KQuantConfig: method {self.method!r}, steps {self.steps}, width {self.width} make no search; use "
                "method 'search' or 'legacy', 1 step or more, a positive width"
            )


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
            number of steps (see `legacy_float_zero`).

    References:
        ggml, quantize_row_q4_0_ref, quantize_row_q8_0_ref, make_qx_quants and make_qkx2_quants.
    """
    config = config or KQuantConfig()
    weight = check_layout(weight, spec.granularity, "kquant")
    check_finite(weight, "kquant")
    if config.method == "legacy" and not spec.symmetric:
        raise RecipeError(
            "kquant: the legacy formats with an offset (Q4_1, Q5_1) have no integer zero point; use a symmetric grid, "
            "or method 'search'"
        )
    values = np.empty(weight.shape, spec.dtype.numpy)
    scales, zero_points = [], []
    for rows in _slabs(weight, spec):
        groups = split(weight[rows], spec.granularity)
        if config.method == "legacy":
            levels, scale = _legacy(groups, spec)
            scale = _half(scale, config.float16_scale)
            zero_point = np.full_like(scale, spec.midpoint)
        else:
            near, exponent = _near_one(groups)
            weights = _weights(near, split_columns(importance, weight[rows].shape, spec.granularity), importance)
            search = _search_symmetric if spec.symmetric else _search_affine
            scale, zero_point = search(near, weights, spec, config)
            scale = _half(np.ldexp(scale, exponent), config.float16_scale)
            levels = _round(groups, scale, zero_point, spec)
        values[rows] = to_storage(join(levels, weight[rows].shape, spec.granularity), spec.dtype)
        scales.append(np.where(scale == 0, np.float32(1), scale))
        zero_points.append(zero_point)
    if not scales:
        scales = zero_points = [np.zeros((0, 1), np.float32)]
    shape = weight.shape
    scale = as_scale(np.concatenate(scales), shape, spec.granularity)
    zero_point = as_scale(np.concatenate(zero_points), shape, spec.granularity)
    return QTensor(values, QParams(spec, scale.astype(np.float32), to_storage(zero_point, spec.dtype)))


def legacy_float_zero(weight: Array, spec: TensorSpec) -> tuple[FloatZeroTensor, Array]:
    """GGML's Q4_1 and Q5_1: the scale spans each block from its smallest element to its largest.

    Args:
        weight: float32, (out, in).
        spec: an affine grid on an unsigned type, 4 bits, or 5 with ``grid_bits=5`` in 8.

    Returns:
        (tensor, smallest element of each block as float32 of a float16). GGML decodes scale · value + smallest; the
        tensor's zero point, −smallest / scale, says the same to within rounding. A block of one repeated number has
        scale 0 in GGML; here it has scale 1 and zero point −smallest.

    Raises:
        ModelError: the weight is not finite.
        RecipeError: the grid is symmetric or signed, or the groups do not lie along rows.

    References:
        ggml, quantize_row_q4_1_ref.
    """
    weight = check_layout(weight, spec.granularity, "legacy_float_zero")
    check_finite(weight, "legacy_float_zero")
    if spec.symmetric or spec.dtype.signed:
        raise RecipeError(
            f"legacy_float_zero: {spec.dtype.value} {'symmetric' if spec.symmetric else 'signed'} has no lowest level "
            "of 0; use an affine grid on an unsigned type"
        )
    if not weight.size:
        raise RecipeError(f"legacy_float_zero: a weight of shape {weight.shape} has no elements; leave it as it is")
    padded = weight
    size = getattr(spec.granularity, "size", weight.shape[1])
    if weight.shape[1] % size:  # filled up with the last element, which changes neither end of the range
        padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % size)), mode="edge")
    groups = split(padded, spec.granularity)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scale = np.asarray((high - low) / np.float32(spec.qmax), np.float32)
    levels = np.trunc((groups - low) * _inverse(scale) + np.float32(0.5))
    np.clip(levels, 0, spec.qmax, out=levels)
    scale, low = _half(scale, True), _half(low, True)
    scale = np.where(scale == 0, np.float32(1), scale)
    values = to_storage(join(levels, weight.shape, spec.granularity), spec.dtype)
    shaped = [as_scale(part, weight.shape, spec.granularity) for part in (scale, -low / scale, low)]
    return FloatZeroTensor(values, spec, shaped[0], shaped[1]), shaped[2]


def _slabs(weight: Array, spec: TensorSpec) -> list[slice]:
    if not weight.size:
        return []
    if isinstance(spec.granularity, PerTensor):
        return [slice(0, weight.shape[0])]
    return list(row_slabs(weight.shape))


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


class _Best:
    """The best grid of each group, by weighted squared error."""

    def __init__(self, x: Array, weights: Array, spec: TensorSpec, half: bool) -> None:
        self.x, self.weights, self.spec, self.half = x, weights, spec, half
        self.scale = np.ones((x.shape[0], 1), np.float32)
        self.zero_point = np.full((x.shape[0], 1), spec.midpoint, np.float32)
        self.error = np.full((x.shape[0], 1), np.inf, np.float64)

    def offer(self, scale: Array, zero_point: Array) -> Array:
        """Round on a grid, keep it where it is best, and give its levels less the zero point."""
        usable = np.isfinite(scale) & (np.abs(scale) >= _TINY)
        scale = _half(np.where(usable, scale, self.scale).astype(np.float32), self.half)
        levels = _round(self.x, scale, zero_point, self.spec) - zero_point
        difference = levels * scale - self.x
        error = np.einsum("ge,ge,ge->g", difference, difference, self.weights, dtype=np.float64)[:, None]
        better = error < self.error
        self.error = np.where(better, error, self.error)
        self.scale = np.where(better, scale, self.scale)
        self.zero_point = np.where(better, zero_point, self.zero_point)
        return levels

    def fitted(self, levels: Array) -> Array:
        """The scale of least weighted error for given levels (less the zero point)."""
        weighted = self.weights * levels
        product = np.einsum("ge,ge->g", weighted, self.x)[:, None]
        squares = np.einsum("ge,ge->g", weighted, levels)[:, None]
        return np.asarray(np.divide(product, squares, out=np.zeros_like(product), where=squares > 0))


def _search_symmetric(x: Array, weights: Array, spec: TensorSpec, config: KQuantConfig) -> tuple[Array, Array]:
    best = _Best(x, weights, spec, config.float16_scale)
    low, high = np.minimum(x.min(axis=1), 0)[:, None], np.maximum(x.max(axis=1), 0)[:, None]
    below, above = np.float32(spec.midpoint - spec.qmin), np.float32(spec.qmax - spec.midpoint)
    peak = np.maximum(-low, high)
    sign = np.where((high > -low) & spec.mirrored, np.float32(-1), np.float32(1))
    starts = [np.maximum(-low / below, high / above)]
    if spec.mirrored:
        near = np.minimum(-low, high) / (above + np.float32(0.5))
        starts += [sign * peak / below, sign * np.maximum(peak / below, near)]
    zero_point = best.zero_point
    for start in starts:
        best.offer(np.where(start == 0, np.float32(1), start), zero_point)
    for step in range(-config.steps, config.steps + 1):
        reach = below + np.float32(step * config.width)
        if reach > 0:
            levels = best.offer(sign * peak / reach, zero_point)
            best.offer(best.fitted(levels), zero_point)
    return best.scale, best.zero_point


def _search_affine(x: Array, weights: Array, spec: TensorSpec, config: KQuantConfig) -> tuple[Array, Array]:
    best = _Best(x, weights, spec, config.float16_scale)
    low, high = np.minimum(x.min(axis=1), 0)[:, None], np.maximum(x.max(axis=1), 0)[:, None]
    span = high - low
    top = np.float32(spec.qmax - spec.qmin)
    total = np.maximum(np.sum(weights, axis=1, keepdims=True), _TINY)
    mean = np.einsum("ge,ge->g", weights, x)[:, None] / total

    for step in range(-config.steps, config.steps + 1):
        reach = top + np.float32(step * config.width)
        if reach <= 0:
            continue
        scale = np.where(span > 0, span / reach, np.float32(1))
        zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax)
        levels = best.offer(scale, zero_point)
        best.offer(best.fitted(levels), zero_point)
        # least squares for scale and offset at once: x ≈ offset + scale · level
        centre = np.einsum("ge,ge->g", weights, levels)[:, None] / total
        spread = np.einsum("ge,ge,ge->g", weights, levels, levels)[:, None] / total - centre * centre
        product = np.einsum("ge,ge,ge->g", weights, levels, x)[:, None] / total - centre * mean
        fitted = np.divide(product, spread, out=scale.copy(), where=spread > 1e-6)
        fitted = np.where(fitted >= _TINY, fitted, scale)
        offset = mean - fitted * centre
        zero_point = np.clip(np.rint(zero_point - offset / fitted), spec.qmin, spec.qmax)
        best.offer(best.fitted(best.offer(fitted, zero_point)), zero_point)
    return best.scale, best.zero_point
