"""Padding by the attention mask of a feed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.runtime.masks import kept_positions, without_padding

MASK = np.array([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.bool_])
@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "Mask"])
def test_an_attention_mask_is_found(name, dtype):
    kept = kept_positions({"input_ids": np.ones((2, 3), np.int64), name: MASK.astype(dtype)})
    np.testing.assert_array_equal(kept, MASK.astype(bool))


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": MASK},
        {"key_padding_mask": MASK},  # 1 is padding here
        {"attention_mask": np.ones((2, 3))},
        {"attention_mask": np.zeros((2, 3))},
        {"attention_mask": MASK * -10000.0},
        {"attention_mask": MASK[:, None]},
        {"mask": np.array([["a", "b"]])},
        {"mask": np.zeros((0, 3))},
    ],
)
def test_what_is_no_mask_masks_nothing(feed):
    assert kept_positions(feed) is None


def test_rows_of_positions_are_left_out():
    kept = MASK.astype(bool)
    x = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(without_padding(x, kept), x.reshape(6, 4)[[0, 1, 3]])
    np.testing.assert_array_equal(without_padding(x.reshape(6, 4), kept), x.reshape(6, 4)[[0, 1, 3]])
    for other in (x.transpose(0, 2, 1), x[:, 0], x.reshape(2, 3, 2, 2)):
        assert without_padding(other, kept) is other
    assert without_padding(x, None) is x
