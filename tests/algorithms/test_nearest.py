"""Nearest entries of a table, and bitsandbytes' codes."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi import _pybind_state as native

from onnxq.algorithms.nearest import quantize_codebook
from onnxq.core.codebook import FP4, NF4, decode
from onnxq.core.spec import PerAxis, PerBlock, PerTensor
from onnxq.errors import RecipeError


def heavy(shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_t(4, size=shape) * 0.03, np.float32)


@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize(("table", "quant_type"), [(FP4, 0), (NF4, 1)], ids=["fp4", "nf4"])
def test_codes_are_those_of_onnxruntime_and_bitsandbytes(table: np.ndarray, quant_type: int, size: int) -> None:
    weight = heavy((96, 256))
    weight[0] = 0
    weight[1, ::3] = -0.0
    ranked = np.sort(table)
    near = (ranked[:-1] + ranked[1:]) * np.float32(0.5)  # the thresholds, to the last bits
    for row in range(2, 20):
        weight[row] = np.tile(np.append(near, np.float32(1)), 16)
        near = np.nextafter(near, np.float32(2)) if row != 10 else (ranked[:-1] + ranked[1:]) * np.float32(0.5 - 5e-7)
    packed, absmax = np.zeros(weight.size // 2, np.uint8), np.zeros(weight.size // size, np.float32)
    native.quantize_matmul_bnb4(packed, weight, absmax, size, quant_type, 96, 256)
    result = quantize_codebook(weight, table, PerBlock(1, size))
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(weight.shape)
    np.testing.assert_array_equal(result.indices, codes)
    np.testing.assert_array_equal(result.scale.ravel(), np.where(absmax > 0, absmax, 1))


@pytest.mark.parametrize("granularity", [PerBlock(1, 16), PerBlock(1, 40), PerAxis(0), PerTensor()])
@pytest.mark.parametrize(
    "table", [NF4, FP4, np.array([0.5, -1, 0, 1], np.float32), np.linspace(-1, 1, 200)], ids=["nf4", "fp4", "4", "200"]
)
def test_no_entry_is_nearer(table: np.ndarray, granularity: PerBlock | PerAxis | PerTensor) -> None:
    weight = heavy((9, 72))
    result = quantize_codebook(weight, table, granularity)
    assert result.bits == (8 if table.size > 16 else 4)
    error = np.abs(decode(result) - weight)
    group = np.minimum(np.arange(72) // getattr(granularity, "size", 72), result.scale.shape[1] - 1)
    scale = np.broadcast_to(result.scale, (9, result.scale.shape[1]))[:, group]
    nearest = np.abs(scale[..., None] * np.asarray(table, np.float32) - weight[..., None]).min(axis=-1)
    assert (error <= nearest + 1e-6 * scale).all()


def test_blocks_of_64_unless_told_otherwise() -> None:
    result = quantize_codebook(heavy((3, 130)))
    assert result.granularity == PerBlock(1, 64)
    assert result.scale.shape == (3, 3)
    assert quantize_codebook(heavy((0, 130))).scale.shape == (0, 3)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(RecipeError, match=r"table of shape \(17,\) does not fit indices of 4 bits"):
        quantize_codebook(heavy((2, 64)), np.linspace(-1, 1, 17), bits=4)
    with pytest.raises(RecipeError, match="do not lie along the rows"):
        quantize_codebook(heavy((2, 64)), NF4, PerAxis(1))


def test_a_group_below_the_normal_numbers_is_zero() -> None:
    weight = heavy((2, 64))
    weight[1] = np.float32(1e-44)
    weight[1, ::3] = 0
    found = decode(quantize_codebook(weight, NF4))
    assert np.array_equal(found[1], np.zeros(64, np.float32))
    assert np.array_equal(found[:1], decode(quantize_codebook(weight[:1], NF4)))
