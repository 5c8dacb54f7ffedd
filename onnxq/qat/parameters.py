"""What a quantized graph can learn: scales, zero points, integers and biases, each a small module."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import torch
from torch import nn

from onnxq.core.dtypes import Array
from onnxq.qat.torch_ops.call import Tensor
from onnxq.qat.torch_ops.integers import round_through

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""The rectified sigmoid's ends, a little beyond 0 and 1 so that both are reached (arXiv:2004.10568, equation 23)."""

RANGES: dict[str, tuple[int, int]] = {
    "int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255),
    "int16": (-32768, 32767), "uint16": (0, 65535),
}  # fmt: skip
"""Smallest and largest integer of the types that are held as whole numbers in float32."""


def as_tensor(array: Array) -> Tensor:
    """A constant as the operators take it: narrow integers and half precision as float32."""
    if array.dtype.name in RANGES or array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    elif array.dtype.name in ("uint32", "uint64"):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))


class Scale(nn.Module):
    """The scale of a grid: ``base · exp(shift)``, so that it stays positive and one rate suits all.

    Attributes:
        base: where it started.
        shift: parameter of the same shape, 0 at the start.
        bound: the largest it may become; None is no bound.
    """

    def __init__(self, array: Array) -> None:
        super().__init__()
        self.original = array
        self.register_buffer("base", as_tensor(array))
        self.shift = nn.Parameter(torch.zeros_like(self.base), requires_grad=False)
        self.bound: float | None = None

    def forward(self) -> Tensor:
        """The scale as it is now; exactly the original where nothing has been learned."""
        scale = self.base * torch.exp(self.shift)
        return scale if self.bound is None else scale.clamp(max=self.bound)

    def array(self) -> Array:
        """The scale as the model stores it."""
        found: Array = self().detach().cpu().numpy().astype(self.original.dtype)
        return found.reshape(self.original.shape)


class ZeroPoint(nn.Module):
    """The zero point of a grid: ``round(base + shift)``, within the type.

    Attributes:
        base: where it started.
        shift: parameter of the same shape, in steps.
        low: smallest integer of the type.
        high: largest integer of the type.
    """

    def __init__(self, array: Array) -> None:
        super().__init__()
        self.original = array
        low, high = RANGES.get(array.dtype.name, (-math.inf, math.inf))
        self.low, self.high = float(low), float(high)
        self.register_buffer("base", as_tensor(array))
        self.shift = nn.Parameter(torch.zeros_like(self.base), requires_grad=False)

    @property
    def at_end(self) -> tuple[bool, bool]:
        """Whether nothing lies below zero, and whether nothing lies above it."""
        return bool((self.base == self.low).all()), bool((self.base == self.high).all())

    def forward(self) -> Tensor:
        """The zero point as it is now."""
        return round_through(self.base + self.shift).clamp(self.low, self.high)

    def array(self) -> Array:
        """The zero point as the model stores it."""
        whole = self().detach().cpu().numpy().reshape(self.original.shape)
        return np.asarray(whole.astype(np.int32).astype(self.original.dtype))


class Integers(nn.Module):
    """A constant on a grid, as steps from the lowest integer of its type's zero; rounding to them can be learned.

    Attributes:
        latent: parameter, float32: real numbers in steps that `forward` rounds to nearest.
        logit: parameter: of the share by which each lies above ``floor`` while rounding is learned (AdaRound).
        rounding: "nearest", "soft" (between two integers, as far as the logit says) or "hard" (at the nearer of them).
        low: smallest integer that may be used.
        high: largest integer that may be used.
    """

    def __init__(self, array: Array, bits: int | None = None) -> None:
        super().__init__()
        self.original, self.packed_bits = array, bits
        self.low, self.high = RANGES[array.dtype.name] if bits is None else (0, (1 << bits) - 1)
        steps = as_tensor(array)
        if bits is not None and bits < 8:
            steps = _unpack(steps, bits)
        self.latent = nn.Parameter(steps, requires_grad=False)
        self.register_buffer("floor", None)
        self.logit: nn.Parameter | None = None
        self.rounding = "nearest"

    def start_from(self, steps: Array) -> None:
        """Set the real numbers that were rounded, in steps (zero point added), where they are known."""
        self.latent.data = torch.from_numpy(np.array(steps, np.float32)).reshape(self.latent.shape)

    def learn_rounding(self) -> nn.Parameter:
        """Begin to learn whether each number is rounded up or down; the logits start where the numbers lie."""
        steps = self.latent.data.clamp(self.low, self.high)
        self.floor = steps.floor().clamp(self.low, self.high - 1)
        share = (steps - self.floor - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.logit = nn.Parameter(torch.logit(share))
        self.rounding = "soft"
        return self.logit

    def share(self) -> Tensor:
        """The rectified sigmoid of the logits: 0 rounds down, 1 up."""
        assert self.logit is not None
        return (torch.sigmoid(self.logit) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)

    def settle(self) -> None:
        """Take the rounding that was learned for good."""
        with torch.no_grad():
            self.latent.data = self.floor + (self.share() >= 0.5).to(torch.float32)
        self.logit, self.floor, self.rounding = None, None, "nearest"

    def forward(self) -> Tensor:
        """The integers; real numbers while rounding is "soft"."""
        if self.rounding == "soft":
            share = self.share()
            return self.floor + (share >= 0.5).to(torch.float32) + (share - share.detach())
        if self.rounding == "hard":
            return self.floor + (self.share() >= 0.5).to(torch.float32)
        return round_through(self.latent).clamp(self.low, self.high)

    def array(self) -> Array:
        """The integers as the model stores them."""
        whole = self().detach().cpu().numpy().round().astype(np.int32)
        if self.packed_bits is not None and self.packed_bits < 8:
            whole = _pack(whole, self.packed_bits)
        return np.asarray(whole.astype(self.original.dtype).reshape(self.original.shape))


def _unpack(packed: Tensor, bits: int) -> Tensor:
    whole, parts = packed, []
    for _ in range(8 // bits):
        parts.append(torch.remainder(whole, 1 << bits))
        whole = torch.div(whole, 1 << bits, rounding_mode="floor")
    return torch.stack(parts, dim=-1).reshape(*packed.shape[:-1], -1)


def _pack(whole: Array, bits: int) -> Array:
    parts = whole.reshape(*whole.shape[:-1], -1, 8 // bits).astype(np.uint16)
    shifts = np.arange(8 // bits, dtype=np.uint16) * bits
    return np.asarray((parts << shifts).sum(axis=-1))


class Bias(nn.Module):
    """An int32 bias at ``scale of x · scale of w``, learned as a real number.

    Attributes:
        real: parameter, float32, (channels,).
    """

    def __init__(self, array: Array, scale: Array) -> None:
        super().__init__()
        self.original, self.original_scale = array, scale
        self.real = nn.Parameter(
            torch.from_numpy(np.array(array.astype(np.float64) * scale.astype(np.float64), np.float32)),
            requires_grad=False,
        )

    def forward(self, step: Tensor) -> Tensor:
        """The bias, rounded to whole steps of the accumulator."""
        step = step.detach().reshape(-1).clamp(min=float(np.finfo(np.float32).tiny))
        return round_through(self.real / step) * step

    def arrays(self, step: Tensor) -> tuple[Array, Array]:
        """Integers and scale as the model stores them."""
        scale = np.maximum(step.detach().cpu().numpy().astype(np.float32), np.finfo(np.float32).tiny)
        real = self.real.detach().cpu().numpy().astype(np.float64)
        limits = np.iinfo(np.int32)
        whole = np.clip(np.rint(real / scale.reshape(-1)), limits.min, limits.max).astype(np.int32)
        return whole.reshape(self.original.shape), scale.reshape(self.original_scale.shape)
