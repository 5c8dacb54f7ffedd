"""``python -m benchmarks.weight_only``: weights alone, packed by onnxq, onnxruntime and onnx-neural-compressor."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import weight_tables
from benchmarks.command import Command, Settings
from benchmarks.feeds import Feed, write_feeds
from benchmarks.jobs import ROOT, run_job
from benchmarks.measure import alternate, open_session
from benchmarks.rows import facts, judge, name_of, quantized, working
from benchmarks.weight_peers import PEERS, environment
from benchmarks.weight_tasks import WeightTask, find
from benchmarks.workloads import Workload

ALGORITHMS = ("rtn", "gptq", "awq", "hqq", "kquant")
WIDTHS: dict[str, dict[str, Any]] = {
    "w8": {"preset": "w8"},
    "w4": {"preset": "w4"},
    "w3": {"preset": "w4", "bits": 3},
    "w2": {"preset": "w2"},
}
TABLES = ("nf4", "fp4", "lut4", "lut8")
# As the peers do by default, MatMul alone: rows of an embedding stay float, so that all round the same weights.
ALONE = {"op_types": ["MatMul"], "benchmark": False}
CONFIGS: dict[str, dict[str, Any]] = {
    **{
        f"{width} {algorithm}": {**options, "algorithm": algorithm, **ALONE}
        for width, options in WIDTHS.items()
        for algorithm in ALGORITHMS
    },
    **{
        f"w4 {algorithm} affine": {**WIDTHS["w4"], "algorithm": algorithm, "symmetric": False, **ALONE}
        for algorithm in ALGORITHMS
    },
    **{table: {"preset": table, **ALONE} for table in TABLES},
    "w4, as it is": {"preset": "w4", "benchmark": False},
}
"""What onnxq is asked for, by the name that the tables show."""
QUICK = (
    "w8 rtn",
    "w4 rtn",
    "w4 gptq",
    "w4 hqq",
    "w2 rtn",
    "w2 gptq",
    "nf4",
    "lut4",
    "4 bits rtn symmetric",
    "4 bits hqq",
)
TIMED = (
    *("w8 rtn", "w4 rtn", "w4 gptq", "w4 awq", "w3 rtn", "w2 rtn", "w4 rtn affine", *TABLES),
    *("4 bits rtn symmetric", "4 bits rtn", "4 bits hqq", "8 bits rtn symmetric", "2 bits rtn", "4 bits awq"),
)
"""Rows whose latency is measured: how a weight was rounded does not show in it, the form does."""
SIZES = (1, 32, 256)
ERROR_SAMPLES = 64
ENVIRONMENT = ROOT / ".venv-peers"


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one task; what fails is a row with its error.

    Args:
        workload: what to measure, a `WeightTask`.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    assert isinstance(workload, WeightTask)
    folder.mkdir(parents=True)
    model = workload.model(folder)
    feeds = write_feeds(workload.feeds(), folder / "feeds")
    rows = [
        quantized("onnxq", name, model, feeds, folder, CONFIGS[name]) for name in _chosen(CONFIGS, workload, settings)
    ]
    if settings.peers:
        rows += [_by_peer(name, model, feeds, folder) for name in _chosen(PEERS, workload, settings)]
    error_feeds = (workload.feeds if workload.error_feeds is None else workload.error_feeds)()[:ERROR_SAMPLES]
    elements = matrix_elements(model)
    for row in rows:
        if row["error"] is None:
            judge(row, workload, model, error_feeds)
        if row["error"] is None:
            row["bits"] = row.get("report", {}).get("bits_per_weight") or packed_bits(Path(row["file"]))
            if workload.metric == "perplexity":
                row["divergence"] = divergence(model, Path(row["file"]), error_feeds)
            if workload.exact and workload.score is not None:
                row["exact_metric"] = workload.score(_at_level_0(Path(row["file"])))
    found = facts(workload, model)
    found["float"]["median_ms"] = {}
    timed = {name: path for name, path in working(rows).items() if name.split(" ", 1)[1] in TIMED}
    for size in SIZES:
        latency = alternate({"float": model, **timed}, [workload.sized(size)], settings.latency_seconds)
        found["float"]["median_ms"][str(size)] = latency["float"].median_ms
        for row in rows:
            if name_of(row) in latency:
                row.setdefault("latency", {})[str(size)] = asdict(latency[name_of(row)])
    for row in rows:
        del row["file"]
    return {**found, "samples": len(list(feeds.iterdir())), "elements": elements, "rows": rows}


def _chosen(configs: Mapping[str, object], task: WeightTask, settings: Settings) -> list[str]:
    return [
        name
        for name in configs
        if (task.configs is None or name in task.configs) and (not settings.quick or name in QUICK)
    ]


def _by_peer(config: str, model: Path, feeds: Path, folder: Path) -> dict[str, Any]:
    """One row of a peer, in the environment that it needs."""
    peer = PEERS[config]
    output = folder / f"{peer.by}.{config.replace(' ', '.')}.onnx"
    python, error = environment(ENVIRONMENT) if peer.needs_environment else (Path(sys.executable), None)
    row: dict[str, Any] = {"by": peer.by, "config": config, "error": error, "peak_bytes": None, "file": str(output)}
    if error is not None:
        return row
    paths = {"model": str(model), "feeds": str(feeds), "output": str(output)}
    done = run_job("weight-peer", python=str(python), config=config, **paths)
    row |= {"error": done.error, "peak_bytes": done.peak_bytes, **done.values}
    if done.error is None:
        row["bytes"] = output.stat().st_size
    return row


def matrix_elements(model: Path) -> int:
    """Numbers in the constant matrices that MatMul nodes multiply with."""
    graph = onnx.load(model).graph
    matrices = {tensor.name: tensor.dims for tensor in graph.initializer if len(tensor.dims) == 2}
    read = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    return sum(int(np.prod(dims)) for name, dims in matrices.items() if name in read)


def packed_bits(model: Path) -> float | None:
    """Bits that a weight of a MatMulNBits node takes, scales and zero points included; None where there is none."""
    graph = onnx.load(model).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    size = elements = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            numbers = {item.name: item.i for item in node.attribute}
            elements += numbers["K"] * numbers["N"]
            size += sum(len(onnx.numpy_helper.to_array(tensors[name]).tobytes()) for name in node.input[1:] if name)
    return 8 * size / elements if elements else None


def _at_level_0(model: Path) -> Path:
    """The same with its kernels computing in float32."""
    made = onnx.load(model)
    for node in made.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
    output = model.with_suffix(".level0.onnx")
    onnx.save(made, output)
    return output


def divergence(float_model: Path, other: Path, feeds: Sequence[Feed]) -> float:
    """Mean Kullback–Leibler divergence of the next token's distribution from the float model's, in nats."""
    sessions = open_session(float_model), open_session(other)
    total, tokens = 0.0, 0
    for feed in feeds:
        expected, actual = (_log_chances(session.run(None, feed)[0]) for session in sessions)
        total += float((np.exp(expected) * (expected - actual)).sum())
        tokens += int(np.prod(expected.shape[:-1]))
    return total / tokens


def _log_chances(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


COMMAND = Command("weight_only", __doc__, "fewer configurations, shorter timing", find, measure, weight_tables.render)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
