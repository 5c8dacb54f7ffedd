"""What one array shows of a value: all that its statistic takes of it, so that the array itself can go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.extrema import Extrema
from onnxq.stats.powers import Squares, squares_of, steps_of
from onnxq.stats.sample_ends import ends_of


class Observation(NamedTuple):
    """What one array shows; it holds no memory of the array.

    Attributes:
        shape: of the value.
        extrema: exact.
        sample: (elements,), every ``step``-th element of the array that is finite.
        step: `stride` of the array's shape.
        further: of every so many elements of ``sample`` the square is looked at.
        squares: of each sample of the array; None where the array is one sample that is finite throughout: they are
            those of ``sample``, and cost less together with others.
        ends: smallest and largest finite element of each sample of the array.
    """

    shape: tuple[int, ...]
    extrema: Extrema
    sample: Array
    step: int
    further: int
    squares: list[Squares] | None
    ends: list[tuple[float, float]]


def observe(
    array: Array, samples: int = 1, shape: tuple[int, ...] | None = None, floor: float | None = None
) -> Observation:
    """Look at an array; no statistic is touched, so that several threads can do this at once.

    Args:
        array: float16, float32 or float64.
        samples: how many samples were run at once; where the first axis has this length, it is the samples'.
        shape: shape of the value, where the array is only a part of it.
        floor: what no element but a NaN can be below, if that is known; where the sample reaches it, as that of a ReLU
            does, nothing smaller is looked for.

    Raises:
        CalibrationError: the array is not floating point.
    """
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CalibrationError(f"update: element type {array.dtype} is not float16, float32 or float64")
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 2:
        flat = flat.astype(np.float32)  # four times faster than reducing float16
    whole = array.shape
    step, further = steps_of(whole)
    high = float(np.maximum.reduce(flat)) if flat.size else None
    sample = flat[::step].copy()  # now that the array is in the cache
    low = floor if floor is not None and sample.size and np.minimum.reduce(sample) == floor else None
    extrema = Extrema.of(flat, low, high)
    if not extrema.finite:
        sample = sample[np.isfinite(sample)]
    several = array.ndim > 1 and samples > 1 and array.shape[0] == samples
    squares = None
    if several or not extrema.finite:
        squares = squares_of(array, samples if several else 1, finite=extrema.finite)
    ends = ends_of(array, samples, finite=extrema.finite) if several else [(extrema.low, extrema.high)]
    return Observation(
        whole if shape is None else shape,
        extrema,
        sample,
        step,
        further,
        squares,
        ends,
    )
