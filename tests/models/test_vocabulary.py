"""The scripts' split of the text and their vocabulary, and what is kept of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of models/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"models_{name}", ROOT / "models" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"models_{name}", module)
    spec.loader.exec_module(module)
    return module


def test_merges_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = script("vocabulary", monkeypatch)
    learnt = vocabulary.learn(
        " low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3, vocabulary.CHARACTER_PIECES + 4
    )
    # Counts: es 9 and st 9, the first in the alphabet of equals; then es+t 9; then lo 7 and ow 7 and " l" 7.
    assert learnt.pieces[vocabulary.CHARACTER_PIECES :] == ["es", "est", " l", " lo"]
    assert [learnt.pieces[index] for index in learnt.encode(" lowest")] == [" lo", "w", "est"]


def test_text_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vocabulary = script("vocabulary", monkeypatch)
    text = "The quick brown fox; the lazy dog's (10) bones?\n\nAnd the fox."
    learnt = vocabulary.learn(text * 3, vocabulary.CHARACTER_PIECES + 12)
    assert learnt.decode(learnt.encode(text)) == text
    assert len(learnt.encode(text)) < len(text)
    assert learnt.decode(learnt.characters(text)) == text
    learnt.save(tmp_path / "v.json")
    assert vocabulary.Vocabulary.load(tmp_path / "v.json").pieces == learnt.pieces


def test_a_chapter_is_in_one_part_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verses = script("verses", monkeypatch)
    books = ["Ge", "Ruth", "Psa", "Isa", "Mark", "1Cor"]
    lines = [f"{book}{chapter}:{verse} Words." for book in books for chapter in range(1, 21) for verse in (1, 2, 3)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="ascii")
    train, test = verses.split(tmp_path / "text.txt")
    assert not set(train.chapters) & set(test.chapters)
    assert np.bincount(test.labels).tolist() == [6] * 6
    assert np.bincount(train.labels).tolist() == [54] * 6
    assert train.running().count("\n\n") == 18 * 6


def test_another_form_of_text_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verses = script("verses", monkeypatch)
    (tmp_path / "text.txt").write_text("It was a dark night.\n", encoding="ascii")
    with pytest.raises(SystemExit, match="expected lines as"):
        verses.split(tmp_path / "text.txt")


def test_the_kept_vocabulary_reads_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = script("vocabulary", monkeypatch)
    path = ROOT / "models" / "text.vocab.json"
    pieces = json.loads(path.read_text(encoding="utf-8"))
    assert len(pieces) == len(set(pieces)) == 1024
    known = vocabulary.Vocabulary.load(path)
    for name in ("text_encoder", "text_lstm", "tiny_lm"):
        for file in (ROOT / "models" / f"{name}.test.npz", ROOT / "calibration_data" / f"{name}.npz"):
            with np.load(file) as arrays:
                ids = arrays["input_ids"]
            assert ids.min() >= 0 and ids.max() < len(known)
            # The commonest word of the text, in whole files of it, whether written by people or by the model.
            assert sum(known.decode(row.tolist()).count(" the ") for row in ids) > len(ids) / 2
    with np.load(ROOT / "models" / "tiny_lm.test.npz") as arrays:
        text = known.decode(arrays["input_ids"][5].tolist())
    assert known.decode(known.encode(text)) == text
