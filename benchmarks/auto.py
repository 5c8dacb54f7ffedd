"""``python -m benchmarks.auto``: what the preset auto gives for every model, with and without calibration data."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import auto_tables, workloads
from benchmarks.command import Command, Settings
from benchmarks.feeds import Feed
from benchmarks.lengths import AS_FED
from benchmarks.rows import facts, opened, quantized
from benchmarks.transformers import QUICK_BUDGET, add_latency, encoder_workload
from benchmarks.workloads import Workload

RUN_ONLY_SAMPLES = 10
LATENCY_FEEDS = 4
CONFIGS: dict[str, str] = {
    "w8a8": "w8a8",
    "w8a8-dynamic": "w8a8-dynamic",
    "auto": "auto",
    auto_tables.WITHOUT_DATA: "auto",
}
"""Presets by name of the row; the last two are what is looked at, the first two what they must not be slower than."""


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """All workloads there are, those of the zoo that only have to run included."""
    found, left_out = workloads.find(zoo)
    run_only = [_run_only(path) for path in sorted((zoo / "run_only").glob("*.onnx"))]
    return [*found, encoder_workload(), *run_only], left_out


def _run_only(path: Path) -> Workload:
    def feeds() -> list[Feed]:
        """Smooth noise in the place of images and spectrograms."""
        rng = np.random.default_rng(0)
        return [_random_feed(path, rng) for _ in range(RUN_ONLY_SAMPLES)]

    return Workload(path.stem, "run_only", lambda folder: path, feeds)


def _random_feed(path: Path, rng: np.random.Generator) -> Feed:
    graph = onnx.load(path).graph
    constants = {initializer.name for initializer in graph.initializer}
    feed = {}
    for value in graph.input:
        if value.name not in constants:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            noise = rng.normal(size=shape)
            feed[value.name] = (0.5 * (noise + np.roll(noise, 1, axis=-1))).astype(np.float32)
    return feed


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one workload; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    given = opened(workload, folder)
    model, feeds, feed_folder = given.model, given.feeds, given.feed_folder
    # Under a name for which no calibration data is found.
    alone = Path(shutil.copyfile(model, folder / "without_data.onnx"))
    rows = []
    for config, preset in CONFIGS.items():
        options: dict[str, Any] = {"preset": preset}
        if preset == "auto" and settings.quick:
            options["budget"] = QUICK_BUDGET
        is_blind = config == auto_tables.WITHOUT_DATA
        source, samples = (alone, None) if is_blind else (model, feed_folder)
        rows.append(quantized("onnxq", config, source, samples, folder, options))
    given.judge(rows)
    found = facts(workload, model)
    shapes = {AS_FED: feeds[:LATENCY_FEEDS]}
    found["float"]["median_ms"] = add_latency(rows, model, shapes, settings.latency_seconds)
    return {**found, "samples": len(feeds), "rows": rows}


COMMAND = Command(
    "auto", __doc__, "shorter timing, and less time for auto", find, measure, auto_tables.render, has_peers=False
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
