"""QuantizeLinear and DequantizeLinear on float32, bit for bit as the operators, with gradients through the rounding.

Together the gradients of both are those of learned step sizes: within the range the input's passes and the scale's is
what rounding added, in steps; beyond it the scale's is the end of the grid and the zero point's the scale.

References:
    Esser et al., Learned Step Size Quantization, arXiv:1902.08153, equation 3; Bhalgat et al., LSQ+,
    arXiv:2004.09576, equations 4 to 6.
"""

from __future__ import annotations

from typing import Any

import torch

from onnxq.qat.torch_ops.call import Tensor


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: float, high: float, drop: float) -> Tensor:
        steps = x / scale
        whole = torch.round(steps) + zero
        if drop > 0.0:
            whole = torch.where(torch.rand_like(whole) < drop, steps + zero, whole)
        inside = (whole >= low) & (whole <= high)
        ctx.save_for_backward(inside, scale, *([x] if scale.requires_grad else []))
        ctx.zero_shape = zero.shape
        return whole.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, scale, *given = ctx.saved_tensors
        inside = grad * mask
        by_steps = inside / scale
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            to_scale = -(by_steps * given[0] / scale).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            to_zero = inside.sum_to_size(ctx.zero_shape)
        return by_steps, to_scale, to_zero, None, None, None


def quantize(
    x: Tensor, scale: Tensor, zero: Tensor, limits: tuple[float, float], *, axis: int = 1, block: int = 0,
    drop: float = 0.0,
) -> Tensor:  # fmt: skip
    """``saturate(round(x / scale) + zero)``, ties to even, as whole numbers in float32.

    Args:
        x: any shape.
        scale: one number, one for each index of ``axis``, or one for each block along it.
        zero: the same.
        limits: smallest and largest integer of the type.
        axis: of the scales.
        block: elements that share a scale along the axis; 0 for the others.
        drop: share of the elements, drawn at random, that are not rounded, only clipped (QDrop, arXiv:2203.05740).
    """
    scale, zero = aligned(scale, x, axis, block), aligned(zero, x, axis, block)
    result: Tensor = _Quantize.apply(x, scale, zero, *map(float, limits), drop)
    return result


def dequantize(q: Tensor, scale: Tensor, zero: Tensor | None, *, axis: int = 1, block: int = 0) -> Tensor:
    """``(q − zero) · scale``; arguments as of `quantize`."""
    scale = aligned(scale, q, axis, block)
    return q * scale if zero is None else (q - aligned(zero, q, axis, block)) * scale


def aligned(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A parameter in a shape that broadcasts against the tensor that it is for."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis %= x.ndim
    if block:
        return parameter.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)]) if parameter.ndim == 1 else parameter
