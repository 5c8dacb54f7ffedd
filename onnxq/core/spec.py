"""What a tensor becomes when it is quantized, as immutable data."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.core.dtypes import Array, QType
from onnxq.errors import RecipeError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index along ``axis`` (per channel)."""

    axis: int


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of ``size`` elements along ``axis``; the last block may be shorter."""

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RecipeError(f"PerBlock: block size {self.size} is not positive; use 16 or more")


@dataclass(frozen=True)
class PerToken:
    """One scale for each row: every axis but the last keeps its length."""


Granularity = PerTensor | PerAxis | PerBlock | PerToken


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor becomes.

    Attributes:
        dtype: element type of the stored integers.
        granularity: which elements share a scale.
        symmetric: zero is at the middle of the grid: ``zero_point`` is 0 for a signed type and 2^(bits-1) for an
            unsigned one.
        narrow_range: the lowest integer of the grid is not used, so that a symmetric signed grid is balanced.
        grid_bits: bits of the grid actually used where that is fewer than ``dtype`` stores (7-bit weights against
            saturating kernels, 3-bit weights in 4-bit storage); None uses them all.
        mirrored: on a symmetric grid, which reaches one step farther below zero than above, a scale may be negative, so
            that the farther end serves whichever side of the range is the wider. Kernels that unpack weights take it.
    """

    dtype: QType
    granularity: Granularity = PerTensor()
    symmetric: bool = False
    narrow_range: bool = False
    grid_bits: int | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.dtype.is_float and not self.symmetric:
            raise RecipeError(f"TensorSpec: {self.dtype.value} has no zero point; make it symmetric")
        if self.grid_bits is not None and not 2 <= self.grid_bits <= self.dtype.bits:
            raise RecipeError(
                f"TensorSpec: grid_bits {self.grid_bits} does not fit {self.dtype.value}; use 2 to {self.dtype.bits}"
            )

    @property
    def bits(self) -> int:
        """Bits of the grid that is used."""
        return self.grid_bits if self.grid_bits is not None else self.dtype.bits

    @property
    def qmin(self) -> int:
        """Smallest integer used."""
        if self.dtype.is_float:
            return self.dtype.qmin
        lowest = -(1 << (self.bits - 1)) if self.dtype.signed else 0
        return lowest + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """Largest integer used."""
        if self.dtype.is_float:
            return self.dtype.qmax
        return (1 << (self.bits - 1)) - 1 if self.dtype.signed else (1 << self.bits) - 1

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric grid."""
        return 0 if self.dtype.signed else 1 << (self.bits - 1)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of a quantized tensor: ``real = scale · (quantized − zero_point)``.

    Attributes:
        spec: the grid they belong to.
        scale: float32 (or float16), positive and finite. Its rank is the tensor's and on every axis its length
            divides the tensor's (after rounding up for an uneven last block), so one form serves tensor, axis,
            block and token; an activation whose rank is unknown has rank 0. Only on a mirrored grid, or where GGML's
            choice was asked for, may a weight's scale be negative, which the operators take as well.
        zero_point: same shape, of the numpy type of ``spec.dtype``.
    """

    spec: TensorSpec
    scale: Array
    zero_point: Array


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized tensor.

    Attributes:
        values: integers of ``params.spec.dtype.numpy``, in the tensor's shape.
        params: their scale and zero point.
    """

    values: Array
    params: QParams
