"""Models that people ship: found through the zoo's wild.py, absent with a message; the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import wild, wild_tables
from benchmarks.command import Settings
from tests.graph.build import build, weights

WILD = """
import numpy as np
METRICS = {"net": None, "gone": None}
def feeds(name, part, root=None):
    return [{"x": np.random.default_rng(i).normal(size=(1, 64)).astype(np.float32)} for i in range(6)]
def evaluate(name, float_model, quantized, root=None):
    return {"quality": 0.5, "sqnr": None}
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    (tmp_path / "wild" / "net").mkdir(parents=True)
    (tmp_path / "wild" / "wild.py").write_text(WILD)
    text = "g (float[1, 64] x) => (float[1, 8] y) { h = Gemm (x, a) r = Relu (h) y = Gemm (r, b) }"
    onnx.save(build(text, a=weights(64, 64), b=weights(64, 8)), tmp_path / "wild" / "net" / "model.onnx")
    return tmp_path


def test_without_the_models_a_message_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wild.main(["--zoo", str(tmp_path)]) == 0
    assert "there is no wild/wild.py" in capsys.readouterr().out


def test_models_are_found_and_missing_ones_named(zoo: Path) -> None:
    found, left_out = wild.find(zoo)
    assert [workload.name for workload in found] == ["net"]
    assert left_out == ["gone is left out: there is no gone/model.onnx beside wild.py"]
    assert len(found[0].feeds()) == 6


def test_a_row_for_each_tool(zoo: Path, tmp_path: Path) -> None:
    (workload,), _ = wild.find(zoo)
    measured = wild.measure(workload, tmp_path / "work", Settings(quick=True, peers=True))
    assert [(row["by"], row["config"]) for row in measured["rows"]] == list(wild_tables.ROWS.values())
    assert [row["error"] for row in measured["rows"]] == [None] * 4
    assert all(row["metric"] == 0.5 and row["ratio"] > 0 and row["size_ratio"] > 0 for row in measured["rows"])
    text = wild_tables.render({"machine": {}, "settings": {}, "left_out": [], "workloads": [measured]})
    assert "| net " in text and "geometric mean" in text


def test_the_geometric_mean_counts_failures_as_float() -> None:
    def task(ratio: float, error: str | None) -> dict[str, object]:
        return {"rows": [{"by": "onnxq", "config": "auto", "ratio": ratio, "error": error}]}

    assert wild_tables.geometric_mean([task(4.0, None), task(9.0, "broken")], "auto") == pytest.approx(2.0)
    assert wild_tables.geometric_mean([], "auto") is None
    assert np.isclose(wild_tables.geometric_mean([task(3.0, None)], "auto") or 0.0, 3.0)
