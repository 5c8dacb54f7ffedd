from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.core.packing import pack, pack_blocks, turn_into, unpack, unpack_blocks
from onnxq.errors import RecipeError


def test_worked_example() -> None:
    """Offset by 8, [−3, 1, −7, 2] is 5, 9, 1, A: high nibble first 59 1A, low nibble first 95 A1."""
    offset = np.array([-3, 1, -7, 2]) + 8
    assert pack(offset, 4, high_first=True).tolist() == [0x59, 0x1A]
    assert pack(offset, 4).tolist() == [0x95, 0xA1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 33])
@pytest.mark.parametrize("high_first", [False, True])
def test_round_trip(bits: int, length: int, high_first: bool) -> None:
    values = np.random.default_rng(length).integers(0, 1 << bits, (3, length))
    packed = pack(values, bits, high_first=high_first)
    assert packed.shape == (3, -(-length * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, length, high_first=high_first), values)


@pytest.mark.parametrize(("bits", "name"), [(2, "uint2"), (4, "uint4")])
def test_order_is_that_of_onnx(bits: int, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, 37)
    try:
        tensor = onnx.numpy_helper.from_array(values.astype(getattr(ml_dtypes, name)))
    except ValueError:
        pytest.skip(f"this onnx does not take ml_dtypes' {name}")
    assert tensor.raw_data == pack(values, bits).tobytes()


def test_blocks_are_filled_up() -> None:
    values = np.arange(20).reshape(2, 10) % 16
    packed = pack_blocks(values, 4, 8, fill=np.array([3, 5]))
    assert packed.shape == (2, 2, 4)
    np.testing.assert_array_equal(unpack_blocks(packed, 4, 10), values)
    np.testing.assert_array_equal(unpack_blocks(packed, 4, 16)[:, 10:], [[3] * 6, [5] * 6])


def test_other_widths_are_refused() -> None:
    with pytest.raises(RecipeError, match="3 bits do not divide a byte; use 2, 4, 8"):
        pack(np.zeros(3), 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
@pytest.mark.parametrize(
    ("rows", "count", "columns", "width"), [(32, 3, 5, 96), (16, 2, 7, 24), (16, 2, 7, 27), (6, 4, 9, 24)]
)
def test_turned_matrices_lie_side_by_side(dtype: Any, rows: int, count: int, columns: int, width: int) -> None:
    array = np.random.default_rng(0).integers(0, 127, (rows, count, columns)).astype(dtype)
    around = np.full((columns, width + 16), -1 if dtype is not np.uint8 else 255, dtype)

    turn_into(around[:, 8 : 8 + width], array)

    assert np.array_equal(around[:, 8 : 8 + width], array.transpose(2, 1, 0).reshape(columns, -1)[:, :width])
    assert (around[:, :8] == around[0, 0]).all() and (around[:, 8 + width :] == around[0, 0]).all()
