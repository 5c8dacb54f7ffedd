"""GGML's ways to choose the scale of a block: by its largest element, or by a search with weighted least squares.

The formats of GGML are blocks on grids of 4, 5 or 8 bits with float16 scales; on the same grid the integers and scales
here are GGML's, bit for bit. A grid of 5 bits is stored on 8 (``grid_bits=5``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.algorithms.blockwise.scale_search import Groups, Space, Tried, near_one, search_affine, search_symmetric
from onnxq.algorithms.groups import (
    as_scale,
    check_finite,
    check_layout,
    group_size,
    join,
    row_slabs,
    split,
    split_columns,
)
from onnxq.core.affine import to_storage
from onnxq.core.dtypes import Array
from onnxq.core.in_order import each
from onnxq.core.packing import turn_into
from onnxq.core.spec import PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError

_SHORT = 512
"""Elements of a group up to which all groups are worked on at once, element by element."""

_SLAB = 1 << 19
"""Elements that a thread works on at a time: few enough that they and three arrays beside them stay in its cache, and
so many that threads seldom wait for the interpreter."""

_ROWS = 512
"""Rows of a transposed weight that are worked on at a time."""

_NONE = (np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))


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
    def tried(self) -> Tried:
        """Which scales are tried."""
        offsets = [np.float32(step * self.width) for step in range(-self.steps, self.steps + 1)]
        return Tried(offsets, self.steps == 1, self.refined)

    def __post_init__(self) -> None:
        if self.method not in ("search", "legacy") or self.steps < 1 or self.width <= 0.0:
            raise RecipeError(
                f"KQuantConfig: method {self.method!r}, steps {self.steps}, width {self.width} make no search; use "
                "method 'search' or 'legacy', 1 step or more, a positive width"
            )


QUICK = KQuantConfig(steps=1, width=0.65, refined=0)
"""A search that takes a quarter of the time and loses 0.06 dB: what weights get that are large."""

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
    if not weight.size:
        values, scale, zero_point = np.empty(weight.shape, spec.dtype.numpy), *_NONE
    elif config.method == "search" and group_size(weight.shape, spec.granularity) <= _SHORT and not _whole(spec):
        values, scale, zero_point = _by_tiles(weight, spec, config, importance)
    else:
        values, scale, zero_point = _by_rows(weight, spec, config, importance)
    scale = as_scale(np.where(scale == 0, np.float32(1), scale), weight.shape, spec.granularity)
    zero_point = to_storage(as_scale(zero_point, weight.shape, spec.granularity), spec.dtype)
    return QTensor(values, QParams(spec, scale.astype(np.float32), zero_point))


def _whole(spec: TensorSpec) -> bool:
    return isinstance(spec.granularity, PerTensor)


def _by_tiles(
    weight: Array, spec: TensorSpec, config: KQuantConfig, importance: Array | None
) -> tuple[Array, Array, Array]:
    """(values, scales, zero points), the latter (rows, blocks), with short groups along the first axis of each tile.

    A weight is read in the order in which it lies in memory, whether that is by rows or by columns, and once.
    """
    rows, width = weight.shape
    size = group_size(weight.shape, spec.granularity)
    blocks = -(-width // size)
    by_rows = weight.strides[0] >= weight.strides[1]
    high = max(1, _SLAB // width) if by_rows else _ROWS
    wide = blocks if by_rows else max(1, _SLAB // (size * min(high, rows)))
    stored_as = np.dtype(f"u{np.dtype(spec.dtype.numpy).itemsize}")  # numpy moves its own types faster than 4-bit ones
    values = np.empty(weight.shape, stored_as)
    scales, zero_points = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.float32)
    counts = split_columns(importance, (1, width), spec.granularity) if importance is not None or width % size else None
    search = search_symmetric if spec.symmetric else search_affine
    spaces = threading.local()

    def solve(tile: tuple[int, int]) -> None:
        taken, cut = slice(tile[0], tile[0] + high), slice(tile[1] * size, (tile[1] + wide) * size)
        part = weight[taken, cut]
        if part.shape[1] % size:
            part = np.pad(part, ((0, 0), (0, -part.shape[1] % size)))
        apart = part.reshape(part.shape[0], -1, size)
        order = (2, 0, 1) if by_rows else (2, 1, 0)
        shape = tuple(apart.shape[axis] for axis in order)
        space = Space.of_thread(spaces, (size, part.size // size))
        x = space.x
        x.reshape(shape)[...] = apart.transpose(order)
        near, exponent, ends = near_one(x, 0)
        if ends is None:
            check_finite(weight, "kquant")
        assert ends is not None
        columns = None
        if counts is not None:
            known = np.broadcast_to(counts[tile[1] : tile[1] + wide], apart.shape)
            columns = np.ascontiguousarray(known.transpose(order)).reshape(size, -1)
        groups = Groups(space, near, (columns, importance), spec, ends)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            search(groups, spec, config.tried)
        scale = _half(np.ldexp(groups.scale, exponent), config.float16_scale)
        levels = _round(x, scale, groups.zero_point, spec, space.levels)
        stored = to_storage(levels, spec.dtype).view(stored_as).reshape(shape)
        places = (slice(tile[1], tile[1] + wide), taken)
        for found, kept in ((scale, scales), (groups.zero_point, zero_points)):
            lying = np.broadcast_to(found, (1, x.shape[1])).reshape(shape[1:])
            kept[places[::-1]] = lying if by_rows else lying.T
        if by_rows:
            values[taken, cut] = stored.transpose(1, 2, 0).reshape(part.shape)[:, : width - cut.start]
            return
        turn_into(values[taken, cut], stored)

    each(solve, [(row, block) for row in range(0, rows, high) for block in range(0, blocks, wide)])
    return values.view(spec.dtype.numpy), scales, zero_points


def _by_rows(
    weight: Array, spec: TensorSpec, config: KQuantConfig, importance: Array | None
) -> tuple[Array, Array, Array]:
    """(values, scales, zero points), the latter (groups, 1), with groups along rows."""
    values = np.empty(weight.shape, spec.dtype.numpy)
    search = search_symmetric if spec.symmetric else search_affine

    def solve(rows: slice) -> tuple[Array, Array]:
        part = np.ascontiguousarray(weight[rows])  # of a transposed view no more than this is copied
        check_finite(part, "kquant", rows.start, weight.shape)
        x = split(part, spec.granularity)
        if config.method == "legacy":
            levels, scale = _legacy(x, spec)
            scale = _half(scale, config.float16_scale)
            zero_point = np.full_like(scale, spec.midpoint)
        else:
            near, exponent, ends = near_one(x, 1)
            assert ends is not None
            columns = split_columns(importance, part.shape, spec.granularity)
            groups = Groups(Space(x.shape, 1), near, (columns, importance), spec, ends)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                search(groups, spec, config.tried)
            scale, zero_point = _half(np.ldexp(groups.scale, exponent), config.float16_scale), groups.zero_point
            levels = _round(x, scale, zero_point, spec, np.empty_like(x))
        values[rows] = to_storage(join(levels, part.shape, spec.granularity), spec.dtype)
        return scale, zero_point

    slabs = [slice(0, weight.shape[0])] if _whole(spec) else list(row_slabs(weight.shape, _SLAB))
    scales, zero_points = zip(*each(solve, slabs), strict=True)
    return values, np.concatenate(scales), np.concatenate(zero_points)


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


def _round(x: Array, scale: Array, zero_point: Array, spec: TensorSpec, out: Array) -> Array:
    """Levels on a grid, in ``out``: x / scale + zero_point, half to even, saturated."""
    levels = np.divide(x, np.where(scale == 0, np.float32(np.inf), scale), out=out)
    np.rint(levels, out=levels)
    levels += zero_point
    return np.clip(levels, np.float32(spec.qmin), np.float32(spec.qmax), out=levels)
