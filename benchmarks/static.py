"""``python -m benchmarks.static``: static quantization by onnxq and by onnxruntime.quantization, side by side."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import tables, workloads
from benchmarks.command import Command, Settings
from benchmarks.feeds import Feed, repeated, write_feeds
from benchmarks.jobs import run_job
from benchmarks.measure import alternate, plain_inference_seconds
from benchmarks.peers import QUICK_CONFIGS, STATIC_CONFIGS
from benchmarks.rows import facts, name_of, opened, quantized, working
from benchmarks.workloads import Workload

ONNXQ_CONFIGS: dict[str, dict[str, str]] = {
    "qdq": {"preset": "w8a8", "format": "qdq"},
    "qoperator": {"preset": "w8a8", "format": "qoperator"},
}
MEMORY_SAMPLES = (32, 128)
MEMORY_PEER = "u8s8 qdq entropy"
LATENCY_FEEDS = 4


def _peer_configs(settings: Settings) -> Sequence[str]:
    """The peer's configurations to run."""
    if not settings.peers:
        return ()
    return QUICK_CONFIGS if settings.quick else tuple(STATIC_CONFIGS)


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one workload; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    given = opened(workload, folder)
    model, feeds, feed_folder = given.model, given.feeds, given.feed_folder
    rows = [quantized("onnxq", name, model, feed_folder, folder, options) for name, options in ONNXQ_CONFIGS.items()]
    for config in _peer_configs(settings):
        row = quantized("onnxruntime", config, model, feed_folder, folder)
        if row["error"] is None:
            plain = statistics.median(plain_inference_seconds(model, feeds) for _ in range(settings.repeats))
            row["calibration_ratio"] = row["calibrate_seconds"] / plain
        rows.append(row)
    given.judge(rows)
    latency = alternate({"float": model, **working(rows)}, feeds[:LATENCY_FEEDS], settings.latency_seconds)
    for row in rows:
        if row["error"] is None:
            row.update(asdict(latency[name_of(row)]))
        del row["file"]
    found = facts(workload, model)
    found["float"]["median_ms"] = latency["float"].median_ms
    return {
        **found,
        "samples": len(feeds),
        "rows": rows,
        "calibration": _calibration(model, feed_folder, folder, settings.repeats),
        "memory": {} if settings.quick else _memory(workload.group, model, feeds, folder, settings.peers),
    }


def _calibration(model: Path, feeds: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Calibration by onnxq over plain inference."""
    done = run_job(
        "calibrate", model=str(model), feeds=str(feeds), output=str(folder / "statistics.npz"), repeats=repeats
    )
    if done.error is not None:
        return {"error": done.error}
    return {**done.values, "ratio": done.values["seconds"] / done.values["plain_seconds"]}


def _memory(group: str, model: Path, feeds: list[Feed], folder: Path, peers: bool) -> dict[str, Any]:
    """Peak memory of calibration, by number of samples; a few samples are repeated to make many.

    The peer's, with its whole quantization, only for the two shapes: it takes gigabytes.
    """
    peaks: dict[str, dict[str, int | None]] = {}
    errors: list[str] = []
    for count in MEMORY_SAMPLES:
        many = write_feeds(repeated(feeds, count), folder / f"feeds{count}")
        paths = {"model": str(model), "feeds": str(many)}
        done = {"onnxq": run_job("calibrate-memory", output=str(folder / f"statistics{count}.npz"), **paths)}
        if peers and group == "shapes":
            done["peer"] = run_job("peer", config=MEMORY_PEER, output=str(folder / f"peer{count}.onnx"), **paths)
        for name, result in done.items():
            if result.error is None:
                peaks.setdefault(name, {})[str(count)] = result.peak_bytes
            else:
                errors.append(f"{name} at {count} samples: {result.error}")
    return {"peak_bytes": peaks, "error": "; ".join(errors) or None}


COMMAND = Command(
    "static", __doc__, "fewer peers, shorter timing, no peak memory", workloads.find, measure, tables.render
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
