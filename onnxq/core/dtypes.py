"""The types a tensor can be quantized to: integers, and floating-point numbers of 8 bits."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""A numpy array of any type; docstrings give shape and element type."""


_FLOAT8_ENDS = 448


class QType(enum.Enum):
    """An element type of the ONNX standard that Q gives.

    The value is the type's ONNX name in lower case. What is said of integers holds for the numbers of float8e4m3fn too,
    whose steps grow with them.

    References:
        ONNX IR specification, tensor element types (float8 since opset 19, int4/uint4 since opset 21, int2/uint2 since
        opset 25). Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433: e4m3 ends at 448.
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
    FLOAT8 = "float8e4m3fn"

    @property
    def is_float(self) -> bool:
        """Whether its numbers are no integers."""
        return self is QType.FLOAT8

    @property
    def bits(self) -> int:
        """Bits an element takes when packed."""
        return 8 if self.is_float else int(self.value.lstrip("uint"))

    @property
    def signed(self) -> bool:
        """Whether negative integers are representable."""
        return not self.value.startswith("u")

    @property
    def qmin(self) -> int:
        """Smallest integer of the type."""
        if self.is_float:
            return -_FLOAT8_ENDS
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer of the type."""
        if self.is_float:
            return _FLOAT8_ENDS
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds one element (``ml_dtypes`` below 8 bits)."""
        if self.is_float or self.bits < 8:
            small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.value.replace("float8", "float8_")))
            return small
        return np.dtype(self.value)
