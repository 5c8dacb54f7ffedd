"""``python -m benchmarks.static``: static quantization by onnxq and by onnxruntime.quantization, side by side."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, tables
from benchmarks.feeds import Feed, repeated, write_feeds
from benchmarks.jobs import ROOT, run_job
from benchmarks.measure import alternate, compare, plain_inference_seconds
from benchmarks.peers import CONFIGS, QUICK_CONFIGS
from benchmarks.workloads import DEFAULT_ZOO, Workload, find

RESULTS = ROOT / "benchmarks" / "results"
ONNXQ_CONFIGS: dict[str, dict[str, str]] = {
    "qdq": {"preset": "w8a8", "format": "qdq"},
    "qoperator": {"preset": "w8a8", "format": "qoperator"},
}
MEMORY_SAMPLES = (32, 128)
MEMORY_PEER = "u8s8 qdq entropy"
ERROR_SAMPLES = 64
LATENCY_FEEDS = 4


@dataclass(frozen=True)
class Settings:
    """How much to measure; both forms measure the same things, the quick one fewer and shorter."""

    quick: bool
    peers: bool

    @property
    def peer_configs(self) -> Sequence[str]:
        """The peer's configurations to run."""
        if not self.peers:
            return ()
        return QUICK_CONFIGS if self.quick else tuple(CONFIGS)

    @property
    def latency_seconds(self) -> float:
        """How long one alternation lasts."""
        return 3.0 if self.quick else 12.0

    @property
    def repeats(self) -> int:
        """How often calibration is timed."""
        return 1 if self.quick else 3


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one workload; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    folder.mkdir(parents=True)
    model = workload.model(folder)
    feeds = workload.feeds()
    feed_folder = write_feeds(feeds, folder / "feeds")
    rows = [_quantize("onnxq", config, model, feed_folder, folder) for config in ONNXQ_CONFIGS]
    for config in settings.peer_configs:
        row = _quantize("onnxruntime", config, model, feed_folder, folder)
        if row["error"] is None:
            plain = statistics.median(plain_inference_seconds(model, feeds) for _ in range(settings.repeats))
            row["calibration_ratio"] = row["calibrate_seconds"] / plain
        rows.append(row)
    error_feeds = feeds if workload.error_feeds is None else workload.error_feeds()
    for row in rows:
        if row["error"] is None:
            _judge(row, workload, model, error_feeds[:ERROR_SAMPLES])
    working = {f"{row['by']} {row['config']}": Path(row["file"]) for row in rows if row["error"] is None}
    latency = alternate({"float": model, **working}, feeds[:LATENCY_FEEDS], settings.latency_seconds)
    for row in rows:
        if row["error"] is None:
            row.update(asdict(latency[f"{row['by']} {row['config']}"]))
        del row["file"]
    return {
        "name": workload.name,
        "group": workload.group,
        "metric": workload.metric,
        "higher_is_better": workload.higher_is_better,
        "samples": len(feeds),
        "float": {
            "metric": None if workload.score is None else workload.score(model),
            "bytes": model.stat().st_size,
            "median_ms": latency["float"].median_ms,
        },
        "rows": rows,
        "calibration": _calibration(model, feed_folder, folder, settings.repeats),
        "memory": {} if settings.quick else _memory(workload.group, model, feeds, folder, settings.peers),
    }


def _quantize(by: str, config: str, model: Path, feeds: Path, folder: Path) -> dict[str, Any]:
    """One row: quantize in a process of its own."""
    output = folder / f"{by}.{config.replace(' ', '.')}.onnx"
    paths = {"model": str(model), "feeds": str(feeds), "output": str(output)}
    if by == "onnxq":
        done = run_job("onnxq", options=ONNXQ_CONFIGS[config], **paths)
    else:
        done = run_job("peer", config=config, **paths)
    row = {"by": by, "config": config, "error": done.error, "peak_bytes": done.peak_bytes, "file": str(output)}
    if done.error is None:
        row["bytes"] = output.stat().st_size
    return {**row, **done.values}


def _judge(row: dict[str, Any], workload: Workload, model: Path, feeds: list[Feed]) -> None:
    """Add metric and error to a row, or the reason why the model does not run."""
    output = Path(row["file"])
    try:
        row.update(asdict(compare(model, output, feeds)))
        row["metric"] = None if workload.score is None else workload.score(output)
    except Exception as problem:  # a model that does not load or run is a row with the error
        row["error"] = " ".join(f"does not run: {type(problem).__name__}: {problem}".split())[:300]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--quick", action="store_true", help="fewer peers, shorter timing, no peak memory")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure the peer too")
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
    parser.add_argument("--list", action="store_true", help="show the tasks and stop")
    options = parser.parse_args(arguments)
    zoo = options.zoo.resolve()
    workloads, left_out = find(zoo)
    known = [workload.name for workload in workloads]
    if options.list:
        print("\n".join(known))
        return 0
    unknown = sorted(set(options.task or ()) - set(known))
    if unknown:
        print(f"no task {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [workload for workload in workloads if not options.task or workload.name in options.task]
    settings = Settings(options.quick, options.peers)
    is_whole = not options.task and not options.quick and options.peers
    results: dict[str, Any] = {
        "machine": machine.facts(),
        "settings": {**asdict(settings), "threads": 1},
        "left_out": left_out,
        "workloads": [],
    }
    text = ""
    paths = [zoo, ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()]
    for workload in chosen:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            private = [Path(folder, "work"), Path(folder), *paths]
            try:
                measured = measure(workload, Path(folder, "work"), settings)
            except ImportError as problem:  # the zoo's data may need a library that is not there
                left_out.append(f"{workload.name} is left out: {problem}")
                continue
            results["workloads"].append(tables.without_paths(measured, private))
        text = tables.write(results, RESULTS, "static" if is_whole else "static-partial")
    print(text or "\n".join(left_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
