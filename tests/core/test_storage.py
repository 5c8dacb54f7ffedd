from __future__ import annotations

import pytest

from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.core.storage import bits_per_weight


def test_group_32_with_fp16_scales_takes_four_and_a_half_bits():
    assert bits_per_weight((64, 128), TensorSpec(QType.INT4, PerBlock(1, 32), symmetric=True), 16) == 4.5


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TensorSpec(QType.UINT4, PerBlock(1, 32)), 4 + (32 + 4) / 32),
        (TensorSpec(QType.UINT4, PerBlock(1, 100), symmetric=True), 4 + 2 * 32 / 128),  # the last block is shorter
        (TensorSpec(QType.INT8, PerAxis(0), symmetric=True), 8 + 32 / 128),
        (TensorSpec(QType.INT8, PerTensor(), symmetric=True, grid_bits=7), 8 + 32 / (64 * 128)),
    ],
)
def test_shares_of_scales_and_zero_points(spec, expected):
    assert bits_per_weight((64, 128), spec) == pytest.approx(expected)


def test_empty_tensors_take_nothing_and_zero_points_can_be_given():
    assert bits_per_weight((0, 4), TensorSpec(QType.INT8)) == 0.0
    assert bits_per_weight((32,), TensorSpec(QType.UINT4), 16, zero_point_bits=8) == 4 + 24 / 32
