"""Results of `benchmarks.wild` as Markdown."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.tables import Row, Workload, cell, failures, head, markdown, number, page, row_of
from benchmarks.transformer_tables import chose

ROWS = {
    "auto": ("onnxq", "auto"),
    "w8a8": ("onnxq", "w8a8"),
    "static": ("onnxruntime", "u8s8 qdq"),
    "dynamic": ("onnxruntime", "dynamic per-channel"),
}
"""The columns, by what they are called: tool and configuration."""


def render(results: dict[str, Any]) -> str:
    """All tables of a run.

    Args:
        results: ``machine`` (facts by name), ``settings``, ``left_out`` (lines) and ``workloads``, each with ``name``,
            ``float`` and ``rows``.
    """
    tasks: list[Workload] = results["workloads"]
    parts = [
        *head(results, "Models that people ship: onnxq beside onnxruntime.quantization"),
        "## Speed (float ÷ quantized, one thread), and decisions that stay as in float",
        _speed(tasks),
        "## Error, size and cost",
        _cost(tasks),
    ]
    return page([*parts, *failures(tasks)])


def geometric_mean(tasks: list[Workload], column: str) -> float | None:
    """Of the speeds in one column; a model that failed runs as float does. None where there are no models."""
    ratios = [row["ratio"] if row["error"] is None else 1.0 for row in _column(tasks, column) if row is not None]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _column(tasks: list[Workload], column: str) -> list[Row | None]:
    return [row_of(task, *ROWS[column]) for task in tasks]


def _speed(tasks: list[Workload]) -> str:
    header = ["model", "float ms", *(f"{name} x" for name in ROWS), *(f"{name} decisions" for name in ROWS)]
    rows = []
    for task in tasks:
        shown = [row_of(task, *key) for key in ROWS.values()]
        speeds = [cell(row, "ratio", ".2f") for row in shown]
        decisions = [cell(row, "metric", ".4f") for row in shown]
        rows.append([task["name"], number(task["float"]["median_ms"], ".3f"), *speeds, *decisions])
    means = [number(geometric_mean(tasks, name)) for name in ROWS]
    rows.append(["geometric mean", "", *means, *[""] * len(ROWS)])
    return markdown([*header, "auto chose"], [[*row, *_chosen(tasks, i)] for i, row in enumerate(rows)])


def _chosen(tasks: list[Workload], index: int) -> list[str]:
    return [chose(row_of(tasks[index], *ROWS["auto"]))] if index < len(tasks) else [""]


def _cost(tasks: list[Workload]) -> str:
    header = ["model", "float kB"]
    for title in ("SQNR dB", "size", "seconds", "peak MB"):
        header += [f"{title}: {name}" for name in ROWS]
    rows = []
    for task in tasks:
        shown = [row_of(task, *key) for key in ROWS.values()]
        line = [task["name"], number(task["float"]["bytes"] / 1000, ".0f")]
        for key, form, scale in (
            ("sqnr_db", ".1f", 1.0),
            ("size_ratio", ".2f", 1.0),
            ("seconds", ".1f", 1.0),
            ("peak_bytes", ".0f", 1e-6),
        ):
            line += [cell(row, key, form, scale=scale) for row in shown]
        rows.append(line)
    return markdown(header, rows)
