"""``python -m benchmarks.learned``: what learning wins back, where 8-bit activations cost accuracy or bits are few.

Models: the zoo's, those that people ship, the project's own. A model is shown where ``w8a8`` loses more than 0.5 % of
its metric or 3 dB against ``w8``; the digits networks also with fewer bits. Each row is a process of its own, so that
its peak memory is its own; seconds are of computing on one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import learned_tables, quark_peer, wild, workloads
from benchmarks.command import Command, Settings
from benchmarks.rows import Opened, Row, facts, opened, quantized
from benchmarks.workloads import Workload

MINUTES, QUICK_MINUTES = 4.0, 0.5

LEAST_LOSS = 0.005
"""Share of the metric that 8-bit activations must cost for a model to be shown."""

LEAST_DECIBELS = 3.0
"""The same of SQNR, against 8-bit weights alone."""

LEARNED: dict[str, dict[str, Any]] = {
    "AdaRound": {"adaround": True},
    "reconstruction": {"reconstruct": True},
    "finetuning": {"finetune": True},
}
"""Ways to learn, by what the tables call them."""

FEW_BITS: dict[str, dict[str, Any]] = {
    "W4A8": {"preset": "w8a8", "bits": 4},
    "W4A4": {"preset": "w4a4"},
    "W3A8": {"preset": "w8a8", "bits": 3},
    "W2A8": {"preset": "w8a8", "bits": 2},
}
"""Widths that the digits networks are tried with; every layer runs on integers."""


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """All workloads with data, and a line for each that cannot be measured here."""
    ours, without = workloads.find(zoo)
    shipped, missing = wild.find(zoo)
    if quark_peer.interpreter() is None:
        missing = [*missing, f"Quark is left out: {quark_peer.VARIABLE} names no interpreter that has it"]
    return [*(task for task in ours if task.group != "shapes"), *shipped], [*without, *missing]


def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one model; what fails is a row with its error.

    Args:
        workload: what to measure.
        folder: an empty folder for models and feeds.
        settings: how much to measure.
    """
    task = opened(workload, folder)
    minutes = QUICK_MINUTES if settings.quick else MINUTES
    rows = [_row(task, preset, {"preset": preset}) for preset in ("w8", "w8a8")]
    task.judge(rows)
    loses = _loses(workload, *rows)
    if loses:
        learned = [
            _row(task, f"w8a8 {name}", {"preset": "w8a8", "minutes": minutes, **how}) for name, how in LEARNED.items()
        ]
        if settings.peers and quark_peer.interpreter() is not None:
            learned += [quantized("quark", name, task.model, task.feed_folder, folder) for name in quark_peer.CONFIGS]
        task.judge(learned)
        rows += learned
    if workload.name.startswith("digits_"):
        few = []
        for width, options in FEW_BITS.items():
            ways = {"plain": {}, **LEARNED} if width == "W4A4" else LEARNED  # w8a8 takes fewer bits with learning alone
            for name, how in ways.items():
                asked = {**options, "include": ["*"], "minutes": minutes, **how}
                few.append(_row(task, f"{width} {name}", asked))
        task.judge(few)
        rows += few
    for row in rows:
        del row["file"]
    return {**facts(workload, task.model), "samples": len(task.feeds), "loses": loses, "rows": rows}


def _row(task: Opened, config: str, options: dict[str, Any]) -> Row:
    asked = {"force": True, "benchmark": False, **options}
    return quantized("onnxq", config, task.model, task.feed_folder, task.feed_folder.parent, asked)


def _loses(workload: Workload, weights: Row, both: Row) -> bool:
    """Whether quantized activations cost enough that there is something to win back."""
    if weights["error"] is not None or both["error"] is not None:
        return both["error"] is None
    clear, noisy = weights.get("sqnr_db"), both.get("sqnr_db")
    noisier = clear is not None and noisy is not None and clear - noisy > LEAST_DECIBELS
    before, after = weights.get("metric"), both.get("metric")
    if before is None or after is None:
        return noisier
    fall = (before - after) * (1 if workload.higher_is_better else -1)
    return bool(noisier or fall > LEAST_LOSS * abs(before))


COMMAND = Command(
    "learned", __doc__, "half a minute for each way to learn", find, measure, learned_tables.render, has_peers=True
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    return COMMAND.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
