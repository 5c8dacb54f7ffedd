"""Rounding to a grid that is found anew from what is rounded, with gradients: of the rounding, and of the scale."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxq.core.spec import PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.qat.torch_ops.call import Tensor

_SMALLEST = 1e-30


def fake_rounded(x: Tensor, spec: TensorSpec) -> Tensor:
    """What is left of a tensor that is quantized by the extrema of each group, and dequantized.

    Rounding passes gradients on as they are, and the scale has those of the extremum that it is made of: whatever moves
    the largest element of a group makes all its steps wider or narrower. Grids are those of
    `onnxq.core.affine.params_from_range`.

    Args:
        x: float32, any shape.
        spec: the grid, of integers.
    """
    groups, shape = _grouped(x, spec)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0.0), groups.amax(-1, keepdim=True).clamp(min=0.0)
    if spec.symmetric:
        below, above = spec.midpoint - spec.qmin, spec.qmax - spec.midpoint
        if spec.mirrored:
            far, near = torch.maximum(-low, high), torch.minimum(-low, high)
            scale = torch.maximum(far / below, near / (above + 0.5))
        else:
            scale = torch.maximum(-low / below, high / above)
    else:
        scale = (high - low) / (spec.qmax - spec.qmin)
    scale = torch.where(scale > _SMALLEST, scale, torch.ones_like(scale))
    if spec.symmetric and spec.mirrored:
        scale = torch.where(high > -low, -scale, scale)
    zero = torch.full_like(scale, float(spec.midpoint))
    if not spec.symmetric:
        zero = torch.round(spec.qmin - low / scale).clamp(spec.qmin, spec.qmax).detach()
    steps = groups / scale
    whole = (torch.round(steps) + zero).clamp(spec.qmin, spec.qmax) - zero
    return _ungrouped((steps + (whole - steps).detach()) * scale, x, spec, shape)


def _grouped(x: Tensor, spec: TensorSpec) -> tuple[Tensor, torch.Size]:
    """The elements that share a scale along the last axis; and the shape in front of that, for the way back."""
    match spec.granularity:
        case PerTensor():
            return x.reshape(1, -1), x.shape
        case PerAxis(axis):
            moved = x.movedim(axis, 0)
            return moved.reshape(len(moved), -1), moved.shape
        case PerBlock(axis, size):
            moved = x.movedim(axis, -1)
            filled = functional.pad(moved, (0, -moved.shape[-1] % size))  # every grid has zero, so that none changes
            return filled.reshape(*filled.shape[:-1], -1, size), moved.shape
    return x, x.shape  # a token: all of the last axis


def _ungrouped(groups: Tensor, x: Tensor, spec: TensorSpec, shape: torch.Size) -> Tensor:
    match spec.granularity:
        case PerAxis(axis):
            return groups.reshape(shape).movedim(0, axis)
        case PerBlock(axis, _):
            filled = groups.reshape(*groups.shape[:-2], -1)
            return filled[..., : shape[-1]].movedim(-1, axis)
    return groups.reshape(x.shape)
