"""Nearest entries of a fixed table, such as NF4 or FP4."""

from __future__ import annotations

import numpy as np

from onnxq.algorithms.groups import as_scale, check_finite, check_layout, row_slabs, split
from onnxq.core.affine import expand_blocks
from onnxq.core.codebook import FP4, NF4, CodebookTensor
from onnxq.core.dtypes import Array
from onnxq.core.spec import Granularity, PerBlock, PerTensor
from onnxq.errors import RecipeError

# bitsandbytes' thresholds, as float32: the midpoints, but for the last bit or two
_NF4_THRESHOLDS = np.array(
    [
        -0.84809643,
        -0.6106329262256622,
        -0.4599952697753906,
        -0.33967943489551544,
        -0.23460740596055984,
        -0.13791173323988914,
        -0.045525018125772476,
        0.03979014977812767,
        0.120255254,
        0.2035212516784668,
        0.2920137718319893,
        0.3893125355243683,
        0.5016634,
        0.6427869200706482,
        0.8614784,
    ],
    np.float32,
)
_FP4_THRESHOLDS = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], np.float32)
_FP4_CODES = np.array([0, 1, 6, 7, 4, 5, 2, 3], np.uint8)


def quantize_codebook(
    weight: Array, table: Array = NF4, granularity: Granularity | None = None, bits: int | None = None
) -> CodebookTensor:
    """Store each element as the entry of a table that is nearest to it, once its group's largest magnitude is 1.

    An element half way between two entries takes the lower one; for NF4 and FP4 the thresholds are bitsandbytes'.

    Args:
        weight: float32, (out, in). MatMulBnb4 counts its blocks through the flat weight: pass a weight whose inputs
            are no multiple of the block as (1, out · in).
        table: float32, (entries,), at most 256, distinct, within [−1, 1] for all to be used.
        granularity: which elements share a scale; None takes blocks of 64 along the inputs.
        bits: bits of an index; None takes 4 for up to 16 entries, otherwise 8.

    Returns:
        CodebookTensor; scale is the largest magnitude of each group (1 where that is 0).

    Raises:
        ModelError: the weight is not finite.
        RecipeError: the table does not fit the bits, or the groups do not lie along rows.

    References:
        Dettmers et al., QLoRA, arXiv:2305.14314.
    """
    granularity = PerBlock(1, 64) if granularity is None else granularity
    weight = check_layout(weight, granularity, "quantize_codebook")
    check_finite(weight, "quantize_codebook")
    table = np.asarray(table, np.float32)
    bits = bits if bits is not None else (4 if table.size <= 16 else 8)
    if table.ndim != 1 or not 2 <= table.size <= 1 << bits or bits not in (4, 8):
        raise RecipeError(
            f"quantize_codebook: a table of shape {table.shape} does not fit indices of {bits} bits; "
            "use 2 to 16 entries for 4 bits, up to 256 for 8"
        )
    absmax = _absmax(weight, granularity)
    # the reciprocal is what bitsandbytes multiplies with: the last bit decides elements that lie on a threshold
    # and of a group below the normal numbers it would be infinite: such a group is zero
    absmax[absmax < np.finfo(np.float32).tiny] = 0.0
    inverse = np.divide(np.float32(1), absmax, out=np.zeros_like(absmax), where=absmax > 0)
    indices = np.empty(weight.shape, np.uint8)
    size = granularity.size if isinstance(granularity, PerBlock) else None
    for rows in row_slabs(weight.shape):
        piece = inverse if inverse.shape[0] == 1 else inverse[rows]
        with np.errstate(under="ignore"):
            normal = weight[rows] * expand_blocks(piece, weight[rows].shape, size)
        indices[rows] = _nearest(normal, table)
    return CodebookTensor(indices, table, np.where(absmax > 0, absmax, np.float32(1)), granularity, bits)


def _absmax(weight: Array, granularity: Granularity) -> Array:
    if not weight.size:
        return as_scale(np.zeros(_groups(weight, granularity), np.float32), weight.shape, granularity)
    parts = []
    for rows in row_slabs(weight.shape):
        groups = split(weight[rows], granularity)
        parts.append(np.maximum(groups.max(axis=1), -groups.min(axis=1)))
    found = np.concatenate(parts)
    if isinstance(granularity, PerTensor):
        found = found.max(keepdims=True)
    return as_scale(found, weight.shape, granularity)


def _groups(weight: Array, granularity: Granularity) -> int:
    return 1 if isinstance(granularity, PerTensor) else split(weight, granularity).shape[0]


def _nearest(normal: Array, table: Array) -> Array:
    if np.array_equal(table, FP4):
        codes = _FP4_CODES[np.searchsorted(_FP4_THRESHOLDS, np.abs(normal))]
        return np.asarray(codes + ((normal < 0) * np.uint8(8)), np.uint8)
    if np.array_equal(table, NF4):
        return np.searchsorted(_NF4_THRESHOLDS, normal).astype(np.uint8)
    order = np.argsort(table, kind="stable")
    ranked = table[order].astype(np.float64)
    thresholds = ((ranked[:-1] + ranked[1:]) * 0.5).astype(np.float32)
    return np.asarray(order.astype(np.uint8)[np.searchsorted(thresholds, normal)])
