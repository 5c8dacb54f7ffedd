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


@dataclass(frozen=True, eq=False)
class DoubleScale:
    """Scales that are quantized themselves: ``scale = table[index] · block scale + offset``.

    Attributes:
        indices: uint8, shape of the scales.
        scale: float32, (blocks,); each serves ``block`` scales in C order.
        offset: the mean of the scales, taken off before they were quantized.
        block: scales that share a block scale.
    """

    indices: Array
    scale: Array
    offset: float
    block: int = 256


def dynamic_table() -> Array:
    """The 256 values of bitsandbytes' dynamic 8-bit type, rising from −0.993 to 1, float32.

    Seven decades; each next larger one has twice as many values. There is a zero, and a 1 with no −1 to match.

    References:
        Dettmers, 8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561.
    """
    positive = []
    for power in range(7):
        edges = np.linspace(0.1, 1.0, 2**power + 1)
        positive.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6))
    sizes = np.concatenate(positive)
    return np.sort(np.concatenate([sizes, -sizes, [0.0, 1.0]])).astype(np.float32)


def double_quantize(scale: Array, block: int = 256) -> DoubleScale:
    """Store scales in 8 bits each: less their mean, by the dynamic 8-bit type, in blocks.

    Args:
        scale: float32, any shape.
        block: scales that share a block scale.

    Returns:
        DoubleScale; for blocks of 64 weights it saves 0.37 bits a weight.

    Raises:
        RecipeError: the block is not positive.

    References:
        Dettmers et al., QLoRA, arXiv:2305.14314, section 3.
    """
    if block < 1:
        raise RecipeError(f"double_quantize: a block of {block} scales is not positive; 256 is usual")
    flat = np.asarray(scale, np.float32).ravel()
    offset = float(np.mean(flat, dtype=np.float64)) if flat.size else 0.0
    rest = np.pad(flat - np.float32(offset), (0, -flat.size % block)).reshape(-1, block)
    absmax = np.abs(rest).max(axis=1) if rest.size else np.zeros(0, np.float32)
    table = dynamic_table()
    normal = rest / np.where(absmax > 0, absmax, np.float32(1))[:, None]
    indices = np.searchsorted((table[:-1] + table[1:]) * np.float32(0.5), normal.ravel()[: flat.size])
    return DoubleScale(indices.astype(np.uint8).reshape(scale.shape), absmax, offset, block)


def decode_scale(double: DoubleScale) -> Array:
    """The scales again, float32, in their shape."""
    flat = dynamic_table()[double.indices.ravel()]
    block_scale = np.repeat(double.scale, double.block)[: flat.size]
    return np.asarray(flat * block_scale + np.float32(double.offset), np.float32).reshape(double.indices.shape)
