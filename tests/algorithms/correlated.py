"""Weights and correlated inputs, and the error a quantized weight makes on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QTensor, TensorSpec

Array = npt.NDArray[Any]

SPECS = [
    TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True),
    TensorSpec(QType.UINT4, PerBlock(1, 16)),
    TensorSpec(QType.UINT4, PerBlock(1, 32), symmetric=True),
    TensorSpec(QType.INT4, PerBlock(1, 128)),
    TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True, grid_bits=3),
    TensorSpec(QType.UINT4, PerAxis(0), grid_bits=3),
    TensorSpec(QType.UINT2, PerBlock(1, 16)),
    TensorSpec(QType.INT2, PerBlock(1, 32), symmetric=True),
    TensorSpec(QType.INT8, PerAxis(0), symmetric=True, narrow_range=True),
    TensorSpec(QType.UINT8, PerTensor()),
    TensorSpec(QType.INT4, PerTensor(), symmetric=True),
    TensorSpec(QType.UINT4, PerBlock(1, 32), symmetric=True, mirrored=True),
    TensorSpec(QType.UINT2, PerBlock(1, 16), symmetric=True, mirrored=True),
]


def name(spec: TensorSpec) -> str:
    """A short name of a grid, for the list of tests."""
    kind = "mirrored" if spec.mirrored else "sym" if spec.symmetric else "aff"
    return f"{spec.dtype.value}-{spec.bits}-{kind}-{spec.granularity}".replace(" ", "")


def draw(seed: int, out: int = 24, inputs: int = 72, samples: int = 256) -> tuple[Array, Array]:
    """(weight (out, in), inputs (samples, in)): the inputs share a few directions and differ in size."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(out, inputs)).astype(np.float32)
    weight[:, ::7] *= 3
    shared = rng.normal(size=(samples, inputs // 6)) @ rng.normal(size=(inputs // 6, inputs))
    x = (shared + 0.3 * rng.normal(size=(samples, inputs))) * np.exp(rng.normal(size=inputs) * 0.7)
    return weight, x


def moments(x: Array) -> Array:
    """2XᵀX, float64."""
    return np.asarray(2 * x.T.astype(np.float64) @ x)


def output_error(weight: Array, quantized: QTensor | Array, x: Array) -> float:
    """Mean squared error of the outputs."""
    real = dequantize(quantized.values, quantized.params) if isinstance(quantized, QTensor) else quantized
    return float(np.mean((x @ (real.astype(np.float64) - weight).T) ** 2))


def weight_error(weight: Array, quantized: QTensor) -> float:
    """Mean squared error of the weight."""
    return float(np.mean((dequantize(quantized.values, quantized.params) - weight.astype(np.float64)) ** 2))
