"""What learning wins back: which rows are measured, that a run goes on where one stopped, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import learned, learned_tables, quark_peer
from benchmarks.workloads import Workload
from tests.graph.build import build, weights


def workload(tmp_path: Path, name: str = "net") -> Workload:
    text = "g (float[N, 32] x) => (float[N, 8] y) { h = Gemm (x, a) r = Relu (h) y = Gemm (r, b) }"
    path = tmp_path / "net.onnx"
    onnx.save(build(text, a=weights(32, 64), b=weights(64, 8)), path)

    def feeds() -> list[dict[str, Any]]:
        return [{"x": np.random.default_rng(i).normal(size=(1, 32)).astype(np.float32)} for i in range(10)]

    return Workload(name, "zoo", lambda folder: path, feeds, metric="acc", score=lambda path: 0.5)


def row(way: str, **figures: Any) -> dict[str, Any]:
    common = {"model": "digits_net", "metric": "acc", "higher_is_better": True, "float": 0.91, "minutes": None}
    return {**common, "way": way, "error": None, "peak_bytes": 1e8, "processor_seconds": 3.0, "score": 0.9, **figures}


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only model there is is a small one; gives where the rows lie."""
    monkeypatch.setattr(learned, "find", lambda zoo: [workload(tmp_path)])
    monkeypatch.delenv(quark_peer.VARIABLE, raising=False)
    return tmp_path / "learned.json"


def test_what_loses_little_gets_no_further_rows(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_tables, "LEAST_DECIBELS", 100.0)
    assert learned.main(["--zoo", str(one.parent)], one) == 0
    rows = json.loads(one.read_text())["rows"]
    assert [each["way"] for each in rows] == ["w8", "w8a8"] and not any(each["error"] for each in rows)
    assert all("file" not in each and each["score"] == 0.5 for each in rows)
    assert "## Measured with w8 and w8a8 alone" in one.with_suffix(".md").read_text()


def test_a_run_goes_on_with_the_rows_that_are_missing(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def quantized(by: str, config: str, *rest: Any, limit: int) -> dict[str, Any]:
        asked.append(config)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"by": by, "config": config, "error": "none was made", "peak_bytes": None, "file": str(one) + ".onnx"}

    monkeypatch.setattr(learned, "quantized", quantized)
    command = ["--task", "net", "--way", "w8", "--way", "w8a8", "--way", "w8a8 AdaRound"]
    with pytest.raises(KeyboardInterrupt):
        learned.main(command, one)
    assert asked == ["w8", "w8a8"]
    learned.main(command, one)
    assert asked == ["w8", "w8a8", "w8a8", "w8a8 AdaRound"]
    learned.main([*command, "--minutes", "1"], one)  # the plain ones do not depend on it
    assert asked[4:] == ["w8a8 AdaRound"]
    learned.main([*command, "--minutes", "1", "--again"], one)
    assert asked[5:] == ["w8", "w8a8", "w8a8 AdaRound"]


def test_an_unknown_way_or_task_is_one_line(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learned.main(["--way", "w9"], one) == 2
    assert "no way 'w9'; there are w8, w8a8, w8a8 AdaRound" in capsys.readouterr().err
    assert learned.main(["--task", "x"], one) == 2 and not one.exists()
    assert "no task 'x'; there are net" in capsys.readouterr().err


@pytest.mark.parametrize(("metric", "decibels", "loses"), [(0.9, 30.0, False), (0.89, 30.0, True), (0.9, 26.0, True)])
def test_a_model_is_shown_by_its_metric_or_by_decibels(metric: float, decibels: float, loses: bool) -> None:
    both = row("w8", score=0.9, sqnr_db=30.0), row("w8a8", score=metric, sqnr_db=decibels)
    assert learned.loses(*both) is loses


def test_few_bits_have_a_table_of_their_own() -> None:
    rows = [row("W4A4 plain", score=0.7), row("w8a8 AdaRound", score=0.85), row("w8a8", sqnr_db="inf"), row("w8")]
    rows += [row("quark adaquant", error="no Quark"), row("w8", model="other"), row("w8a8", model="other")]
    text = learned_tables.render({"machine": {}, "rows": rows})
    first, second = text.split("## Fewer bits")
    first, others = first.split("## Measured with w8 and w8a8 alone")
    assert "w8a8 AdaRound" in first and "W4A4 plain" not in first and "W4A4 plain" in second
    assert first.index("w8a8 AdaRound") < first.index("quark adaquant") and "exact" in first
    assert first.count("digits_net") == 1 and "other" in others and "- digits_net, quark adaquant: no Quark" in second


def test_models_that_lose_much_are_named_with_the_ways_that_were_not_measured() -> None:
    assert tuple(learned.LEARNED) == learned_tables.LEARNED_WAYS
    rows = [row("w8", score=0.9), row("w8a8", score=0.8), row("w8a8 AdaRound", score=0.85)]
    rows += [row("w8", model="fine", score=0.9), row("w8a8", model="fine", score=0.9)]
    rows += [row("w8", model="odd", error="no"), row("w8a8", model="odd", score=0.9)]
    text = learned_tables.render({"machine": {}, "rows": rows}).split("rows that were not measured")[1]
    assert "- digits_net: w8a8 reconstruction, w8a8 finetuning" in text and "fine:" not in text and "- odd:" not in text
    whole = [*rows, row("w8a8 reconstruction"), row("w8a8 finetuning")]
    assert "not measured" not in learned_tables.render({"machine": {}, "rows": whole})
