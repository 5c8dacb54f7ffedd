"""Tensors stored as indices into a table: NF4, FP4 and tables fitted to the tensor.

``real = table[index] · scale``. The tables of NF4 and FP4 are bitsandbytes', in the order of its codes, which are those
that ONNX Runtime's MatMulBnb4 reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.affine import expand_blocks, scale_shape
from onnxq.core.dtypes import Array
from onnxq.core.spec import Granularity, PerBlock
from onnxq.errors import RecipeError


def _fixed(values: list[float]) -> Array:
    table = np.array(values, np.float32)
    table.flags.writeable = False
    return table


NF4 = _fixed(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""Quantiles of a normal distribution, normalised to [−1, 1]; Dettmers et al., QLoRA, arXiv:2305.14314, appendix E."""

_FP4_SIZES = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
FP4 = _fixed([size / 12 for size in _FP4_SIZES] + [-size / 12 for size in _FP4_SIZES])
"""A sign, 2 bits of exponent and 1 of fraction, normalised to [−1, 1], in the order of bitsandbytes' codes."""


@dataclass(frozen=True, eq=False)
class CodebookTensor:
    """A tensor as indices into a table of reals.

    Attributes:
        indices: uint8, in the tensor's shape.
        table: float32; (entries,) where all share one, or (groups, entries) with one for each group of
            ``granularity``, in the order of the scale's elements.
        scale: float32, shape of ``QParams.scale``; the largest magnitude of each group for NF4 and FP4, ones for a
            table fitted to the tensor itself.
        granularity: which elements share a scale (and a table of their own).
        bits: bits an index takes when packed, 4 or 8.
    """

    indices: Array
    table: Array
    scale: Array
    granularity: Granularity
    bits: int


def decode(tensor: CodebookTensor) -> Array:
    """Real values, float32, in the tensor's shape.

    Raises:
        RecipeError: table or scale do not fit the indices.
    """
    shape = tensor.indices.shape
    groups = scale_shape(shape, tensor.granularity)
    size = tensor.granularity.size if isinstance(tensor.granularity, PerBlock) else None
    if tensor.scale.shape != groups or tensor.table.ndim not in (1, 2):
        raise RecipeError(
            f"decode: a scale of shape {tensor.scale.shape} and a table of shape {tensor.table.shape} do not fit "
            f"indices of shape {shape}; the scale's must be {groups}"
        )
    scale = expand_blocks(tensor.scale, shape, size)
    if tensor.table.ndim == 1:
        return np.asarray(tensor.table[tensor.indices] * scale, np.float32)
    count = int(np.prod(groups))
    if tensor.table.shape[0] != count:
        raise RecipeError(f"decode: {tensor.table.shape[0]} tables for {count} groups; there must be one each")
    group = expand_blocks(np.arange(count).reshape(groups), shape, size)
    return np.asarray(tensor.table[group, tensor.indices] * scale, np.float32)
