"""The real numbers behind stored weights, in every form that kernels read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.codebook import FP4, NF4
from onnxq.core.dtypes import Array
from onnxq.core.packing import PACKED_BITS, unpack
from onnxq.graph import walk


def spread(parameter: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point in a shape that broadcasts over the tensor's.

    Args:
        parameter: one number, one for each index of ``axis``, one for each block along it, or of the tensor's rank.
        shape: of the tensor.
        axis: along which rank 1 lies, and blocks do.
        block: elements of a block; 0 where there are none.
    """
    if parameter.size == 1:
        return parameter.reshape(())
    axis %= max(len(shape), 1)
    if block and parameter.ndim == len(shape):
        return np.take(np.repeat(parameter, block, axis=axis), np.arange(shape[axis]), axis=axis)
    if parameter.ndim == len(shape):
        return parameter
    return parameter.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def dequantized(integers: Array, scale: Array, zero: Array | None, axis: int = 1, block: int = 0) -> Array:
    """``(integers − zero) · scale``, of the scale's type: float32 for any but 16-bit floats.

    Args:
        integers: any shape.
        scale: see `spread`.
        zero: likewise; None for 0.
        axis: see `spread`.
        block: see `spread`.
    """
    real = integers.astype(np.float32)
    if zero is not None and zero.size:
        real = real - spread(zero.astype(np.float32), integers.shape, axis, block)
    kind = scale.dtype if scale.dtype.kind == "f" and scale.dtype.itemsize <= 4 else np.dtype(np.float32)
    result = real * spread(scale.astype(np.float32), integers.shape, axis, block)
    return np.asarray(result.astype(kind if kind.name != "float64" else np.float32))


def rounded(x: Array, scale: Array, zero: Array | None, axis: int = 1, block: int = 0) -> Array:
    """What QuantizeLinear makes of a constant; int32 holds the integers of every type.

    Raises:
        ValueError: the zero point is of a type that is no integer.
    """
    dtype = zero.dtype if zero is not None else np.dtype(np.uint8)
    low, high = grid_of(dtype)
    middle = 0.0 if zero is None else spread(zero.astype(np.float32), x.shape, axis, block)
    steps = np.rint(x.astype(np.float32) / spread(scale.astype(np.float32), x.shape, axis, block)) + middle
    return np.clip(steps, low, high).astype(np.int32)


def grid_of(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """The smallest and the largest integer of a type, of 4 and 2 bits too.

    Raises:
        ValueError: it is no integer type.
    """
    name = dtype.name
    bits = int("".join(letter for letter in name if letter.isdigit()) or 0)
    if not name.startswith(("int", "uint")):
        raise ValueError(f"{name} is no type of integers")
    return (0, (1 << bits) - 1) if name.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def of_nbits(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """The weight of a MatMulNBits, (K, N); None where it is in a form that is not known.

    Args:
        node: the MatMulNBits.
        arrays: contents of its inputs, None for those that are not constant.
    """
    packed, scale, zero, order = ([*arrays, *[None] * 4][i] for i in (1, 2, 3, 4))
    bits, block = walk.attr_int(node, "bits", 4), walk.attr_int(node, "block_size", 32)
    rows, width = walk.attr_int(node, "N"), walk.attr_int(node, "K")
    if packed is None or scale is None or bits not in PACKED_BITS or packed.dtype != np.uint8:
        return None
    blocks = -(-width // block)
    integers = unpack(packed.reshape(rows, -1), bits, width)
    zeros = _zeros(zero, rows, blocks, bits)
    if zeros is None or scale.size != rows * blocks:
        return None
    group = np.arange(width) // block if order is None else order.astype(np.int64)
    scales = scale.astype(np.float32).reshape(rows, blocks)[:, group]
    real = (integers.astype(np.float32) - zeros[:, group]) * scales
    return np.ascontiguousarray(real.T.astype(scale.dtype))


def _zeros(zero: Array | None, rows: int, blocks: int, bits: int) -> Array | None:
    """Zero points, float32, (rows, blocks)."""
    if zero is None or not zero.size:
        return np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if zero.dtype != np.uint8:
        return zero.astype(np.float32).reshape(rows, blocks) if zero.size == rows * blocks else None
    if zero.size != rows * -(-blocks * bits // 8):
        return None
    return unpack(zero.reshape(rows, -1), bits, blocks).astype(np.float32)


_OF_MOE = frozenset(
    "k activation_type activation_alpha activation_beta normalize_routing_weights swiglu_fusion swiglu_limit "
    "swiglu_limit_after_activation use_sparse_mixer".split()
)


def of_moe(node: ir.Node) -> list[ir.Attr]:
    """The attributes of a QMoE that an MoE has too."""
    return [attribute for name, attribute in node.attributes.items() if name in _OF_MOE]


def of_experts(node: ir.Node, number: int, arrays: list[Array | None]) -> Array | None:
    """A stack of matrices of a QMoE, (experts, out, in); None where it is in a form that is not known.

    Args:
        node: the QMoE.
        number: of the stack, from 0 on.
        arrays: its integers, scales and zero points, None for those that are not there or not constant.
    """
    packed, scale, zero = arrays
    bits = walk.attr_int(node, f"fc{number + 1}_expert_weight_bits", walk.attr_int(node, "expert_weight_bits", 4))
    if walk.attr_str(node, "quant_type", "int") != "int" or packed is None or scale is None or packed.ndim != 3:
        return None
    if (
        bits not in PACKED_BITS
        or walk.input_at(node, 14) is not None
        or walk.attr_int(node, "weights_prepacked", -1) > 0
    ):
        return None  # chosen by other scores than mixed by is no MoE; what is laid out for a device is not known here
    width = packed.shape[-1] * 8 // bits
    integers = unpack(packed, bits, width).astype(np.float32)
    blocks = scale.shape[-1] if scale.ndim == 3 else 1
    groups = (*integers.shape[:2], blocks)
    scales = scale.astype(np.float32).reshape(groups)
    if zero is None:
        zeros = np.full(groups, 1 << (bits - 1), np.float32)
    elif scale.ndim == 3:
        zeros = unpack(zero, bits, blocks).astype(np.float32)
    else:
        zeros = unpack(zero, bits, groups[1]).astype(np.float32)[..., None]
    split = integers.reshape(*groups, width // blocks)
    return np.asarray(((split - zeros[..., None]) * scales[..., None]).reshape(integers.shape), scale.dtype)


def of_bnb4(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """The weight of a MatMulBnb4, (K, N); None where its parts are not constant."""
    packed, scale = ([*arrays, None, None][i] for i in (1, 2))
    if packed is None or scale is None:
        return None
    rows, width, block = (walk.attr_int(node, name) for name in ("N", "K", "block_size"))
    table = NF4 if walk.attr_int(node, "quant_type", 1) else FP4
    indices = unpack(packed.reshape(-1), 4, rows * width, high_first=True)
    scales = np.repeat(scale.astype(np.float32).reshape(-1), block)[: rows * width]
    real = (table[indices] * scales).reshape(rows, width)
    return np.ascontiguousarray(real.T.astype(scale.dtype))


def of_table(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    """The table of a GatherBlockQuantized; None where it is in a form that is not known."""
    data, scale, zero = ([*arrays, *[None] * 3][i] for i in (0, 2, 3))
    block, axis = walk.attr_int(node, "block_size", 128), walk.attr_int(node, "quantize_axis", 1)
    if data is None or scale is None:
        return None
    axis %= data.ndim
    if data.dtype == np.uint8:
        bits = walk.attr_int(node, "bits", 4)
        if bits not in PACKED_BITS or axis != data.ndim - 1:
            return None
        integers = unpack(data, bits, data.shape[-1] * 8 // bits)
        if zero is None:
            zero = np.full(scale.shape, 1 << (bits - 1), np.uint8)
        elif zero.shape != scale.shape:
            zero = unpack(zero, bits, scale.shape[-1])
    else:
        integers = data
    return dequantized(integers, scale, zero, axis, block)


def of_lstm(weight: Array, scale: Array, zero: Array | None) -> Array:
    """The weight of a DynamicQuantizeLSTM, (directions, inputs, gates), as LSTM takes it: (directions, gates, inputs).

    Args:
        weight: integers.
        scale: (directions,) or (directions, gates).
        zero: likewise; None for 0.
    """

    def shaped(parameter: Array) -> Array:
        return parameter.astype(np.float32).reshape(weight.shape[0], 1, -1)

    real = weight.astype(np.float32)
    if zero is not None and zero.size:
        real = real - shaped(zero)
    return np.ascontiguousarray((real * shaped(scale)).transpose(0, 2, 1).astype(np.float32))
