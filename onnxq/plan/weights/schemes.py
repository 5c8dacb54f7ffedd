"""What rounding a weight would cost under every usual scheme: a table of errors, without any search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.kmeans import KMeansConfig, kmeans
from onnxq.algorithms.nearest import quantize_codebook
from onnxq.core.affine import dequantize, params_for, params_from_range, quantize
from onnxq.core.codebook import NF4, decode
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, TensorSpec

GROUPS = (16, 32, 64, 128)
BITS = (8, 4, 3, 2)
_SCALE_BITS = 32
_TABLE_BITS = 32
_UNSIGNED = {8: QType.UINT8, 4: QType.UINT4, 3: QType.UINT4, 2: QType.UINT2}
_SIGNED = {8: QType.INT8, 4: QType.INT4, 3: QType.INT4, 2: QType.INT2}


@dataclass(frozen=True)
class Scheme:
    """One way to round a weight.

    Attributes:
        mode: "affine", "symmetric", "nf4" or "kmeans".
        bits: bits of an element.
        granularity: "tensor", "channel", or elements of a group along the inputs.
    """

    mode: str
    bits: int
    granularity: str | int

    @property
    def name(self) -> str:
        """In words."""
        where = f"groups of {self.granularity}" if isinstance(self.granularity, int) else f"per {self.granularity}"
        return f"{self.mode} {self.bits} bits {where}"


SCHEMES = (
    *(
        Scheme(mode, bits, granularity)
        for bits in BITS
        for mode in ("affine", "symmetric")
        for granularity in ("tensor", "channel", *GROUPS)
    ),
    *(Scheme("nf4", 4, granularity) for granularity in ("channel", *GROUPS)),
    *(Scheme("kmeans", bits, granularity) for bits in BITS for granularity in ("tensor", "channel")),
)
"""Tables that would hold as many numbers as the weight itself are left out when their turn comes."""


@dataclass(frozen=True)
class SchemeError:
    """What one scheme does to one weight.

    Attributes:
        scheme: the scheme.
        mean_abs: mean of |error|, units of the weight.
        mean_sq: mean of error², units of the weight squared.
        mean_rel: mean of |error| ÷ |weight| over elements that are not zero.
        bits_per_weight: with float32 scales, zero points of the element's width, and float32 tables.
    """

    scheme: Scheme
    mean_abs: float
    mean_sq: float
    mean_rel: float
    bits_per_weight: float


def scheme_errors(
    weight: Array, schemes: Sequence[Scheme] = SCHEMES, *, ends: tuple[float, float] | None = None
) -> list[SchemeError]:
    """Round a weight by each scheme and measure the error.

    Args:
        weight: float32, (out, in), finite, with at least one element.
        schemes: the schemes.
        ends: smallest and largest element of the whole weight, where ``weight`` is some of its rows.

    Returns:
        One entry a scheme; tables that would hold as many numbers as the weight are left out.
    """
    weight = np.asarray(weight, np.float32)
    low, high = ends if ends is not None else (float(weight.min()), float(weight.max()))
    size = np.abs(weight)
    divisor = np.where(size > 0, size, np.inf)
    nonzero = max(int(np.count_nonzero(size)), 1)
    found = []
    for scheme in schemes:
        bits = _cost(scheme, weight.shape)
        if scheme.mode == "kmeans" and bits >= _TABLE_BITS:
            continue
        error = np.abs(_rounded(weight, scheme, low, high) - weight)
        found.append(
            SchemeError(
                scheme,
                float(error.mean(dtype=np.float64)),
                float(np.square(error, dtype=np.float64).mean()),
                float(np.divide(error, divisor, dtype=np.float64).sum())
                / nonzero,  # by weights that are next to nothing
                bits,
            )
        )
    return found


def _rounded(weight: Array, scheme: Scheme, low: float, high: float) -> Array:
    granularity = _granularity(scheme)
    if scheme.mode == "nf4":
        return decode(quantize_codebook(weight, NF4, granularity))
    if scheme.mode == "kmeans":
        config = KMeansConfig(bits=8 if scheme.bits == 8 else 4, entries=1 << scheme.bits)
        return decode(kmeans(weight, granularity, config))
    symmetric = scheme.mode == "symmetric"
    dtype = (_SIGNED if symmetric else _UNSIGNED)[scheme.bits]
    spec = TensorSpec(
        dtype, granularity, symmetric, narrow_range=symmetric and scheme.bits == 8,
        grid_bits=scheme.bits if scheme.bits != dtype.bits else None, mirrored=symmetric and scheme.bits < 8,
    )  # fmt: skip
    if scheme.granularity == "tensor":
        params = params_from_range(np.full((1, 1), low, np.float32), np.full((1, 1), high, np.float32), spec)
    else:
        params = params_for(weight, spec)
    return dequantize(quantize(weight, params), params)


def _granularity(scheme: Scheme) -> Granularity:
    if isinstance(scheme.granularity, int):
        return PerBlock(1, scheme.granularity)
    return PerTensor() if scheme.granularity == "tensor" else PerAxis(0)


def _cost(scheme: Scheme, shape: tuple[int, ...]) -> float:
    """Bits an element takes, its share of scales, zero points and tables included."""
    out, inputs = shape
    groups = 1 if scheme.granularity == "tensor" else out
    if isinstance(scheme.granularity, int):
        groups = out * -(-inputs // scheme.granularity)
    if scheme.mode == "kmeans":
        extra = _TABLE_BITS * (1 << scheme.bits)
    else:
        extra = _SCALE_BITS + (scheme.bits if scheme.mode == "affine" else 0)
    return scheme.bits + extra * groups / (out * inputs)
