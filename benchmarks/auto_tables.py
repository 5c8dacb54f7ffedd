"""Results of `benchmarks.auto` as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import Row, Workload, cell, failures, head, markdown, number, page, row_of
from benchmarks.transformer_tables import chose

WITHOUT_DATA = "auto without data"
OURS = ("w8a8", "w8a8-dynamic", "auto", WITHOUT_DATA)


def render(results: dict[str, Any]) -> str:
    """All tables of a run.

    Args:
        results: ``machine`` (facts by name), ``settings``, ``left_out`` (lines) and ``workloads``, each with ``name``,
            ``metric``, ``higher_is_better``, ``float`` and ``rows``.
    """
    tasks: list[Workload] = results["workloads"]
    parts = [
        *head(results, "What auto gives, with and without calibration data"),
        "## Latency: float ÷ quantized, one thread, above 1 is faster",
        _latency(tasks),
        "## Accuracy",
        _accuracy(tasks),
        "## Size and time",
        _cost(tasks),
    ]
    return page([*parts, *failures(tasks)])


def _rows(task: Workload) -> list[Row | None]:
    return [row_of(task, "onnxq", config) for config in OURS]


def against_best(task: Workload) -> float | None:
    """Speed of ``auto`` over that of the faster of w8a8 and w8a8-dynamic; None where one of these failed."""
    static, dynamic, auto, _ = _rows(task)
    known = [row["ratio"] for row in (static, dynamic) if row is not None and row["error"] is None]
    if not known or auto is None or auto["error"] is not None:
        return None
    speed: float = auto["ratio"] / max(known)
    return speed


def _latency(tasks: list[Workload]) -> str:
    header = ["task", "float ms", *OURS, "auto ÷ better preset", "form of auto", "form without data"]
    rows = []
    for task in tasks:
        shown = _rows(task)
        (median,) = task["float"]["median_ms"].values()
        ratios = [cell(row, "ratio", ".2f", "x") for row in shown]
        forms = [chose(row) for row in shown[2:]]
        rows.append([task["name"], number(median, ".3f"), *ratios, number(against_best(task)), *forms])
    return markdown(header, rows)


def _accuracy(tasks: list[Workload]) -> str:
    header = ["task", "metric", "float", *OURS, *(f"SQNR dB: {OURS[0]}", *OURS[1:]), "top-1 agreement: auto"]
    header.append(WITHOUT_DATA)
    rows = []
    for task in tasks:
        shown = _rows(task)
        line = [task["name"], task["metric"] or "–", number(task["float"]["metric"], ".4f")]
        for key, form in (("metric", ".4f"), ("sqnr_db", ".1f")):
            line += [cell(row, key, form) for row in shown]
        rows.append([*line, *(cell(row, "top1_agreement", ".3f") for row in shown[2:])])
    return markdown(header, rows)


def _cost(tasks: list[Workload]) -> str:
    header = ["task", "float kB", *(f"kB: {OURS[0]}", *OURS[1:]), *(f"quantize s: {OURS[0]}", *OURS[1:])]
    rows = []
    for task in tasks:
        shown = _rows(task)
        sizes = [cell(row, "bytes", ".0f", scale=1e-3) for row in shown]
        seconds = [cell(row, "seconds", ".1f") for row in shown]
        rows.append([task["name"], number(task["float"]["bytes"] / 1000, ".0f"), *sizes, *seconds])
    return markdown(header, rows)
