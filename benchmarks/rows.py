"""Rows of the tables: a model quantized in a process of its own, then scored; what fails is a row with its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import quark_peer
from benchmarks.feeds import Feed, write_feeds
from benchmarks.jobs import TIMEOUT_SECONDS, run_job
from benchmarks.measure import compare
from benchmarks.workloads import Workload

Row = dict[str, Any]
ERROR_SAMPLES = 64


@dataclass(frozen=True)
class Opened:
    """A workload with its files.

    Attributes:
        workload: what it is.
        model: the float model.
        feeds: the calibration samples.
        feed_folder: the same as files.
    """

    workload: Workload
    model: Path
    feeds: list[Feed]
    feed_folder: Path

    def judge(self, rows: list[Row]) -> None:
        """Add metric and error to the rows that have none, or the reason why the model does not run."""
        workload = self.workload
        feeds = self.feeds if workload.error_feeds is None else workload.error_feeds()
        for row in rows:
            if row["error"] is None:
                judge(row, workload, self.model, feeds[:ERROR_SAMPLES])


def opened(workload: Workload, folder: Path) -> Opened:
    """Make the model and write its samples into a new folder."""
    folder.mkdir(parents=True)
    model, feeds = workload.model(folder), workload.feeds()
    return Opened(workload, model, feeds, write_feeds(feeds, folder / "feeds"))


def quantized(
    by: str,
    config: str,
    model: Path,
    feeds: Path | None,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    limit: int = TIMEOUT_SECONDS,
) -> Row:
    """Quantize in a process of its own.

    Args:
        by: ``onnxq``, ``onnxruntime`` or ``quark``.
        config: name of the row; the peer's is a key of `peers.CONFIGS`.
        model: the float model.
        feeds: a folder of feeds; None lets onnxq do without calibration data.
        folder: where the model is written.
        options: of `onnxq.quantize`.
        limit: seconds on the clock that it may take.
    """
    output = folder / f"{by}.{config.replace(' ', '.')}.onnx"
    paths = {"model": str(model), "feeds": None if feeds is None else str(feeds), "output": str(output)}
    if by == "onnxq":
        done = run_job("onnxq", options=dict(options or {}), limit=limit, **paths)
    elif by == "quark":
        done = run_job("quark", quark_peer.interpreter(), config=config, limit=limit, **paths)
    else:
        done = run_job("peer", config=config, limit=limit, **paths)
    row = {"by": by, "config": config, "error": done.error, "peak_bytes": done.peak_bytes, "file": str(output)}
    if done.error is None:
        row["bytes"] = output.stat().st_size
    return {**row, **done.values}


def judge(row: Row, workload: Workload, model: Path, feeds: list[Feed]) -> None:
    """Add metric and error to a row, or the reason why the model does not run."""
    output = Path(row["file"])
    try:
        row.update(asdict(compare(model, output, feeds)))
        row["metric"] = None if workload.score is None else workload.score(output)
    except Exception as problem:  # a model that does not load or run is a row with the error
        row["error"] = " ".join(f"does not run: {type(problem).__name__}: {problem}".split())[:300]


def working(rows: list[Row]) -> dict[str, Path]:
    """Files of the rows without an error, by name."""
    return {name_of(row): Path(row["file"]) for row in rows if row["error"] is None}


def name_of(row: Row) -> str:
    """Tool and configuration."""
    return f"{row['by']} {row['config']}"


def facts(workload: Workload, model: Path) -> dict[str, Any]:
    """What the tables say of the workload itself and of its float model; its latency is added by who measures it."""
    return {
        "name": workload.name,
        "group": workload.group,
        "metric": workload.metric,
        "higher_is_better": workload.higher_is_better,
        "float": {
            "metric": None if workload.score is None else workload.score(model),
            "bytes": model.stat().st_size,
        },
    }
