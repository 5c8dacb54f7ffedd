"""Which output of a model is the next call's input."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.state_pairs import Tensor, possible_states, state_pairs, with_asked
from onnxq.errors import RecipeError

F, INT, B = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)
X, Y = Tensor("x", F, (1, 8)), Tensor("y", F, (1, 4))


def s(name: str, *shape: int | str | None, dtype: np.dtype = F) -> Tensor:
    return Tensor(name, dtype, shape or (1, 16))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h", "hn"), ("h0", "hn"), ("c0", "cn"), ("state", "stateN"), ("state_in", "state_out"),
        ("in_cache0", "out_cache0"),
        ("cache", "new_cache"), ("cache", "cache_out"), ("conv_cache", "conv_cache_out"), ("mem_past", "mem_present"),
        ("past.0.key", "present.0.key"), ("past_key_values.3.value", "present.3.value"),
        ("past_key_values.0.decoder.key", "present.0.decoder.key"), ("hiddenStateIn", "hiddenStateOut"),
        ("cache_last_channel", "cache_last_channel_next"), ("prev_h", "next_h"), ("h_in", "h_out"),
    ],
)  # fmt: skip
def test_names_pair(before: str, after: str) -> None:
    assert state_pairs([X, s(before)], [Y, s(after)]) == {after: before}
    assert possible_states([X, s(before)], [Y, s(after)]) == {before}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([s("image")], [s("image_out")]),  # nothing else goes in
        ([X, s("h")], [s("hn")]),  # nothing else comes out
        ([X, s("h", 1, 16)], [Y, s("hn", 1, 8)]),
        ([X, s("h")], [Y, s("hn", dtype=INT)]),
        ([X, s("h", 1, 16)], [Y, s("hn", 1, 1, 16)]),
        ([X, s("src_mask", dtype=B)], [Y, s("src_mask_out", dtype=B)]),
        ([X, s("attention_mask", dtype=INT)], [Y, s("attention_mask_out", dtype=INT)]),
        ([X, s("h")], [Y, s("z")]),  # by shape only where the samples lack it
    ],
)
def test_what_is_no_pair(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    assert state_pairs(inputs, outputs) == {}


def test_indices_tell_states_of_one_shape_apart() -> None:
    inputs = [X, *(s(f"in_cache{i}") for i in range(12))]
    outputs = [Y, *(s(f"out_cache{i}") for i in reversed(range(12)))]
    assert state_pairs(inputs, outputs) == {f"out_cache{i}": f"in_cache{i}" for i in range(12)}


@pytest.mark.parametrize(
    ("inputs", "outputs", "given", "expected"),
    [
        ([X, s("a", 2, 1, 16)], [Y, s("b", 2, 1, 16)], ["x"], {"b": "a"}),
        ([X, s("a", 2, "n", 16)], [Y, s("b", "q", "n", 16)], ["x"], {"b": "a"}),
        ([X, s("a"), s("c", 1, 32)], [Y, s("d", 1, 32), s("b")], ["x"], {"b": "a", "d": "c"}),
        ([X, s("a", 1, None)], [Y, s("b", 1, 16)], ["x"], {}),  # two outputs agree
        ([X, s("a")], [Y, s("b")], ["x", "a"], {}),  # the samples hold it
        ([X, s("a")], [Y, s("b"), s("d")], ["x"], {}),  # two candidates
        ([X, s("a"), s("c")], [Y, s("b")], ["x"], {}),
        ([X, s("a")], [s("b"), Tensor("y", F, (1, 8))], ["x"], {"b": "a"}),
        ([X, s("a", "n", "m")], [Y, s("b", "n", "m")], ["x"], {}),  # nothing fixed to go by
        ([X, s("a", dtype=INT)], [Y, s("b")], ["x"], {}),
        ([X, s("h"), s("a", 3, 3)], [Y, s("hn"), s("b", 3, 3)], ["x"], {"hn": "h"}),  # names win
    ],
)
def test_shapes_pair_where_one_output_fits_what_is_missing(
    inputs: list[Tensor], outputs: list[Tensor], given: list[str], expected: dict[str, str]
) -> None:
    assert state_pairs(inputs, outputs, given) == expected
    assert set(expected.values()) <= possible_states(inputs, outputs)


def test_what_the_user_says_wins_over_what_is_found() -> None:
    inputs, outputs = [X, s("a"), s("b")], [Y, s("p"), s("q")]
    assert with_asked({"p": "a"}, {"q": "a"}, inputs, outputs) == {"q": "a"}
    assert with_asked({"p": "a"}, {"q": "b"}, inputs, outputs) == {"p": "a", "q": "b"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stateM": "h"}, "--state stateM=h: the model has no output 'stateM'; did you mean 'stateN'"),
        ({"stateN": "hh"}, "--state stateN=hh: the model has no input 'hh'; did you mean 'h'"),
        ({"i": "h"}, "--state i=h: the output is int64, the input takes float32"),
        ({"y": "h"}, r"--state y=h: the output has shape \(1, 4\), the input takes \(1, 16\)"),
        ({"stateN": "h", "z": "h"}, "--state: input 'h' is named for two outputs"),
    ],
)
def test_pairs_that_cannot_be(asked: dict[str, str], message: str) -> None:
    outputs = [Y, s("stateN"), s("z"), s("i", dtype=INT)]
    with pytest.raises(RecipeError, match=message):
        with_asked({}, asked, [X, s("h")], outputs)
