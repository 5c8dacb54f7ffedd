"""Tables from made-up results: who is best, what failed, no path in the text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import tables


def row(by: str, config: str, **figures: Any) -> dict[str, Any]:
    known = {"metric": 0.9, "sqnr_db": 30.0, "ratio": 2.0, "bytes": 1000, "seconds": 1.0, "peak_bytes": 10**6}
    return {"by": by, "config": config, "error": None, **known, **figures}


def failed(by: str, config: str, error: str) -> dict[str, Any]:
    return {"by": by, "config": config, "error": error}


def workload(*rows: dict[str, Any], metric: str | None = "acc", higher_is_better: bool = True) -> dict[str, Any]:
    return {
        "name": "task",
        "metric": metric,
        "higher_is_better": higher_is_better,
        "float": {"metric": 0.95, "bytes": 4000, "median_ms": 1.5},
        "rows": list(rows),
        "calibration": {"ratio": 1.2},
        "memory": {"peak_bytes": {"onnxq": {"32": 2 * 10**8, "128": 2 * 10**8}}, "error": None},
    }


def results(*workloads: dict[str, Any]) -> dict[str, Any]:
    return {"machine": {"cpu": "any"}, "settings": {"quick": True}, "left_out": ["nothing"], "workloads": workloads}


PEERS = (
    row("onnxruntime", "u8s8 qdq", metric=0.93, ratio=2.5, sqnr_db=20.0),
    row("onnxruntime", "u8s8 qoperator", metric=0.93, ratio=2.7, sqnr_db=25.0),
    row("onnxruntime", "u8s8 qdq entropy", metric=0.91, ratio=2.9, sqnr_db=math.nan),
    row("onnxruntime", "s8s8 qdq (defaults)", metric=0.92, ratio=3.1, sqnr_db=22.0),
    failed("onnxruntime", "u8s8 qdq per-tensor", "it broke"),
)


def test_best_is_by_metric_then_by_speed() -> None:
    best = tables.best_peer(workload(*PEERS))
    assert best is not None and best["config"] == "u8s8 qoperator"


def test_best_follows_the_direction_of_the_metric() -> None:
    best = tables.best_peer(workload(*PEERS, higher_is_better=False))
    assert best is not None and best["config"] == "u8s8 qdq entropy"


def test_best_is_by_sqnr_without_a_metric() -> None:
    best = tables.best_peer(workload(*PEERS, metric=None))
    assert best is not None and best["config"] == "u8s8 qoperator"


def test_fastest_counts_only_uint8_by_int8() -> None:
    fastest = tables.fastest_peer(workload(*PEERS))
    assert fastest is not None and fastest["config"] == "u8s8 qdq entropy"


def test_failures_are_cells_and_lines() -> None:
    text = tables.render(results(workload(row("onnxq", "qdq"), failed("onnxq", "qoperator", "no kernel"), *PEERS)))
    assert "- task: onnxq qoperator: no kernel" in text
    assert "- task: onnxruntime u8s8 qdq per-tensor: it broke" in text
    assert text.count("fails") >= 3
    assert "- nothing" in text


def test_a_run_without_peers_renders() -> None:
    text = tables.render(results(workload(row("onnxq", "qdq"))))
    assert "Every configuration" not in text
    assert "1.20" in text


def test_every_line_of_a_table_is_as_wide() -> None:
    lines = tables.markdown(["task", "n"], [["a", "1"], ["longer", "1000"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_files_are_written_and_json_has_no_nan(tmp_path: Path) -> None:
    tables.write(results(workload(*PEERS)), tmp_path / "new", "static")
    data = json.loads((tmp_path / "new" / "static.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert data["workloads"][0]["rows"][2]["sqnr_db"] == "nan"
    assert (tmp_path / "new" / "static.md").read_text().startswith("# Static")


def test_paths_are_cut_out() -> None:
    found = {"error": ["failed at /a/b/model.onnx and /a"], "n": 1}
    assert tables.without_paths(found, [Path("/a"), Path("/a/b")]) == {"error": ["failed at model.onnx and "], "n": 1}
