"""Integers whose zero point is a float: ``real = scale · (quantized − zero_point)`` all the same.

Few kernels take it (MatMulNBits does); zero itself is then not exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.affine import expand_blocks
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, TensorSpec


@dataclass(frozen=True, eq=False)
class FloatZeroTensor:
    """A tensor on a grid whose zero point lies between integers.

    Attributes:
        values: integers of ``spec.dtype.numpy``, in the tensor's shape.
        spec: their grid.
        scale: float32, positive, shape of ``QParams.scale``.
        zero_point: float32, same shape.
    """

    values: Array
    spec: TensorSpec
    scale: Array
    zero_point: Array


def decode(tensor: FloatZeroTensor) -> Array:
    """Real values, float32, in the tensor's shape."""
    size = tensor.spec.granularity.size if isinstance(tensor.spec.granularity, PerBlock) else None
    shape = tensor.values.shape
    zero_point = expand_blocks(tensor.zero_point, shape, size)
    return np.asarray(
        (tensor.values.astype(np.float32) - zero_point) * expand_blocks(tensor.scale, shape, size), np.float32
    )
