"""Affine quantization: ranges to parameters, tensors to integers and back.

``real = scale · (quantized − zero_point)``. Zero is always exactly representable, division is in float32, rounding is
half-to-even and precedes the addition of the zero point: bit for bit what ONNX Runtime's QuantizeLinear and
DequantizeLinear compute. Tensors are worked on in slabs that fit the cache, so that a large weight is never copied
whole into floating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerToken, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

_SLAB = 1 << 17
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


def _axis(axis: int, rank: int, granularity: str) -> int:
    if not -rank <= axis < rank:
        raise RecipeError(f"{granularity}: axis {axis} is outside a tensor of rank {rank}; use {-rank} to {rank - 1}")
    return axis % rank


def scale_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Shape of the scale of a tensor of ``shape``: same rank, each shared axis of length 1 (blocks: rounded up).

    Raises:
        RecipeError: the granularity's axis is outside the shape.
    """
    match granularity:
        case PerAxis(axis):
            kept = _axis(axis, len(shape), "PerAxis")
            return tuple(length if index == kept else 1 for index, length in enumerate(shape))
        case PerBlock(axis, size):
            kept = _axis(axis, len(shape), "PerBlock")
            return tuple(-(-length // size) if index == kept else length for index, length in enumerate(shape))
        case PerToken():
            return (*shape[:-1], 1) if shape else ()
        case _:
            return (1,) * len(shape)


def expand_blocks(scale: Array, shape: tuple[int, ...], size: int | None = None) -> Array:
    """Repeat ``scale`` so that it has one entry for each element of a tensor of ``shape``.

    Args:
        scale: rank of the tensor, or rank 0; each axis has length 1, the tensor's, or its number of blocks.
        shape: the tensor's shape.
        size: elements in a block; None takes the length divided by the number of blocks, rounded up, which is
            unambiguous where blocks are even.

    Returns:
        A read-only or fresh array of ``shape``.

    Raises:
        RecipeError: the scale does not fit the shape.
    """
    if scale.ndim not in (0, len(shape)):
        raise RecipeError(f"expand_blocks: scale of shape {scale.shape} does not fit a tensor of shape {shape}")
    for axis, count in enumerate(scale.shape):
        length = shape[axis]
        if count in (1, length):
            continue
        step = size if size is not None else -(-length // max(count, 1))
        if -(-length // step) != count:
            raise RecipeError(
                f"expand_blocks: axis {axis} of length {length} has {count} scales, which blocks of {step} do not give"
            )
        scale = scale.take(np.arange(length) // step, axis=axis)
    return np.broadcast_to(scale, shape)


def reduce_range(x: Array, granularity: Granularity) -> tuple[Array, Array]:
    """Smallest and largest element of each group that shares a scale.

    Non-finite elements are ignored; a group without elements has the range (0, 0).

    Args:
        x: floating point, any shape.
        granularity: which elements share a scale.

    Returns:
        (low, high) of the element type of ``x`` and the shape of ``QParams.scale``.

    Raises:
        RecipeError: the granularity's axis is outside the tensor.
    """
    x = np.asarray(x)
    shape = scale_shape(x.shape, granularity)
    if x.size == 0:
        return np.zeros(shape, x.dtype), np.zeros(shape, x.dtype)
    low = _reduce(np.minimum, x, granularity)
    high = _reduce(np.maximum, x, granularity)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(x)
        seen = _reduce(np.logical_or, finite, granularity)
        zero = x.dtype.type(0)
        low = np.where(seen, _reduce(np.minimum, np.where(finite, x, x.dtype.type(np.inf)), granularity), zero)
        high = np.where(seen, _reduce(np.maximum, np.where(finite, x, x.dtype.type(-np.inf)), granularity), zero)
    return low, high


def _reduce(function: np.ufunc, x: Array, granularity: Granularity) -> Array:
    match granularity:
        case PerAxis(axis):
            kept = _axis(axis, x.ndim, "PerAxis")
            others = tuple(index for index in range(x.ndim) if index != kept)
            return np.asarray(function.reduce(x, axis=others, keepdims=True)) if others else x
        case PerBlock(axis, size):
            return _reduce_blocks(function, x, _axis(axis, x.ndim, "PerBlock"), size)
        case PerToken():
            return np.asarray(function.reduce(x, axis=-1, keepdims=True)) if x.ndim else x
        case _:
            return np.asarray(function.reduce(x, axis=None, keepdims=True))


def _reduce_blocks(function: np.ufunc, x: Array, axis: int, size: int) -> Array:
    length = x.shape[axis]
    if axis == x.ndim - 1:  # reduceat is the faster of the two where blocks are contiguous
        return np.asarray(function.reduceat(x, np.arange(0, length, size), axis=axis))
    even = length // size * size
    head, tail = np.split(x, [even], axis=axis)
    blocked = head.reshape(*x.shape[:axis], even // size, size, *x.shape[axis + 1 :])
    parts = [np.asarray(function.reduce(blocked, axis=axis + 1))]
    if even < length:
        parts.append(np.asarray(function.reduce(tail, axis=axis, keepdims=True)))
    return np.concatenate(parts, axis=axis)


def params_from_range(low: npt.ArrayLike, high: npt.ArrayLike, spec: TensorSpec) -> QParams:
    """Scale and zero point whose grid covers a range.

    The range is first widened to hold zero. An affine grid spans it exactly, up to the rounding of the zero point
    (at most half a step at either end); a symmetric grid is centred on zero and wide enough that nothing in the range
    is clipped; on a mirrored one nothing is off by more than half a step. A range of zero width gets scale 1; one so
    narrow that the scale would be subnormal gets the smallest normal float32.

    Args:
        low: lower ends, units of the tensor; any shape that broadcasts with ``high``.
        high: upper ends.
        spec: the grid.

    Returns:
        QParams whose scale (float32) and zero point have the broadcast shape of the range.

    Raises:
        CalibrationError: an end of the range is NaN or infinite.
    """
    lows, highs = np.broadcast_arrays(np.asarray(low), np.asarray(high))
    shape = lows.shape
    lows, highs = lows.reshape(-1), highs.reshape(-1)
    scale, zero_point = np.empty(lows.size, np.float32), np.empty(lows.size, spec.dtype.numpy)
    for start in range(0, lows.size, _SLAB):  # small blocks have many ranges, which in float64 would be large
        part = slice(start, start + _SLAB)
        scale[part], zero_point[part] = _params_of_slab(
            lows[part].astype(np.float64), highs[part].astype(np.float64), spec
        )
    return QParams(spec, scale.reshape(shape), zero_point.reshape(shape))


def _params_of_slab(lows: Array, highs: Array, spec: TensorSpec) -> tuple[Array, Array]:
    """(scale, zero point) of finite or other ranges, float64."""
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise CalibrationError(
            "params_from_range: a range has a NaN or infinite end; finite ends are needed, check the weights or samples"
        )
    lows = np.clip(lows, -_LARGEST, 0.0)
    highs = np.clip(highs, 0.0, _LARGEST)
    if spec.symmetric:
        below, above = spec.midpoint - spec.qmin, spec.qmax - spec.midpoint
        if spec.mirrored:
            # the near end may lie half a step beyond the last level: that rounds no worse than any other number
            far, near = np.maximum(-lows, highs), np.minimum(-lows, highs)
            wide = np.maximum(far / below, near / (above + 0.5))
        else:
            wide = np.maximum(-lows / below, highs / above)
    else:
        wide = (highs - lows) / (spec.qmax - spec.qmin)
    floored = np.clip(wide, _SMALLEST_SCALE, _LARGEST).astype(np.float32)
    scale = np.asarray(np.where(wide > 0.0, floored, np.float32(1.0)), np.float32)
    if spec.symmetric and spec.mirrored:
        scale = np.where(highs > -lows, -scale, scale)
    if spec.symmetric:
        zero_point = np.full(scale.shape, spec.midpoint, np.int64)
    else:
        step = np.where(floored == wide.astype(np.float32), wide, scale)  # not rounded, which would decide ties
        zero_point = np.clip(np.rint(spec.qmin - lows / np.where(wide > 0.0, step, 1.0)), spec.qmin, spec.qmax)
    return scale, to_storage(np.asarray(zero_point), spec.dtype)


def params_for(x: Array, spec: TensorSpec) -> QParams:
    """Scale and zero point from the extrema of ``x`` itself, group by group; see `params_from_range`."""
    return params_from_range(*reduce_range(x, spec.granularity), spec)


def dynamic_params(x: Array) -> QParams:
    """Scale and zero point that DynamicQuantizeLinear would choose at run time, computed in float32 as it does.

    Args:
        x: float32, any shape.

    Returns:
        uint8 affine, one scale for the tensor. Where ONNX Runtime's scale is zero or subnormal (a range below 3e-36),
        this one is the smallest normal float32.

    Raises:
        CalibrationError: ``x`` holds NaN or infinite elements.
    """
    x = np.asarray(x, np.float32)
    shape = (1,) * x.ndim
    spec = TensorSpec(QType.UINT8)
    zero = np.float32(0.0)
    low = np.minimum(np.min(x, initial=zero), zero)
    high = np.maximum(np.max(x, initial=zero), zero)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CalibrationError("dynamic_params: the tensor holds NaN or infinite elements; finite ones are needed")
    with np.errstate(over="ignore"):
        width = high - low
    if width == 0:
        scale, zero_point = np.float32(1.0), np.float32(0.0)
    else:
        scale = np.float32(np.clip(width / np.float32(255.0), _SMALLEST_SCALE, _LARGEST))
        zero_point = np.rint(np.clip(np.float32(0.0) - low / scale, np.float32(0.0), np.float32(255.0)))
    return QParams(spec, np.full(shape, scale, np.float32), np.full(shape, zero_point).astype(np.uint8))


def to_storage(integers: Array, dtype: QType) -> Array:
    """Cast whole numbers inside the range of ``dtype`` to its numpy type."""
    if dtype.bits >= 8:
        return integers.astype(dtype.numpy)
    # the canonical byte has its unused high bits clear, which a cast through int8 and a mask gives 5 times faster
    stored = np.asarray(integers.astype(np.int8))
    return np.bitwise_and(stored, (1 << dtype.bits) - 1, out=stored).view(dtype.numpy)


def _work_type(dtype: QType) -> type[np.floating]:
    return np.float64 if dtype is QType.INT32 else np.float32  # 24 bits of mantissa hold no int32


def _block_size(params: QParams) -> int:
    return params.spec.granularity.size if isinstance(params.spec.granularity, PerBlock) else 0


def _check_fit(shape: tuple[int, ...], params: QParams) -> None:
    size = _block_size(params)
    given = params.scale.shape
    if params.scale.ndim != 0:
        fits = len(given) == len(shape) and all(
            count in (1, length) or (size and count == -(-length // size))
            for count, length in zip(given, shape, strict=True)
        )
        if not fits:
            raise RecipeError(
                f"quantize: scale of shape {given} does not fit a tensor of shape {shape} with "
                f"{params.spec.granularity}; lengths must be 1, the tensor's, or its number of blocks"
            )


def _part(values: Array, shape: tuple[int, ...], lead: int, rows: slice, size: int) -> Array:
    """The scales (or zero points) of one slab, repeated within blocks so that they broadcast with it."""
    if values.ndim == 0:
        return values
    for axis, length in enumerate(shape):
        count = values.shape[axis]
        if axis == lead:
            if count == length and count != 1:
                values = values[(slice(None),) * axis + (rows,)]
            elif count != 1:
                values = values.take(np.arange(rows.start, rows.stop) // size, axis=axis)
        elif count not in (1, length):
            values = values.take(np.arange(length) // size, axis=axis)
    return values


def _slabs(shape: tuple[int, ...], params: QParams) -> Iterator[tuple[tuple[Any, ...], Array, Array]]:
    """(index, scale, zero_point) of pieces of about a cache's size; scale and zero point in the working type."""
    _check_fit(shape, params)
    work = _work_type(params.spec.dtype)
    scale = params.scale.astype(np.float32).astype(work)
    zero_point = params.zero_point.astype(work)
    total = int(np.prod(shape))
    if total == 0:
        return
    lead = next((axis for axis, length in enumerate(shape) if length > 1), 0)
    length = shape[lead] if shape else 1
    rows = max(1, _SLAB * length // total)
    size = _block_size(params)
    for start in range(0, length, rows):
        part = slice(start, min(start + rows, length))
        index = (slice(None),) * lead + (part,) if shape else (...,)
        yield index, _part(scale, shape, lead, part, size), _part(zero_point, shape, lead, part, size)


def _quantize_slab(x: Array, scale: Array, zero_point: Array, spec: TensorSpec) -> Array:
    """Whole numbers in the working type; NaN becomes the lowest integer, as in ONNX Runtime on x86.

    Of float8 those that the type holds, and NaN stays.
    """
    # the division overflows where the result saturates, is invalid on NaN
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        whole = np.asarray(np.divide(x, scale, dtype=scale.dtype))
        if spec.dtype.is_float:
            held: Array = np.clip(whole, spec.qmin, spec.qmax).astype(spec.dtype.numpy)
            return held.astype(whole.dtype)
        np.rint(whole, out=whole)
        np.add(whole, zero_point, out=whole)
        np.fmax(whole, whole.dtype.type(spec.qmin), out=whole)
        np.fmin(whole, whole.dtype.type(spec.qmax), out=whole)
    return whole


def quantize(x: Array, params: QParams) -> Array:
    """Round a tensor onto its grid: ``saturate(round(x / scale) + zero_point)``.

    Args:
        x: floating point, any shape; worked on as float32 (float64 for an int32 grid).
        params: scale and zero point that fit the shape.

    Returns:
        Integers of ``params.spec.dtype.numpy``, shape of ``x``.

    Raises:
        RecipeError: the scale does not fit the shape.

    References:
        ONNX operator specification, QuantizeLinear-21.
    """
    x = np.asarray(x)
    out = np.empty(x.shape, params.spec.dtype.numpy)
    work = _work_type(params.spec.dtype)
    for index, scale, zero_point in _slabs(x.shape, params):
        piece = x[index].astype(work, copy=False)
        out[index] = to_storage(_quantize_slab(piece, scale, zero_point, params.spec), params.spec.dtype)
    return out


def dequantize(q: Array, params: QParams) -> Array:
    """Real values of integers: ``(q − zero_point) · scale``.

    Args:
        q: integers of ``params.spec.dtype.numpy``, any shape.
        params: scale and zero point that fit the shape.

    Returns:
        float32, shape of ``q``.

    Raises:
        RecipeError: the scale does not fit the shape.

    References:
        ONNX operator specification, DequantizeLinear-21.
    """
    q = np.asarray(q)
    out = np.empty(q.shape, np.float32)
    work = _work_type(params.spec.dtype)
    for index, scale, zero_point in _slabs(q.shape, params):
        _dequantize_slab(q[index].astype(work), scale, zero_point, out[index])
    return out


def _dequantize_slab(whole: Array, scale: Array, zero_point: Array, out: Array) -> None:
    np.subtract(whole, zero_point, out=whole)
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(whole.astype(np.float32, copy=False), scale.astype(np.float32, copy=False), out=out)


def quantize_tensor(x: Array, spec: TensorSpec) -> QTensor:
    """Quantize a tensor by its own extrema; see `params_for` and `quantize`."""
    params = params_for(x, spec)
    return QTensor(quantize(x, params), params)


def fake_quantize(x: Array, params: QParams) -> Array:
    """The tensor after a trip onto the grid and back, ``dequantize(quantize(x))``, without the integers.

    Returns:
        float32, shape of ``x``.
    """
    x = np.asarray(x)
    out = np.empty(x.shape, np.float32)
    work = _work_type(params.spec.dtype)
    for index, scale, zero_point in _slabs(x.shape, params):
        piece = x[index].astype(work, copy=False)
        _dequantize_slab(_quantize_slab(piece, scale, zero_point, params.spec), scale, zero_point, out[index])
    return out
