"""What learning wins back: which models are shown, with which rows, and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import learned, learned_tables
from benchmarks.command import Settings
from benchmarks.workloads import Workload
from tests.graph.build import build, weights


def workload(tmp_path: Path, name: str = "net") -> Workload:
    text = "g (float[N, 32] x) => (float[N, 8] y) { h = Gemm (x, a) r = Relu (h) y = Gemm (r, b) }"
    path = tmp_path / "net.onnx"
    onnx.save(build(text, a=weights(32, 64), b=weights(64, 8)), path)

    def feeds() -> list[dict[str, Any]]:
        return [{"x": np.random.default_rng(i).normal(size=(1, 32)).astype(np.float32)} for i in range(10)]

    return Workload(name, "zoo", lambda folder: path, feeds, metric="acc", score=lambda path: 0.5)


def row(config: str, **figures: Any) -> dict[str, Any]:
    return {"by": "onnxq", "config": config, "error": None, "peak_bytes": 1e8, "processor_seconds": 3.0, **figures}


def test_what_loses_little_is_only_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LEAST_DECIBELS", 100.0)
    measured = learned.measure(workload(tmp_path), tmp_path / "work", Settings(quick=True, peers=False))
    assert [each["config"] for each in measured["rows"]] == ["w8", "w8a8"]
    assert not measured["loses"]
    text = learned_tables.render({"machine": {}, "settings": {}, "left_out": [], "workloads": [measured]})
    assert "Not shown, since w8a8 costs them less: net." in text and "## 8 bits" not in text


@pytest.mark.parametrize(("metric", "decibels", "loses"), [(0.9, 30.0, False), (0.89, 30.0, True), (0.9, 26.0, True)])
def test_a_model_is_shown_by_its_metric_or_by_decibels(
    tmp_path: Path, metric: float, decibels: float, loses: bool
) -> None:
    both = row("w8", metric=0.9, sqnr_db=30.0), row("w8a8", metric=metric, sqnr_db=decibels)
    assert learned._loses(workload(tmp_path), *both) is loses


def test_few_bits_have_a_table_of_their_own() -> None:
    rows = [
        row("w8", metric=0.9),
        row("w8a8", metric=0.8),
        row("w8a8 AdaRound", metric=0.85),
        row("W4A4 plain", metric=0.7),
    ]
    task = {
        "name": "digits_net", "metric": "acc", "higher_is_better": True, "float": {"metric": 0.91}, "loses": True,
        "rows": rows,
    }  # fmt: skip
    text = learned_tables.render({"machine": {}, "settings": {}, "left_out": ["one line"], "workloads": [task]})
    first, second = text.split("## Fewer bits")
    assert "w8a8 AdaRound" in first and "W4A4 plain" not in first and "W4A4 plain" in second
    assert "- one line" in first and first.count("digits_net") == 1
