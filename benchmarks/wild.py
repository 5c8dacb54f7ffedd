"""``python -m benchmarks.wild``: models that people ship inside packages, quantized by onnxq and by onnxruntime.

The models, their samples and what counts as a decision lie outside the project, in ``wild.py`` of the zoo; where that
is missing, a message says so.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import wild_tables
from benchmarks.command import Command, Settings
from benchmarks.feeds import Feed, write_feeds
from benchmarks.measure import alternate
from benchmarks.rows import judge, name_of, quantized, working
from benchmarks.workloads import Workload

QUICK_BUDGET = 10
LATENCY_FEEDS = 4
PEERS = ("u8s8 qdq", "dynamic per-channel")


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """The shipped models, as (workloads, messages of what is left out)."""
    path = zoo / "wild" / "wild.py"
    if not path.is_file():
        return [], ["the shipped models are left out: there is no wild/wild.py in the zoo's folder (--zoo)"]
    wild = _load(path)
    found, left_out = [], []
    for name in sorted(wild.METRICS):
        if (path.parent / name / "model.onnx").is_file():
            found.append(_workload(wild, path.parent, name))
        else:
            left_out.append(f"{name} is left out: there is no {name}/model.onnx beside wild.py")
    return found, left_out


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("wild_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _workload(wild: ModuleType, folder: Path, name: str) -> Workload:
    model = folder / name / "model.onnx"

    def feeds() -> list[Feed]:
        found: list[Feed] = wild.feeds(name, "calib")
        return found

    def held_out() -> list[Feed]:
        found: list[Feed] = wild.feeds(name, "test")
        return found

    return Workload(
        name,
        "wild",
        lambda folder: model,
        feeds,
        metric="decisions as float",
        score=lambda path: float(wild.evaluate(name, str(model), str(path))["quality"]),
        error_feeds=held_out,
    )


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one model; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    folder.mkdir(parents=True)
    model, feeds = workload.model(folder), workload.feeds()
    samples = write_feeds(feeds, folder / "feeds")
    rows = []
    for preset in ("auto", "w8a8"):
        options: dict[str, Any] = {"preset": preset}
        if preset == "auto" and settings.quick:
            options["budget"] = QUICK_BUDGET
        if preset != "auto":
            options["force"] = True  # a row of a poor model says more than that there is none
        rows.append(quantized("onnxq", preset, model, samples, folder, options))
    if settings.peers:
        rows += [quantized("onnxruntime", config, model, samples, folder) for config in PEERS]
    held_out = feeds if workload.error_feeds is None else workload.error_feeds()
    for row in rows:
        if row["error"] is None:
            judge(row, workload, model, held_out)
    latency = alternate({"float": model, **working(rows)}, held_out[:LATENCY_FEEDS], settings.latency_seconds)
    for row in rows:
        if row["error"] is None:
            row.update(asdict(latency[name_of(row)]))
            row["size_ratio"] = row["bytes"] / model.stat().st_size
        del row["file"]
    return {
        "name": workload.name,
        "group": workload.group,
        "metric": workload.metric,
        "higher_is_better": True,
        "samples": len(feeds),
        "float": {"metric": 1.0, "bytes": model.stat().st_size, "median_ms": latency["float"].median_ms},
        "rows": rows,
    }


COMMAND = Command(
    "wild", __doc__, "shorter timing, and less time for auto", find, measure, wild_tables.render, has_peers=True
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
