"""Operators on integers: products, packed weights, and what is quantized at inference.

Integers are whole numbers in float32 here. Products of them are computed from the numbers without their zero points, so
that sums stay as exact as they are in the kernels' int32 for rows of usual length.

References:
    ONNX operator specification, DynamicQuantizeLinear-11; ONNX Runtime, contrib operators.
"""

from __future__ import annotations

import torch

from onnxq.qat.torch_ops.call import Call, Function, Tensor
from onnxq.qat.torch_ops.layer_ops import convolve
from onnxq.qat.torch_ops.recurrent import lstm_cell, recurrent


class _Round(torch.autograd.Function):
    """Rounding to the nearest whole number, ties to even, with the identity's gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def round_through(x: Tensor) -> Tensor:
    """Round to nearest, ties to even; the gradient passes as if nothing had been rounded."""
    rounded: Tensor = _Round.apply(x)
    return rounded


def _dynamic_quantize(call: Call) -> list[Tensor]:
    """uint8 over the range of the tensor, with zero in it; scale and zero point carry gradients as constants do."""
    x = call.need(0)
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((0.0 - low) / scale).clamp(0, 255)
    return [(round_through(x / scale) + zero).clamp(0, 255), scale, zero]


def _minus(x: Tensor, zero: Tensor | None, axis: int | None = None) -> Tensor:
    if zero is None:
        return x
    if axis is not None and zero.numel() > 1 and zero.ndim == 1:
        zero = zero.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    return x - zero.float()


def _matmul_integer(call: Call) -> Tensor:
    a, b = call.need(0), call.need(1)
    return torch.matmul(_minus(a, call.at(2), -2), _minus(b, call.at(3), -1))


def _matmul_to_float(call: Call) -> Tensor:
    a, b, a_scale, b_scale = (call.need(i) for i in range(4))
    product = torch.matmul(_minus(a, call.at(4)), _minus(b, call.at(5), -1))
    bias = call.at(6)
    product = product * (a_scale * b_scale)
    return product if bias is None else product + bias


def _dynamic_matmul(call: Call) -> Tensor:
    x, scale, zero = _dynamic_quantize(call)
    b, b_scale, b_zero, bias = call.need(1), call.need(2), call.at(3), call.at(4)
    product = torch.matmul(x - zero, _minus(b, b_zero, -1)) * (scale * b_scale)
    return product if bias is None else product + bias


def _conv_integer(call: Call) -> Tensor:
    return convolve(call, _minus(call.need(0), call.at(2)), _minus(call.need(1), call.at(3), 0), None)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Whole numbers of bytes that hold several, low bits first, along the last axis."""
    if bits == 8:
        return packed
    whole, parts, base = packed, [], 1 << bits
    for _ in range(8 // bits):
        parts.append(torch.remainder(whole, base))
        whole = torch.div(whole, base, rounding_mode="floor")
    return torch.stack(parts, dim=-1).reshape(*packed.shape[:-1], -1)


def unfolded(integers: Tensor, scale: Tensor, zero: Tensor | float, block: int) -> Tensor:
    """Real numbers of integers in blocks along the last axis; scale and zero point have one entry a block."""
    count = scale.shape[-1]
    wide = integers.reshape(*integers.shape[:-1], count, -1) if integers.shape[-1] == count * block else None
    if wide is None:
        scale = scale.repeat_interleave(block, dim=-1)[..., : integers.shape[-1]]
        zero = zero.repeat_interleave(block, dim=-1)[..., : integers.shape[-1]] if isinstance(zero, Tensor) else zero
        return (integers - zero) * scale
    zero = zero.unsqueeze(-1) if isinstance(zero, Tensor) else zero
    return ((wide - zero) * scale.unsqueeze(-1)).reshape(integers.shape)


def _zero_of_blocks(zero: Tensor | None, bits: int, rows: int, blocks: int) -> Tensor | float:
    if zero is None:
        return float(1 << (bits - 1))
    if zero.numel() == rows * blocks:  # floats, or bytes that hold one each
        return zero.reshape(rows, blocks)
    return unpacked(zero.reshape(rows, -1), bits)[:, :blocks]


def _nbits(call: Call) -> Tensor:
    rows, width, bits = call.attribute("N"), call.attribute("K"), call.attribute("bits", 4)
    block = call.attribute("block_size")
    blocks = -(-width // block)
    integers = call.need(1)  # unpacked already where it is learned
    if integers.shape[-1] != block:
        integers = unpacked(integers.reshape(rows, -1), bits)
    integers = integers.reshape(rows, blocks * block)[:, :width]
    zero = _zero_of_blocks(call.at(3), bits, rows, blocks)
    weight = unfolded(integers, call.need(2).reshape(rows, blocks), zero, block)
    x, bias = call.need(0), call.at(5)
    if call.attribute("accuracy_level", 0) == 4:
        x = _rounded_by_block(x, block)
    product = x @ weight.T
    return product if bias is None else product + bias


def _rounded_by_block(x: Tensor, block: int) -> Tensor:
    """Activations as the kernels of accuracy level 4 round them: int8, a symmetric scale for each block of a row."""
    width = x.shape[-1]
    wide = torch.nn.functional.pad(x, (0, -width % block)).reshape(*x.shape[:-1], -1, block)
    scale = wide.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (round_through(wide / scale) * scale).reshape(*x.shape[:-1], -1)[..., :width]


def _gather_blocks(call: Call) -> Tensor:
    if call.attribute("gather_axis", 0) != 0:
        raise NotImplementedError("GatherBlockQuantized along another axis than 0")
    indices, bits, block = call.need(1).to(torch.int64), call.attribute("bits", 4), call.attribute("block_size", 128)
    data, scale, zero = call.need(0), call.need(2), call.at(3)
    blocks, width = scale.shape[-1], data.shape[-1] * (8 // bits)
    numbers = unpacked(data[indices], bits)
    middle: Tensor | float = float(1 << (bits - 1))
    if zero is not None:
        middle = unpacked(zero[indices], bits)[..., :blocks]
    return unfolded(numbers[..., :width], scale[indices], middle, block)


def _dynamic_lstm(call: Call) -> list[Tensor]:
    """Weights are [directions, inputs, gates], scales [directions] or [directions, gates].

    The kernel rounds the input and the states to its own dynamic grid; here they stay real.
    """
    weights = []
    for position, scale, zero in ((1, 8, 9), (2, 10, 11)):
        scales, zeros = call.need(scale), call.need(zero)
        wide = [p.reshape(p.shape[0], 1, -1) for p in (scales, zeros)]
        weights.append(((call.need(position) - wide[1]) * wide[0]).transpose(1, 2))
    return recurrent(call, lstm_cell(), weights[0], weights[1], states=2, peepholes=call.at(7))


OPERATORS: dict[tuple[str, str], Function] = {
    ("", "DynamicQuantizeLinear"): _dynamic_quantize,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "ConvInteger"): _conv_integer,
    ("com.microsoft", "MatMulIntegerToFloat"): _matmul_to_float,
    ("com.microsoft", "DynamicQuantizeMatMul"): _dynamic_matmul,
    ("com.microsoft", "MatMulNBits"): _nbits,
    ("com.microsoft", "GatherBlockQuantized"): _gather_blocks,
    ("com.microsoft", "DynamicQuantizeLSTM"): _dynamic_lstm,
}
"""By domain and operator."""
