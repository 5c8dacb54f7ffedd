"""How far a quantized weight is from its float one."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.core.in_order import each
from onnxq.core.spec import PerBlock, QParams, QTensor

_SLAB = 1 << 18
"""Elements of a weight that are dequantized at a time: few enough to stay in the cache."""

_LARGE = 1 << 20
"""Elements of a weight beyond which its error is that of some of its rows: a hundredth of a dB is all that it costs."""

_TOGETHER = 64
"""Neighbouring rows that are taken of a large weight: of a transposed one they share the lines of the cache."""


def weight_error_db(array: Array, tensor: QTensor) -> float | None:
    """Signal to quantization noise of a weight, in dB; ``inf`` where it is exact, None where there is no signal.

    Of a large weight evenly spaced rows stand for all of them.

    Args:
        array: floating point, shape of the tensor.
        tensor: its quantized form.
    """
    width = max(1, math.prod(array.shape[1:]))

    def powers(part: slice) -> tuple[float, float]:
        real = np.ascontiguousarray(array[part], np.float32)
        error = dequantize(tensor.values[part], _rows(tensor.params, part, array.shape[0]))
        np.subtract(real, error, out=error)
        return float(np.vdot(real, real)), float(np.vdot(error, error))

    parts = each(powers, [slice(None)] if not array.ndim or _leads(tensor) else _sampled_rows(array.shape[0], width))
    signal, noise = sum(part[0] for part in parts), sum(part[1] for part in parts)
    if not signal or not math.isfinite(signal):
        return None
    return decibels(signal, noise)


def _sampled_rows(rows: int, width: int) -> list[slice]:
    """Runs of rows, as many as are dequantized at a time: all, or evenly spaced ones of a large weight."""
    together = max(1, _SLAB // width)
    if rows * width <= 2 * _LARGE:
        return [slice(start, min(start + together, rows)) for start in range(0, rows, together)]
    together = min(together, _TOGETHER)
    count = max(_LARGE // (width * together), 1)
    starts = np.linspace(0, max(rows - together, 0), count).astype(np.int64)
    return [slice(int(start), min(int(start) + together, rows)) for start in starts]


def _rows(params: QParams, part: slice, length: int) -> QParams:
    if params.scale.ndim == 0 or params.scale.shape[0] != length:
        return params
    return QParams(params.spec, params.scale[part], params.zero_point[part])


def _leads(tensor: QTensor) -> bool:
    granularity = tensor.params.spec.granularity
    return isinstance(granularity, PerBlock) and granularity.axis == 0
