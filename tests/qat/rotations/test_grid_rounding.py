"""Rounding that learns by: the numbers of the quantizer, and gradients through rounding and scale."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.core.affine import dequantize, quantize_tensor
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerToken, TensorSpec

pytestmark = pytest.mark.torch

SPECS = {
    "tensor": TensorSpec(QType.UINT8),
    "symmetric tensor": TensorSpec(QType.INT8, symmetric=True, narrow_range=True),
    "rows": TensorSpec(QType.INT8, PerAxis(0), symmetric=True),
    "columns": TensorSpec(QType.INT8, PerAxis(1), symmetric=True, grid_bits=4),
    "blocks": TensorSpec(QType.UINT4, PerBlock(1, 16)),
    "blocks down": TensorSpec(QType.UINT4, PerBlock(0, 4), symmetric=True),
    "mirrored blocks, the last one short": TensorSpec(QType.UINT4, PerBlock(1, 32), symmetric=True, mirrored=True),
    "three bits": TensorSpec(QType.UINT4, PerBlock(1, 16), grid_bits=3),
    "tokens": TensorSpec(QType.INT8, PerToken(), symmetric=True),
}


@pytest.mark.parametrize("name", SPECS)
def test_it_rounds_as_the_quantizer_does(name: str) -> None:
    import torch

    from onnxq.qat.rotations.grid_rounding import fake_rounded

    rng, spec = np.random.default_rng(0), SPECS[name]
    x = (rng.standard_normal((8, 40)) * rng.uniform(0.1, 4, (8, 1))).astype(np.float32)
    x[0] = 0  # a group of nothing but zeros has no step
    quantized = quantize_tensor(x, spec)
    np.testing.assert_allclose(
        fake_rounded(torch.from_numpy(x), spec).numpy(), dequantize(quantized.values, quantized.params), atol=2e-6
    )


def test_gradients_pass_rounding_and_reach_the_element_that_sets_the_scale() -> None:
    import torch

    from onnxq.qat.rotations.grid_rounding import fake_rounded

    x = torch.tensor([[0.3, -0.61, 1.4, 0.25]], requires_grad=True)
    spec = TensorSpec(QType.INT8, PerAxis(0), symmetric=True, narrow_range=True, grid_bits=4)
    out = fake_rounded(x, spec)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    steps = x.detach() / 0.2  # 1.4 over 7 steps
    left = float((steps.round() - steps).sum())
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 1.0, 1.0 + left / 7, 1.0]]))
