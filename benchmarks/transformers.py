"""``python -m benchmarks.transformers``: Transformers and recurrent nets by onnxq and onnxruntime, side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from benchmarks import transformer_tables, workloads
from benchmarks.command import Command, Settings
from benchmarks.encoder import encoder, token_feeds
from benchmarks.lengths import timed_feeds
from benchmarks.measure import alternate
from benchmarks.peers import OTHER_CONFIGS
from benchmarks.rows import Row, facts, name_of, opened, quantized, working
from benchmarks.workloads import Workload

ENCODER = "encoder_6x384"
ATTENTION_TASKS = ("minilm_stsb", ENCODER, "text_encoder", "tiny_lm")
RECURRENT_TASKS = ("charrnn_shakespeare", "silero_vad", "text_lstm")
PRESETS = ("w8a8", "w8a8-dynamic", "w8a8-token", "auto")
FUSED_PRESETS = ("w8a8", "w8a8-dynamic")
STATIC_PEERS = ("u8s8 qdq", "s8s8 qdq (defaults)")
QUICK_BUDGET = 30.0


def onnxq_configs(name: str, quick: bool = False) -> dict[str, dict[str, Any]]:
    """Options of `onnxq.quantize` by name of the row, for a task; models with attention are also fused first."""
    configs: dict[str, dict[str, Any]] = {preset: {"preset": preset} for preset in PRESETS}
    if quick:
        configs["auto"]["budget"] = QUICK_BUDGET
    if name in ATTENTION_TASKS:
        configs |= {f"{preset}, fused": {"preset": preset, "fuse": "auto"} for preset in FUSED_PRESETS}
    return configs


def peer_configs(name: str, settings: Settings) -> list[str]:
    """The peer's configurations for a task; models with attention are also fused first."""
    if not settings.peers:
        return []
    found = [*STATIC_PEERS, *OTHER_CONFIGS]
    return [config for config in found if name in ATTENTION_TASKS or not config.endswith(", fused")]


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """The tasks, and a line for each that cannot be measured here."""
    tasks = (*ATTENTION_TASKS, *RECURRENT_TASKS)
    found, left_out = workloads.find(zoo)
    known = {workload.name: workload for workload in [*found, encoder_workload()]}
    lines = [line for line in left_out if line.split()[0] in tasks or "zoo" in line]
    return [known[name] for name in tasks if name in known], lines


def encoder_workload() -> Workload:
    """The encoder with random weights."""

    def model(folder: Path) -> Path:
        path = folder / f"{ENCODER}.onnx"
        onnx.save(encoder(), path)
        return path

    return Workload(
        ENCODER, "shapes", model, lambda: token_feeds(32, seed=1), error_feeds=lambda: token_feeds(16, seed=2)
    )


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one workload; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    given = opened(workload, folder)
    model, feeds, feed_folder = given.model, given.feeds, given.feed_folder
    rows = [
        quantized("onnxq", config, model, feed_folder, folder, options)
        for config, options in onnxq_configs(workload.name, settings.quick).items()
    ]
    rows += [
        quantized("onnxruntime", config, model, feed_folder, folder) for config in peer_configs(workload.name, settings)
    ]
    given.judge(rows)
    found = facts(workload, model)
    found["float"]["median_ms"] = add_latency(rows, model, timed_feeds(model, feeds), settings.latency_seconds)
    return {**found, "samples": len(feeds), "rows": rows}


def add_latency(
    rows: list[Row], model: Path, feeds: dict[str, list[dict[str, Any]]], seconds: float
) -> dict[str, float]:
    """Time the rows that work and the float model, all in one alternation for each shape.

    Args:
        rows: get ``latency``, by shape, and ``ratio``, that of the last shape; lose ``file``.
        model: the float model.
        feeds: by shape.
        seconds: about how long to measure each shape.

    Returns:
        The float model's median in ms, by shape.
    """
    models = {"float": model, **working(rows)}
    by_shape = {shape: alternate(models, samples, seconds) for shape, samples in feeds.items()}
    for row in rows:
        if row["error"] is None:
            row["latency"] = {shape: asdict(latency[name_of(row)]) for shape, latency in by_shape.items()}
            row["ratio"] = list(row["latency"].values())[-1]["ratio"]
        del row["file"]
    return {shape: latency["float"].median_ms for shape, latency in by_shape.items()}


COMMAND = Command(
    "transformers",
    __doc__,
    "shorter timing, and less time for auto",
    find,
    measure,
    transformer_tables.render,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
