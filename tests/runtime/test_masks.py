"""Padding by the attention mask of a feed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.attention_mask import kept_positions

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
