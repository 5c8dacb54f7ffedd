"""Bias correction: what rounding the weights adds to the mean of each output channel is taken from the bias.

With Ŵ the quantized weight, E[Ŵx] − E[Wx] = (Ŵ − W)·E[x]: known once the mean of each input channel is, and as large
as the rounding noise itself where inputs are positive, as behind a Relu.

References:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section
    4.2, with E[x] from calibration.
"""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.spec import QTensor
from onnxq.graph import walk
from onnxq.graph.reading.ops import is_weight, row_of
from onnxq.graph.types import Node

_LARGEST_RANK = 5
"""GlobalAveragePool, which takes the means, is for images of at most three dimensions."""


def mean_kind(node: Node) -> str | None:
    """How the mean of the node's input is taken: over the "image" (Conv), over "rows" (Gemm); None: not wanted."""
    row = row_of(node)
    weight = walk.const_array(node.inputs[1]) if row is not None and is_weight(node, row) else None
    if weight is None or weight.ndim > _LARGEST_RANK or (node.op_type == "Conv" and weight.ndim < 3):
        return None  # a Conv without an axis to go along is allowed, and pooling is not
    if node.op_type == "Gemm" and walk.attr_int(node, "transA"):
        return None  # its channels lie along the first axis
    return {"Conv": "image", "Gemm": "rows"}.get(node.op_type)


def correction(node: Node, quantized: QTensor, mean: Array, shape: tuple[int, ...] | None) -> Array | None:
    """What to add to the bias.

    Args:
        node: a Conv or Gemm with a constant weight.
        quantized: its weight on integers.
        mean: float64, (input channels,), mean of each input channel.
        shape: of the input in one sample; None counts zeros that a Conv pads with as if they were the mean.

    Returns:
        float64, (output channels,); None where the mean does not fit the weight.
    """
    weight = walk.const_array(node.inputs[1])
    assert weight is not None
    lost = weight.astype(np.float64) - dequantize(quantized.values, quantized.params)
    if node.op_type == "Gemm":
        by_output = lost if walk.outputs_first(node) else lost.T
        return np.asarray(by_output @ mean) if by_output.shape[1] == mean.size else None
    groups = walk.attr_int(node, "group", 1)
    out_channels, in_channels = lost.shape[:2]
    if mean.size != in_channels * groups or out_channels % groups:
        return None
    inside = _inside(node, lost.shape[2:], shape)
    by_channel = (lost * inside).reshape(groups, out_channels // groups, in_channels, -1).sum(axis=-1)
    return np.asarray(np.einsum("goi,gi->go", by_channel, mean.reshape(groups, in_channels))).reshape(-1)


def _inside(node: Node, kernel: tuple[int, ...], shape: tuple[int, ...] | None) -> Array:
    """Share of output positions for which each weight of the window meets the image, not its padding."""
    share: Array = np.ones((1,) * len(kernel))
    if shape is None or len(shape) != len(kernel) + 2:
        return share
    strides = walk.attr_ints(node, "strides", [1] * len(kernel))
    dilations = walk.attr_ints(node, "dilations", [1] * len(kernel))
    for axis, (size, length) in enumerate(zip(kernel, shape[2:], strict=True)):
        step, spread = strides[axis], dilations[axis]
        begin, end = _pads(node, axis, len(kernel), (size, length, step, spread))
        positions = np.arange(max((length + begin + end - spread * (size - 1) - 1) // step + 1, 1)) * step
        taps = np.arange(size) * spread - begin
        where = positions[:, None] + taps
        along = ((where >= 0) & (where < length)).mean(axis=0)
        share = share * along.reshape([-1 if i == axis else 1 for i in range(len(kernel))])
    return share


def _pads(node: Node, axis: int, rank: int, sizes: tuple[int, int, int, int]) -> tuple[int, int]:
    size, length, step, spread = sizes
    auto = walk.attr_str(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = max((math.ceil(length / step) - 1) * step + spread * (size - 1) + 1 - length, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if auto == "SAME_UPPER" else (large, small)
    if auto == "VALID":
        return 0, 0
    pads = walk.attr_ints(node, "pads", [0] * 2 * rank)
    return pads[axis], pads[axis + rank]
