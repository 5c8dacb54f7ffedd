"""The integer types a tensor can be quantized to."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""A numpy array of any type; docstrings give shape and element type."""


class QType(enum.Enum):
    """An integer element type of the ONNX standard.

    The value is the type's ONNX name in lower case.

    References:
        ONNX IR specification, tensor element types (int4/uint4 since opset 21, int2/uint2 since opset 25).
    """

    INT2 = "int2"
    UINT2 = "uint2"
    INT4 = "int4"
    UINT4 = "uint4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"

    @property
    def bits(self) -> int:
        """Bits an element takes when packed."""
        return int(self.value.lstrip("uint"))

    @property
    def signed(self) -> bool:
        """Whether negative integers are representable."""
        return not self.value.startswith("u")

    @property
    def qmin(self) -> int:
        """Smallest integer of the type."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer of the type."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds one element (``ml_dtypes`` below 8 bits)."""
        if self.bits < 8:
            small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.value))
            return small
        return np.dtype(self.value)
