"""Texts that a language model writes itself: the same with and without a cache, alone and in company; by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.data.text.language_run import LanguageModel
from onnxq.data.text.own_texts import own_texts
from onnxq.errors import CalibrationError, RecipeError
from onnxq.request.used_as import part_of
from onnxq.runtime.session import open_session
from tests.decoders import Style, decoder
from tests.language_models import encoder, genai_decoder, genai_folder, seq2seq_files

STYLE = Style(blocks=1)


def opened(model: bytes | onnx.ModelProto) -> LanguageModel:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return LanguageModel(part_of(open_session(content, threads=1, label="decoder"), "decoder"))


def test_a_seed_gives_the_same_texts_whatever_their_number() -> None:
    model = opened(decoder(STYLE))
    rows, fewer, other = own_texts(model, 18, 24), own_texts(model, 3, 24), own_texts(model, 3, 24, seed=1)
    assert len(rows) == 18 and all(row.shape == (24,) and row.dtype == np.int64 for row in rows)
    assert all(np.array_equal(a, b) for a, b in zip(rows, fewer, strict=False))
    assert not any(np.array_equal(a, b) for a, b in zip(fewer, other, strict=True))
    assert len({tuple(row) for row in rows}) == 18
    assert len({int(row[0]) for row in rows}) > 9  # first tokens are drawn


def test_a_cache_changes_nothing() -> None:
    with_cache, without = opened(decoder(STYLE)), opened(decoder(Style(blocks=1, caches=False)))
    assert with_cache.cached and not without.cached
    for a, b in zip(own_texts(with_cache, 4, 20), own_texts(without, 4, 20), strict=True):
        assert np.array_equal(a, b)
    rows = own_texts(opened(genai_decoder()), 2, 12)  # positions and masks grow with the cache
    assert all(len(row) == 12 for row in rows)


def test_the_tokens_behind_the_first_are_the_most_likely_and_the_rest_is_drawn() -> None:
    model = opened(decoder(Style(blocks=1, caches=False)))
    (row,) = own_texts(model, 1, 40)
    session = open_session(decoder(Style(blocks=1, caches=False)), threads=1, label="decoder")
    (logits,) = session.run(model.inputs["first"].feed(row, 0, {}), ["logits"])
    likeliest = logits[0, :-1].argmax(-1) == row[1:]
    assert likeliest[:4].all() and not likeliest[4:].all()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (decoder(Style(blocks=1, causal=False, caches=False)), "depends on later ones"),
        (encoder(pooled=True), "no logits of"),
    ],
)
def test_what_is_no_language_model_is_refused(model: bytes | onnx.ModelProto, said: str) -> None:
    with pytest.raises(CalibrationError, match=f"is no language model that could write: .*{said}"):
        own_texts(opened(model), 2)


def test_quantize_takes_them_as_samples(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(decoder(STYLE))
    result = onnxq.quantize(model, preset="w4", block_size=16, algorithm="gptq", generate=6, benchmark=False, threads=1)
    assert any("samples: 6 texts of 128 tokens that the model wrote itself" in line for line in result.warnings)
    assert result.comparison is not None and result.sqnr_db is not None
    for options, error, said in (
        ({"generate": 0}, RecipeError, "--generate 0: is a number of texts, 1 or more"),
        ({"generate": 2, "calibration": []}, RecipeError, "--generate 2: the model writes its own samples"),
        ({"generate": 2, "tokenizer": "t.json"}, CalibrationError, "--tokenizer"),
    ):
        with pytest.raises(error, match=said):
            onnxq.quantize(model, preset="w4", benchmark=False, **options)
    with pytest.raises(CalibrationError, match="is no language model: none of its inputs, 'pixels'"):
        onnxq.quantize(Path(__file__).parents[3] / "models" / "digits_mlp.onnx", tmp_path / "x.onnx", generate=2)


def test_folders_too(tmp_path: Path) -> None:
    folder = genai_folder(tmp_path / "model", with_tokenizer=False)
    result = onnxq.quantize_folder(folder, tmp_path / "out", generate=3, preset="w8a8-dynamic", benchmark=False)
    assert result.graphs[0].result is not None and result.graphs[0].result.comparison is not None
    (tmp_path / "t5").mkdir()
    for name, graph in seq2seq_files().items():
        onnx.save(graph, tmp_path / "t5" / name)
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5", "decoder_start_token_id": 1}')
    with pytest.raises(CalibrationError, match="--generate"):
        onnxq.quantize_folder(tmp_path / "t5", tmp_path / "none", generate=3, benchmark=False)
    with pytest.raises(RecipeError, match="--generate 0"):
        onnxq.quantize_folder(folder, tmp_path / "none", generate=0)
