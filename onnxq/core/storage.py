"""What a quantized tensor costs to store."""

from __future__ import annotations

import math

from onnxq.core.affine import scale_shape
from onnxq.core.spec import TensorSpec


def bits_per_weight(
    shape: tuple[int, ...], spec: TensorSpec, scale_bits: int = 32, zero_point_bits: int | None = None
) -> float:
    """Bits an element takes, its share of scales and zero points included.

    Args:
        shape: the tensor's shape.
        spec: its grid; ``grid_bits`` saves no storage.
        scale_bits: bits of one scale, 32 or 16.
        zero_point_bits: bits of one zero point; None takes those of the element type for an affine spec and 0 for a
            symmetric one, whose zero point is the same everywhere.

    Returns:
        Bits for each element; 0 for an empty tensor. Groups of 32 with float16 scales take 4.5 at 4 bits.

    Raises:
        RecipeError: the granularity's axis is outside the shape.
    """
    elements = math.prod(shape)
    if elements == 0:
        return 0.0
    if zero_point_bits is None:
        zero_point_bits = 0 if spec.symmetric else spec.dtype.bits
    groups = math.prod(scale_shape(shape, spec.granularity))
    return spec.dtype.bits + groups * (scale_bits + zero_point_bits) / elements
