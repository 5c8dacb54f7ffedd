"""What one array shows of a value: all that its statistic takes of it, so that the array itself can go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.extrema import Extrema
from onnxq.stats.histogram import stride
from onnxq.stats.powers import Squares, powers_step, squares_of
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


def observe(array: Array, samples: int = 1, shape: tuple[int, ...] | None = None) -> Observation:
    """Look at an array; no statistic is touched, so that several threads can do this at once.

    Args:
        array: float16, float32 or float64.
        samples: how many samples were run at once; where the first axis has this length, it is the samples'.
        shape: shape of the value, where the array is only a part of it.

    Raises:
        CalibrationError: the array is not floating point.
    """
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CalibrationError(f"update: element type {array.dtype} is not float16, float32 or float64")
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 2:
        flat = flat.astype(np.float32)  # four times faster than reducing float16
    step = stride(array.shape)
    sample = flat[::step].copy()  # read across the cache once, not five times
    extrema = Extrema.of(flat)
    if not extrema.finite:
        sample = sample[np.isfinite(sample)]
    several = array.ndim > 1 and samples > 1 and array.shape[0] == samples
    squares = None
    if several or not extrema.finite:
        squares = squares_of(array, samples if several else 1, finite=extrema.finite)
    ends = ends_of(array, samples, finite=extrema.finite) if several else [(extrema.low, extrema.high)]
    return Observation(
        array.shape if shape is None else shape,
        extrema,
        sample,
        step,
        powers_step(array.shape) // step,
        squares,
        ends,
    )
