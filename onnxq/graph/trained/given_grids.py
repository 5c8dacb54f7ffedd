"""The grid that a QuantizeLinear or DequantizeLinear stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, PerTensor, QParams, TensorSpec
from onnxq.graph import walk

_TYPES = {ir.DataType[name]: QType[name] for name in ("INT8", "UINT8", "INT4", "UINT4", "INT16", "UINT16", "INT32")}


@dataclass(frozen=True, eq=False)
class GivenGrid:
    """Scale and zero point as a model gives them.

    Attributes:
        dtype: type of the integers.
        scale: float32, (channels,); one entry for a whole tensor.
        zero_point: int64, the same shape.
        axis: of the channels; None for one scale.
        low: smallest integer that occurs: that of the type, or of the Clip behind.
        high: the largest one.
    """

    dtype: QType
    scale: Array
    zero_point: Array
    axis: int | None
    low: int
    high: int

    def same_steps(self, other: GivenGrid) -> bool:
        """Whether scale, zero point and type are those of another grid."""
        return (
            self.dtype is other.dtype
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def shifted(self, dtype: QType) -> GivenGrid | None:
        """The same reals as integers of another type, each moved by one number; None where they do not all fit.

        From int8 to uint8 that number is 128: 0 becomes 128, and the scale stays.
        """
        ours, theirs = TensorSpec(self.dtype), TensorSpec(dtype)
        by = 0 if self.dtype.signed == dtype.signed else theirs.midpoint - ours.midpoint
        zeros = self.zero_point + by
        low, high = min(self.low + by, zeros.min()), max(self.high + by, zeros.max())
        if low < theirs.qmin or high > theirs.qmax:
            return None
        return replace(self, dtype=dtype, zero_point=zeros, low=self.low + by, high=self.high + by)

    def params(self, rank: int = 0) -> QParams:
        """Scale and zero point in the form that the rest of onnxq has them.

        Args:
            rank: of the tensor; 0 for one scale.
        """
        ends = TensorSpec(self.dtype)
        shape = (1,) * rank
        granularity: PerTensor | PerAxis = PerTensor()
        if self.axis is not None:
            granularity = PerAxis(self.axis)
            shape = tuple(self.scale.size if axis == self.axis else 1 for axis in range(rank))
        symmetric = bool((self.zero_point == ends.midpoint).all())
        spec = TensorSpec(self.dtype, granularity, symmetric=symmetric, narrow_range=symmetric and self.low > ends.qmin)
        return QParams(spec, self.scale.reshape(shape), self.zero_point.astype(self.dtype.numpy).reshape(shape))


def grid_of(node: ir.Node) -> GivenGrid | None:
    """The grid of a QuantizeLinear or DequantizeLinear with constant parameters; None where it has another form.

    Scales in blocks, of another type than float32, and zero points that are computed have none.
    """
    scale, given = walk.const_array(walk.input_at(node, 1)), walk.input_at(node, 2)
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1 or walk.attr_int(node, "block_size"):
        return None
    if not (np.isfinite(scale) & (scale > 0)).all() or not scale.size:
        return None
    dtype = _type_of(node)
    zero = walk.const_array(given)
    if dtype is None or (given is not None and (zero is None or zero.shape != scale.shape)):
        return None
    zeros = np.zeros(scale.shape, np.int64) if zero is None else wide(zero)
    ends = TensorSpec(dtype)
    axis = walk.attr_int(node, "axis", 1) if scale.size > 1 else None
    return GivenGrid(dtype, scale.reshape(-1), zeros.reshape(-1), axis, ends.qmin, ends.qmax)


def _type_of(node: ir.Node) -> QType | None:
    """Type of the integers that a Q gives or a DQ takes."""
    zero = walk.input_at(node, 2)
    for value in (zero, node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]):
        if value is not None and value.dtype is not None:
            return _TYPES.get(value.dtype)
        if value is not None and value.const_value is not None:
            return _TYPES.get(value.const_value.dtype)
    asked = walk.attr_int(node, "output_dtype")
    if node.op_type == "QuantizeLinear":
        return _TYPES.get(ir.DataType(asked)) if asked else QType.UINT8
    return None


def wide(integers: Array) -> Array:
    """Integers of any type, those of four bits among them, as int64."""
    if integers.dtype in (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)):
        integers = integers.astype(np.int8)
    return integers.astype(np.int64)
