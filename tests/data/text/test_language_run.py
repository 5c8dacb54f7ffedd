"""How language models are run: what each input takes, and that a cache gives what a whole prompt gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.data.text.language_inputs import UnknownCacheError, language_inputs
from onnxq.data.text.language_run import AFTER, ENCODER, FIRST, LanguageModel
from onnxq.errors import CalibrationError
from onnxq.request.used_as import part_of
from onnxq.runtime.session import open_session
from tests.language_models import HEAD, HEADS, VOCABULARY, WIDTH, decoder, encoder, genai_decoder

IDS = np.array([5, 17, 200, 42, 8, 99])


def opened(model: object, name: str = "m") -> object:
    return part_of(open_session(model.SerializeToString()), name)  # type: ignore[attr-defined]


def test_a_cache_gives_what_the_whole_prompt_gives() -> None:
    model = LanguageModel(opened(genai_decoder()))  # type: ignore[arg-type]
    whole = next(iter(model.steps(IDS, 0))).logits
    steps = list(model.steps(IDS[:2], 4, follow=list(IDS[2:])))
    assert [step.part for step in steps] == [FIRST, AFTER, AFTER, AFTER, AFTER]
    assert whole is not None
    for index, step in enumerate(steps):
        assert step.logits is not None
        np.testing.assert_allclose(step.logits[0, -1], whole[0, 1 + index], atol=1e-4)
    last = steps[-1].feed
    assert last["attention_mask"].shape == (1, 6) and last["past_key_values.1.value"].shape == (1, HEADS, 5, HEAD)


def test_an_open_size_of_a_head_is_found_by_trying() -> None:
    inputs = LanguageModel(opened(genai_decoder())).inputs[FIRST]  # type: ignore[arg-type]
    assert inputs.width == HEAD and set(inputs.grows.values()) == {2}
    assert LanguageModel(opened(genai_decoder(head=HEAD))).inputs[FIRST].width == 0  # type: ignore[arg-type]


def test_an_encoder_and_its_two_decoders_run_together() -> None:
    parts = (decoder(past=False, encoded=True), decoder(past=True, encoded=True), encoder())
    first, after, front = (opened(model, name) for model, name in zip(parts, "abc", strict=True))
    model = LanguageModel(first, after, front, start=1)  # type: ignore[arg-type]
    steps = list(model.steps(IDS, 2))
    assert [step.part for step in steps] == [ENCODER, FIRST, AFTER, AFTER]
    assert steps[1].feed["encoder_hidden_states"].shape == (1, 6, WIDTH) and list(steps[1].ids) == [1]
    assert steps[3].feed["past_key_values.0.encoder.key"].shape == (1, HEADS, 6, HEAD)
    assert steps[3].feed["past_key_values.0.decoder.key"].shape == (1, HEADS, 2, HEAD)
    assert steps[1].logits is not None and list(steps[2].ids) == [int(steps[1].logits[0, -1].argmax())]
    assert model.inputs[AFTER].crossed == ("past_key_values.0.encoder.key",) or len(model.inputs[AFTER].crossed) == 4


def test_an_encoder_alone_takes_masks_and_types() -> None:
    model = LanguageModel(opened(encoder(pooled=True)))  # type: ignore[arg-type]
    (step,) = model.steps(IDS, 3)
    assert {name: array.shape for name, array in step.feed.items()} == dict.fromkeys(
        ["input_ids", "attention_mask", "token_type_ids"], (1, 6)
    )
    assert not model.cached and step.logits is None


def spec(name: str, *shape: int | str, dtype: type = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


TOKENS = spec("input_ids", "n", "s", dtype=np.int64)
LOGITS = spec("logits", "n", "s", VOCABULARY)


def test_what_cannot_be_made_from_text_is_named() -> None:
    with pytest.raises(UnknownCacheError, match="m: input 'past_kv_7' is a cache that no output gives anew"):
        language_inputs([TOKENS, spec("past_kv_7", "n", 2, "p", 8)], [LOGITS, spec("fresh", "n", 2, "t", 8)], "m")
    with pytest.raises(CalibrationError, match="m: input 'pixels' is nothing that text gives"):
        language_inputs([TOKENS, spec("pixels", "n", 3, 8, 8)], [LOGITS], "m")
    with pytest.raises(CalibrationError, match="m: has no input for token ids.*'x'"):
        language_inputs([spec("x", "n", 4)], [LOGITS], "m")


def test_a_graph_of_fixed_length_gets_padding_with_a_mask() -> None:
    inputs = language_inputs(
        [spec("input_ids", 1, 8, dtype=np.int32), spec("attention_mask", 1, 8, dtype=np.int64)], [LOGITS], "m"
    )
    feed = inputs.feed(IDS, 0, {})
    assert feed["input_ids"].dtype == np.int32 and list(feed["input_ids"][0]) == [*IDS, 0, 0]
    assert list(feed["attention_mask"][0]) == [1] * 6 + [0] * 2
    assert list(inputs.feed(np.arange(20), 0, {})["input_ids"][0]) == list(range(8))


def test_positions_branches_and_counts_are_fed() -> None:
    inputs = language_inputs(
        [
            TOKENS, spec("position_ids", "n", "s", dtype=np.int64), spec("use_cache_branch", 1, dtype=np.bool_),
            spec("num_logits_to_keep", dtype=np.int64), spec("past_key_values.0.key", "n", 2, "past", 8),
        ],
        [LOGITS, spec("present.0.key", "n", 2, "all", 8)], "m",
    )  # fmt: skip
    feed = inputs.feed(IDS[:2], 0, {})
    assert feed["use_cache_branch"].tolist() == [False] and feed["past_key_values.0.key"].shape == (1, 2, 0, 8)
    held = inputs.feed(IDS[:2], 3, {"past_key_values.0.key": np.zeros((1, 2, 3, 8), np.float32)})
    assert held["position_ids"].tolist() == [[3, 4]] and held["use_cache_branch"].tolist() == [True]
    assert feed["num_logits_to_keep"].shape == ()


def test_a_model_path_is_no_part_of_the_names(tmp_path: Path) -> None:
    model = LanguageModel(opened(decoder(past=False), "x"), opened(decoder(past=True), "y"))  # type: ignore[arg-type]
    assert [step.part for step in model.steps(IDS[:1], 2)] == [FIRST, AFTER, AFTER]
