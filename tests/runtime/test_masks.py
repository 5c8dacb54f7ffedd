"""Padding by the attention mask of a feed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.attention_mask import kept_positions, mask_in
from onnxq.graph.files import io
from onnxq.runtime.padding import Masks
from tests.graph.build import build

MASK = np.array([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.bool_])
@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "Mask", "input_mask:0", "attention_mask_1"])
def test_an_attention_mask_is_found(name, dtype):
    kept = kept_positions({"input_ids": np.ones((2, 3), np.int64), name: MASK.astype(dtype)})
    np.testing.assert_array_equal(kept, MASK.astype(bool))


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": MASK},
        {"mask_token": MASK},
        {"unmasked": MASK},
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


@pytest.mark.parametrize(
    "name", ["attention_mask", "Mask:0", "key_padding_mask", "padding", "mask_token", "x", "mask_2"]
)
@pytest.mark.parametrize("array", [MASK, MASK * 0, MASK * 2, MASK + 0.5, MASK.astype(bool), np.ones((2, 3))])
def test_calibration_and_judging_take_the_same_inputs_for_masks(name, array):
    loaded = io.load(
        build(
            f"g (float[N, S] {name.replace(':', '_')}) => (float[N, S] y) {{ y = Neg (x) }}".replace(
                "Neg (x)", f"Neg ({name.replace(':', '_')})"
            )
        )
    )
    name = name.replace(":", "_")
    found = Masks.of(loaded).in_feed({name: array}).arrays
    kept = mask_in(name, array)
    assert [entry[0] for entry in found] == ([] if kept is None else [name])
    judged = kept_positions({name: array})
    if kept is None or kept.all():
        assert judged is None
    else:
        np.testing.assert_array_equal(judged, found[0][1])
