"""A weight seen as rows of elements that share a scale.

Every group search works on a (groups, elements) array, whatever the granularity. An uneven last block is filled up
with zeros, which are exact on every grid: they change no range and no error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.core.affine import scale_shape
from onnxq.core.dtypes import Array
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, QParams
from onnxq.errors import ModelError, RecipeError

_SLAB = 1 << 18


def check_layout(weight: Array, granularity: Granularity, where: str) -> Array:
    """The weight as float32, if it is a matrix whose groups lie along its rows.

    Args:
        weight: (out, in).
        granularity: `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        where: name of the caller, for the message.

    Raises:
        RecipeError: anything else.
    """
    if weight.ndim != 2:
        raise RecipeError(f"{where}: a weight of shape {weight.shape} is no matrix; pass it as (out, in)")
    match granularity:
        case PerBlock(axis=1 | -1) | PerAxis(axis=0 | -2) | PerTensor():
            return np.asarray(weight, np.float32)
        case _:
            raise RecipeError(
                f"{where}: groups by {granularity} do not lie along the rows of an (out, in) weight; "
                "use PerBlock(1, size), PerAxis(0) or PerTensor()"
            )


def check_finite(weight: Array, where: str, first: int = 0, shape: tuple[int, ...] | None = None) -> None:
    """Refuse a weight with NaN or infinite elements, which no search can weigh against the others.

    Args:
        weight: (rows, columns).
        where: name of the caller, for the message.
        first: number of the first of these rows in the whole weight.
        shape: of the whole weight; None where this is it.

    Raises:
        ModelError: it has some.
    """
    for rows in row_slabs(weight.shape):
        bad = int(np.size(weight[rows]) - np.count_nonzero(np.isfinite(weight[rows])))
        if bad:
            raise ModelError(
                f"{where}: the weight of shape {shape or weight.shape} holds NaN or infinite elements ({bad} of them "
                f"in rows {first + rows.start} to {first + rows.stop - 1}); only rounding to nearest (rtn) takes it, "
                "better exclude the layer"
            )


def group_size(shape: tuple[int, ...], granularity: Granularity) -> int:
    """Elements along a row that share a scale."""
    return min(granularity.size, max(shape[1], 1)) if isinstance(granularity, PerBlock) else shape[1]


def split(weight: Array, granularity: Granularity) -> Array:
    """(groups, elements) of an (out, in) array; a view where blocks are even."""
    rows, columns = weight.shape
    if isinstance(granularity, PerTensor):
        return weight.reshape(1, rows * columns)
    size = group_size(weight.shape, granularity)
    if size and columns % size:
        weight = np.pad(weight, ((0, 0), (0, -columns % size)))
    return weight.reshape(-1, size) if size else weight.reshape(rows, 0)


def join(groups: Array, shape: tuple[int, ...], granularity: Granularity) -> Array:
    """The (out, in) array that `split` took apart."""
    if isinstance(granularity, PerBlock) and groups.size:
        return groups.reshape(shape[0], -1)[:, : shape[1]]
    return groups.reshape(shape)


def split_columns(values: Array | None, shape: tuple[int, ...], granularity: Granularity) -> Array:
    """One number for each input, as (groups, elements), for an (out, in) weight; the filling gets 0.

    Args:
        values: (in,) or None for ones.
        shape: (out, in).
        granularity: as of the weight.
    """
    size = group_size(shape, granularity)
    if values is None and not (size and shape[1] % size):
        count = shape[0] * (shape[1] // size if size else 1)
        whole = (1, shape[0] * shape[1]) if isinstance(granularity, PerTensor) else (count, size)
        return np.broadcast_to(np.float32(1), whole)  # takes no memory
    row = np.ones(shape[1], np.float32) if values is None else np.asarray(values, np.float32).reshape(-1)
    if row.shape != (shape[1],):
        raise RecipeError(f"importance of {row.size} inputs does not fit a weight of shape {shape}; pass {shape[1]}")
    if isinstance(granularity, PerTensor):
        return np.broadcast_to(row, shape).reshape(1, -1)
    blocks = split(row[None], granularity)
    return np.broadcast_to(blocks, (shape[0], *blocks.shape)).reshape(-1, blocks.shape[1])


def as_scale(values: Array, shape: tuple[int, ...], granularity: Granularity) -> Array:
    """One number a group, in the shape of the scale."""
    return values.reshape(scale_shape(shape, granularity))


def row_slabs(shape: tuple[int, ...], elements: int = _SLAB) -> Iterator[slice]:
    """Runs of rows of about ``elements`` elements."""
    step = max(1, elements // max(shape[1], 1))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def rows_of(params: QParams, rows: slice) -> QParams:
    """The parameters of some rows of the weight."""
    if params.scale.shape[0] == 1:
        return params
    return QParams(params.spec, params.scale[rows], params.zero_point[rows])
