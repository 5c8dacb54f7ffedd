"""Results of `benchmarks.transformers` and `benchmarks.auto` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables import (
    FAILS,
    NONE,
    Row,
    Workload,
    best_peer,
    cell,
    failures,
    head,
    markdown,
    number,
    page,
    row_of,
)

OURS = ("w8a8", "w8a8-dynamic", "w8a8-token", "auto", "w8a8, fused", "w8a8-dynamic, fused")
PEER_DYNAMIC = "dynamic per-channel"


def render(results: dict[str, Any]) -> str:
    """All tables of a run.

    Args:
        results: ``machine`` (facts by name), ``settings``, ``left_out`` (lines) and ``workloads``, each with ``name``,
            ``metric``, ``higher_is_better``, ``float`` and ``rows``.
    """
    tasks: list[Workload] = results["workloads"]
    parts = [
        *head(results, "Transformers and recurrent nets: onnxq and onnxruntime"),
        "## Quality",
        quality(tasks, OURS),
        "## SQNR in dB",
        _sqnr(tasks),
        "## Latency: float ÷ quantized, one thread, above 1 is faster",
        latency(tasks, OURS),
        "## Size and time",
        _cost(tasks),
        "## What auto chose",
        _chosen(tasks),
    ]
    peers = _peers(tasks)
    if peers:
        parts += ["## Every configuration of onnxruntime", peers]
    return page([*parts, *_notes(tasks), *failures(tasks)])


def at(row: Row | None, shape: str) -> str:
    """The latency ratio of a row at a shape."""
    return cell(None if row is None else {**row, **row.get("latency", {}).get(shape, {})}, "ratio", ".2f", "x")


def _ours(task: Workload, configs: Sequence[str]) -> list[Row | None]:
    return [row_of(task, "onnxq", config) for config in configs]


def fastest_peer_at(task: Workload, shape: str) -> Row | None:
    """The peer's fastest working row at a shape, whatever its quality."""
    rows = [row for row in task["rows"] if row["by"] == "onnxruntime" and row["error"] is None]
    return max(rows, key=lambda row: row["latency"][shape]["ratio"], default=None)


def quality(tasks: list[Workload], configs: Sequence[str]) -> str:
    """The metric of the float model, of configurations of onnxq, and of the peer's best and dynamic ones."""
    header = ["task", "metric", "float", *configs, "peer best", "its configuration", "peer dynamic"]
    rows = []
    for task in tasks:
        best = best_peer(task)
        name = NONE if task["metric"] is None else task["metric"]
        shown = [*_ours(task, configs), best]
        rows.append(
            [
                task["name"],
                name if task["higher_is_better"] else f"{name} (lower)",
                number(task["float"]["metric"], ".4f"),
                *(cell(row, "metric", ".4f") for row in shown),
                NONE if best is None else best["config"],
                cell(row_of(task, "onnxruntime", PEER_DYNAMIC), "metric", ".4f"),
            ]
        )
    return markdown(header, rows)


def _sqnr(tasks: list[Workload]) -> str:
    header = ["task", *OURS, "peer best", "peer dynamic"]
    rows = []
    for task in tasks:
        shown = [*_ours(task, OURS), best_peer(task), row_of(task, "onnxruntime", PEER_DYNAMIC)]
        rows.append([task["name"], *(cell(row, "sqnr_db", ".1f") for row in shown)])
    return markdown(header, rows)


def latency(tasks: list[Workload], configs: Sequence[str]) -> str:
    """A line for each task and shape."""
    header = ["task", "shape", "float ms", *configs, "peer best", "peer dynamic", "peer fastest", "its configuration"]
    rows = []
    for task in tasks:
        for shape, median in task["float"]["median_ms"].items():
            fastest = fastest_peer_at(task, shape)
            shown = [*_ours(task, configs), best_peer(task), row_of(task, "onnxruntime", PEER_DYNAMIC), fastest]
            name = NONE if fastest is None else fastest["config"]
            rows.append([task["name"], shape, number(median, ".3f"), *(at(row, shape) for row in shown), name])
    return markdown(header, rows)


def _cost(tasks: list[Workload]) -> str:
    size = [*OURS[:4], "peer dynamic"]
    header = ["task", "float kB", *(f"kB: {size[0]}", *size[1:]), *(f"quantize s: {size[0]}", *size[1:])]
    rows = []
    for task in tasks:
        shown = [*_ours(task, OURS[:4]), row_of(task, "onnxruntime", PEER_DYNAMIC)]
        cells = [cell(row, "bytes", ".0f", scale=1e-3) for row in shown]
        cells += [cell(row, "seconds", ".1f") for row in shown]
        rows.append([task["name"], number(task["float"]["bytes"] / 1000, ".0f"), *cells])
    return markdown(header, rows)


def chose(row: Row | None) -> str:
    """The preset that ``auto`` settled on."""
    if row is None:
        return NONE
    return FAILS if row["error"] is not None else str(row["report"]["preset"])


def _chosen(tasks: list[Workload]) -> str:
    lines = []
    for task in tasks:
        row = row_of(task, "onnxq", "auto")
        shapes = [f"{shape}: {at(row, shape)}" for shape in task["float"]["median_ms"]]
        lines.append([task["name"], chose(row), ", ".join(shapes)])
    return markdown(["task", "form", "latency"], lines)


def _notes(tasks: list[Workload]) -> list[str]:
    """What onnxq said of fusions that were not used."""
    lines = [
        f"- {task['name']}, {row['config']}: {warning}"
        for task in tasks
        for row in task["rows"]
        if row["by"] == "onnxq" and row["error"] is None
        for warning in row["report"]["warnings"]
        if warning.startswith("--fuse")
    ]
    return ["## Fusions that were not used", "\n".join(lines)] if lines else []


def _peers(tasks: list[Workload]) -> str:
    header = ["task", "configuration", "metric", "SQNR dB", "latency by shape", "kB", "quantize s", "peak MB"]
    rows = []
    for task in tasks:
        for row in task["rows"]:
            if row["by"] != "onnxruntime":
                continue
            shapes = " / ".join(at(row, shape) for shape in task["float"]["median_ms"])
            figures = [cell(row, "metric", ".4f"), cell(row, "sqnr_db", ".1f"), shapes]
            figures += [cell(row, "bytes", ".0f", scale=1e-3), cell(row, "seconds", ".1f")]
            rows.append([task["name"], row["config"], *figures, cell(row, "peak_bytes", ".0f", scale=1e-6)])
    return markdown(header, rows) if rows else ""
