"""Text files as samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

import onnxq
from onnxq.data.text.prompts import LONGEST, longest, open_prompts, read_text
from onnxq.data.text.text_samples import as_samples
from onnxq.errors import CalibrationError, MissingExtraError
from tests.language_models import TEXT, encoder, genai_decoder, tokenizer


def test_lines_are_samples_and_so_are_paragraphs_where_blank_lines_part_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n\n", "utf-8")
    assert read_text(path) == ["one", "two"]
    path.write_text("﻿one\nstill one\r\n \r\ntwo\n\n\nthree", "utf-8")
    assert [part.split() for part in read_text(path)] == [["one", "still", "one"], ["two"], ["three"]]


@pytest.mark.parametrize(("content", "said"), [(b" \n\n", "holds no text"), (b"ab\xff\xfe", "is not UTF-8 at byte 2")])
def test_a_text_that_is_none_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=said):
        read_text(path)


@pytest.mark.text
def test_texts_become_tokens_and_long_ones_are_cut(tmp_path: Path) -> None:
    path = tokenizer(tmp_path)
    text = tmp_path / "p.txt"
    text.write_text("ab\n" + "c" * 1000)
    short, cut = open_prompts(text, [tmp_path], None).ids()
    assert len(short) == 2 and len(cut) == LONGEST
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 20}))
    assert [len(row) for row in open_prompts(text, [], path).ids()] == [2, 20]
    assert [len(row) for row in open_prompts(text, [], tmp_path).ids()] == [2, 20]
    assert longest({"n_ctx": -1, "n_positions": "many"}) == LONGEST


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "p.txt"
    with pytest.raises(CalibrationError, match="p.txt: no such file"):
        open_prompts(text, [tmp_path], None)
    text.write_text("words")
    with pytest.raises(CalibrationError, match=r"there is no tokenizer.json in .*; name one with --tokenizer"):
        open_prompts(text, [tmp_path], None)
    with pytest.raises(CalibrationError, match="no such file; --tokenizer takes a tokenizer.json"):
        open_prompts(text, [], tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="--tokenizer t.json: only goes with a text"):
        as_samples("data.npz", None, Path("t.json"))
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'onnxq\[text\]'"):
        open_prompts(text, [tmp_path], None).ids()


@pytest.mark.text
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("words")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CalibrationError, match="tokenizer.json: tokenizers cannot read it"):
        open_prompts(tmp_path / "p.txt", [tmp_path], None).ids()


@pytest.mark.text
def test_every_command_takes_a_text_beside_a_model(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    model, text, out = tmp_path / "m.onnx", tmp_path / "p.txt", tmp_path / "q.onnx"
    text.write_text(TEXT)
    onnx.save(encoder(pooled=True), model)
    made = onnxq.quantize(model, out, calibration=text, preset="w8a8", benchmark=False)
    assert made.comparison is not None and made.comparison.samples == 1 and made.workload is None
    assert onnxq.compare(model, out, data=text).samples == 6
    assert onnxq.calibrate(model, tmp_path / "s.npz", calibration=text).samples == 6
    assert onnxq.benchmark([model, out], data=text, seconds=0.01, memory=False).rows


@pytest.mark.text
def test_a_decoder_is_calibrated_timed_and_judged_with_its_cache(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    model, text = tmp_path / "m.onnx", tmp_path / "p.txt"
    text.write_text(TEXT)
    onnx.save(genai_decoder(), model)
    made = onnxq.quantize(
        model, tmp_path / "q.onnx", calibration=text, preset="w8a8-dynamic", seconds=0.05, workload="decode"
    )
    assert made.workload is not None and made.generated is not None
    assert made.workload["name"] == "decode"
    prefill, decode = made.workload["phases"]
    assert (prefill["tokens"], prefill["past"], prefill["passes"]) == (128, 0, 0)
    assert (decode["tokens"], decode["past"], decode["passes"]) == (1, 192, 1)
    assert made.latency_ms["quantized"] == decode["quantized_ms"] and prefill["float_ms"] > 0
    assert made.generated.tokens == 6 * 33 and made.generated.agreement > 0.8
    assert made.generated.perplexity["quantized"] >= 1.0 and 0.0 <= made.generated.divergence < 0.1
    assert made.comparison is not None and made.comparison.samples == 6  # of 30: a fifth of prompts and decoded tokens
    text_form = made.summary()
    assert "prefill" in text_form and "(1 token behind 192)" in text_form and "with its own cache" in text_form


def test_a_workload_is_of_models_with_a_cache(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(encoder(pooled=True), model)
    with pytest.raises(onnxq.RecipeError, match="--workload decode: is of language models with a cache"):
        onnxq.quantize(model, tmp_path / "q.onnx", preset="w8", workload="decode")
    with pytest.raises(onnxq.RecipeError, match="--workload talk: there are prefill, decode, chat"):
        onnxq.quantize(model, tmp_path / "q.onnx", preset="w8", workload="talk")
