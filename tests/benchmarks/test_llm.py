"""The benchmark of language models: its rows, its tables, and what it says of tools that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import llm, llm_models, llm_tables, olive_peer
from benchmarks.llm import OURS, TIMED, Settings, main, make_row, place_of, rows_of
from benchmarks.llm_models import Language
from benchmarks.weight_peers import PEERS
from onnxq.runtime.session import open_session
from tests.language_models import genai_decoder

ZOO = Path("nowhere")
SETTINGS = Settings(None, 300, 3)


@pytest.fixture
def tiny(tmp_path: Path) -> Language:
    return llm_models.opened("tiny_lm", tmp_path, ZOO, None)


def test_rows_have_names_that_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name for _, name in rows_of(Language("", folder=True))}
    assert names == {*OURS, llm.BUILDER, *(name for name, peer in PEERS.items() if peer.bits != 2), *olive_peer.CONFIGS}
    assert set(TIMED) <= names
    assert "w8, int8 caches" not in {name for _, name in rows_of(Language("", folder=False))}
    assert main(["--task", "nonsense", "--zoo", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no task 'nonsense'; there are tiny_lm")
    assert main(["--row", "nonsense", "--zoo", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no row 'nonsense'; there are 4 bits awq")
    assert main(["--list", "--zoo", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "tiny_lm\n"


def test_a_row_has_what_it_costs_and_is_judged_and_timed(tiny: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_models, "SECONDS", 0.0)
    row = make_row(tiny, "onnxq", "w4 rtn", SETTINGS)
    assert row["error"] is None and row["bytes"] < llm_models.size_of(tiny.model) / 3
    row |= llm_models.quality(tiny, place_of(tiny, "onnxq", "w4 rtn"))
    float_model = llm_models.facts(tiny)
    assert 0 < row["perplexity"] - float_model["float"]["perplexity"] < 1
    times = llm.take_times(tiny, [row], SETTINGS)
    assert set(times) == {"prefill", "decode"} and set(times["decode"]) == {"float", "onnxq w4 rtn"}
    text = llm_tables.render({"tasks": {"tiny_lm": {**float_model, "rows": [row], "times": times}}})
    assert "| onnxq |        w4 rtn |" in text and "Failures" not in text


def test_what_is_not_there_is_a_row_with_the_reason(tiny: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "environment", lambda folder: (folder, "no environment for the peer: no network"))
    row = make_row(tiny, "onnxruntime", "4 bits hqq", SETTINGS)
    assert row["error"] == "no environment for the peer: no network"
    text = llm_tables.render({"tasks": {"tiny_lm": {**llm_models.facts(tiny), "rows": [row]}}})
    assert "- tiny_lm: onnxruntime 4 bits hqq: no environment for the peer" in text
    monkeypatch.delenv(olive_peer.VARIABLE, raising=False)
    assert make_row(tiny, "Olive", "4 bits rtn, Olive", SETTINGS)["error"] == "OLIVE_PYTHON names no interpreter"


def test_a_run_that_was_ended_makes_what_is_missing() -> None:
    kept = [
        {"by": "onnxq", "config": "w8", "error": None},
        {"by": "onnxq", "config": "w4 rtn", "error": "stopped after 600 s"},
    ]
    again, anew = Settings(None, 300, 3, resume=True), Settings(None, 300, 3)
    assert [again.wants("onnxq", name, kept) for name in ("w8", "w4 rtn", "w4 gptq")] == [False, True, True]
    assert anew.wants("onnxq", "w8", kept)
    some = Settings(None, 300, 3, rows=("w4 rtn",), resume=True)
    assert [some.wants("onnxq", name, kept) for name in ("w8", "w4 rtn", "w4 gptq")] == [False, True, False]


def test_prompts_of_a_decoder_have_empty_caches_of_its_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llm_models.SHAPE, "num_key_value_heads", 4)
    monkeypatch.setattr(llm_models, "HEAD", 16)
    session: Any = open_session(genai_decoder(head=16).SerializeToString())
    feed = llm_models.feed_of(session._session, np.arange(5)[None])
    assert session._session.run(None, feed)[0].shape == (1, 5, 300)
