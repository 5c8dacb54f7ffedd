"""Samples of a decoder in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.decoding import empty_caches, in_pieces, one_more, roles_of
from onnxq.data.feeds import InputSpec
from onnxq.errors import RecipeError

I64, F32 = np.dtype(np.int64), np.dtype(np.float32)
CACHE = {"past.0.key": "present.0.key"}
INPUTS = [
    InputSpec("input_ids", I64, ("batch", "length")),
    InputSpec("attention_mask", I64, ("batch", "all")),
    InputSpec("position_ids", I64, ("batch", "length")),
    InputSpec("past.0.key", F32, ("batch", 2, "past", 4)),
]
OUTPUTS = [InputSpec("logits", F32, ("batch", "length", 9)), InputSpec("present.0.key", F32, ("batch", 2, "t", 4))]


def test_pieces_hold_their_tokens_and_the_mask_of_all_before() -> None:
    roles = roles_of(INPUTS, OUTPUTS, CACHE)
    assert (roles.ids, roles.positions, roles.mask, roles.logits) == (
        "input_ids", "position_ids", "attention_mask", "logits",
    )  # fmt: skip
    feed = {
        "input_ids": np.arange(6)[None], "position_ids": np.arange(6)[None] + 3,
        "attention_mask": np.arange(9)[None], "past.0.key": np.zeros((1, 2, 3, 4), np.float32),
    }  # fmt: skip
    first, second = in_pieces(feed, roles, [4, 1])
    assert first["input_ids"].tolist() == [[0, 1, 2, 3]] and second["input_ids"].tolist() == [[4]]
    assert first["attention_mask"].shape == (1, 7) and second["attention_mask"].shape == (1, 8)
    assert second["position_ids"].tolist() == [[7]] and "past.0.key" not in first
    further = one_more(second, roles, np.array([8]))
    assert further["input_ids"].tolist() == [[8]] and further["position_ids"].tolist() == [[8]]
    assert further["attention_mask"][0, -2:].tolist() == [7, 1]


def test_caches_begin_empty() -> None:
    roles = roles_of(INPUTS, OUTPUTS, CACHE)
    assert {name: array.shape for name, array in empty_caches(INPUTS, roles, 3).items()} == {"past.0.key": (3, 2, 0, 4)}


def test_what_is_no_decoder_is_said() -> None:
    with pytest.raises(
        RecipeError, match=r"one input of token ids \(input_ids\) is needed, and there are 'past.0.key'"
    ):
        roles_of(INPUTS[3:], OUTPUTS, CACHE)
    with pytest.raises(RecipeError, match="of logits is needed, and there are 'present.0.key'"):
        roles_of(INPUTS, OUTPUTS[1:], CACHE)
