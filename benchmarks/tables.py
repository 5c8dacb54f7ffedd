"""Results as Markdown tables, and both forms as files.

The form of the results is what `benchmarks.static` makes: see `render`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Workload = dict[str, Any]

NONE = "–"
FAILS = "fails"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns as wide as their widest cell; all but the first are aligned right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A number as a cell; a dash where there is none."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "exact" if value > 0 else "not finite"
    return f"{value:{form}}{unit}"


def row_of(workload: Workload, by: str, config: str) -> Row | None:
    """The row of that tool and configuration."""
    return next((row for row in workload["rows"] if row["by"] == by and row["config"] == config), None)


def best_peer(workload: Workload) -> Row | None:
    """The peer's working row with the best metric, or SQNR where there is no metric; the faster one of equals."""
    sign = 1 if workload["higher_is_better"] else -1

    def rank(row: Row) -> tuple[float, float]:
        quality = row["sqnr_db"] if workload["metric"] is None else sign * row["metric"]
        return (-math.inf if math.isnan(quality) else quality), row["ratio"]

    working = [row for row in workload["rows"] if row["by"] == "onnxruntime" and row["error"] is None]
    return max(working, key=rank, default=None)


def fastest_peer(workload: Workload) -> Row | None:
    """The peer's fastest working row with uint8 activations and int8 weights."""
    rows = [row for row in workload["rows"] if row["by"] == "onnxruntime" and row["config"].startswith("u8s8")]
    return max((row for row in rows if row["error"] is None), key=lambda row: row["ratio"], default=None)


def cell(row: Row | None, key: str, form: str = ".2f", unit: str = "", scale: float = 1.0) -> str:
    """One figure of a row: a dash where there is no such row or figure, ``fails`` where the row has an error."""
    if row is None:
        return NONE
    if row["error"] is not None:
        return FAILS
    value = row.get(key)
    return number(None if value is None else value * scale, form, unit)


def render(results: dict[str, Any]) -> str:
    """All tables of a run.

    Args:
        results: ``machine`` (facts by name), ``settings``, ``left_out`` (lines) and ``workloads``, each with ``name``,
            ``metric``, ``higher_is_better``, ``float``, ``rows``, ``calibration`` and ``memory``.
    """
    workloads: list[Workload] = results["workloads"]
    parts = [
        *head(results, "Static quantization: onnxq and onnxruntime.quantization"),
        "## Quality",
        _quality(workloads),
        "## Latency: float ÷ quantized, one thread, above 1 is faster",
        _latency(workloads),
        "## Size, time and memory",
        _cost(workloads),
    ]
    peers = _peers(workloads)
    if peers:
        parts += ["## Every configuration of onnxruntime.quantization", peers]
    return page([*parts, *failures(workloads)])


def head(results: dict[str, Any], title: str) -> list[str]:
    """Title, machine, settings, and what is left out."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    settings = ", ".join(f"{key} {value}" for key, value in results["settings"].items())
    return [
        f"# {title}",
        f"Machine: {machine}.",
        f"Settings: {settings}. What each figure means: benchmarks/README.md.",
        *(f"- {line}" for line in results["left_out"]),
    ]


def page(parts: Sequence[str]) -> str:
    """The parts of a page with an empty line between them."""
    return "\n\n".join(parts) + "\n"


def failures(workloads: list[Workload]) -> list[str]:
    """A heading and the lines of `_failures`; nothing where nothing failed."""
    errors = _failures(workloads)
    return ["## Failures", "\n".join(errors)] if errors else []


def _failures(workloads: list[Workload]) -> list[str]:
    """A line for each different error of a workload, with everything that ended in it."""
    lines = []
    for workload in workloads:
        named = [(f"{row['by']} {row['config']}", row["error"]) for row in workload["rows"]]
        named += [("onnxq calibration", workload.get("calibration", {}).get("error"))]
        named += [("memory", workload.get("memory", {}).get("error"))]
        by_error: dict[str, list[str]] = {}
        for name, error in named:
            if error is not None:
                by_error.setdefault(error, []).append(name)
        lines += [f"- {workload['name']}: {', '.join(names)}: {error}" for error, names in by_error.items()]
    return lines


def _quality(workloads: list[Workload]) -> str:
    header = ["task", "metric", "float", "onnxq qdq", "onnxq qoperator", "peer best", "its configuration"]
    header += ["SQNR dB: qdq", "qoperator", "peer best"]
    rows = []
    for workload in workloads:
        ours = [row_of(workload, "onnxq", config) for config in ("qdq", "qoperator")]
        best = best_peer(workload)
        name = NONE if workload["metric"] is None else workload["metric"]
        metric = name if workload["higher_is_better"] else f"{name} (lower)"
        figures = [cell(row, "metric", ".4f") for row in (*ours, best)]
        sqnr = [cell(row, "sqnr_db", ".1f") for row in (*ours, best)]
        config = NONE if best is None else best["config"]
        rows.append([workload["name"], metric, number(workload["float"]["metric"], ".4f"), *figures, config, *sqnr])
    return markdown(header, rows)


def _latency(workloads: list[Workload]) -> str:
    header = ["task", "float ms", "onnxq qdq", "onnxq qoperator", "peer best", "peer fastest u8s8", "its configuration"]
    header += ["peer defaults"]
    rows = []
    for workload in workloads:
        fastest = fastest_peer(workload)
        shown = [row_of(workload, "onnxq", "qdq"), row_of(workload, "onnxq", "qoperator"), best_peer(workload), fastest]
        ratios = [cell(row, "ratio", ".2f", "x") for row in shown]
        defaults = cell(row_of(workload, "onnxruntime", "s8s8 qdq (defaults)"), "ratio", ".2f", "x")
        config = NONE if fastest is None else fastest["config"]
        rows.append([workload["name"], number(workload["float"]["median_ms"], ".3f"), *ratios, config, defaults])
    return markdown(header, rows)


def _cost(workloads: list[Workload]) -> str:
    header = ["task", "float kB", "onnxq kB", "peer kB", "quantize s: onnxq", "peer MinMax", "calibration x: onnxq"]
    header += ["peer MinMax", "peer Entropy"]
    header += ["MB at 32: onnxq", "peer Entropy", "MB at 128: onnxq", "peer Entropy"]
    rows = []
    for workload in workloads:
        ours, peer = row_of(workload, "onnxq", "qdq"), row_of(workload, "onnxruntime", "u8s8 qdq")
        if peer is None or peer["error"] is not None:
            peer = row_of(workload, "onnxruntime", "u8s8 qdq per-tensor")
        entropy = row_of(workload, "onnxruntime", "u8s8 qdq entropy")
        peaks = workload["memory"].get("peak_bytes", {})
        memory = [peaks.get(by, {}).get(count) for count in ("32", "128") for by in ("onnxq", "peer")]
        rows.append(
            [
                workload["name"],
                number(workload["float"]["bytes"] / 1000, ".0f"),
                *(cell(row, "bytes", ".0f", scale=1e-3) for row in (ours, peer)),
                *(cell(row, "seconds", ".1f") for row in (ours, peer)),
                number(workload["calibration"].get("ratio"), ".2f"),
                *(cell(row, "calibration_ratio", ".2f") for row in (peer, entropy)),
                *(number(None if peak is None else peak / 1e6, ".0f") for peak in memory),
            ]
        )
    return markdown(header, rows)


def _peers(workloads: list[Workload]) -> str:
    header = ["task", "configuration", "metric", "SQNR dB", "latency", "kB", "quantize s", "calibration x", "peak MB"]
    rows = [
        [
            workload["name"],
            row["config"],
            cell(row, "metric", ".4f"),
            cell(row, "sqnr_db", ".1f"),
            cell(row, "ratio", ".2f", "x"),
            cell(row, "bytes", ".0f", scale=1e-3),
            cell(row, "seconds", ".1f"),
            cell(row, "calibration_ratio", ".2f"),
            cell(row, "peak_bytes", ".0f", scale=1e-6),
        ]
        for workload in workloads
        for row in workload["rows"]
        if row["by"] == "onnxruntime"
    ]
    return markdown(header, rows) if rows else ""


def write(results: dict[str, Any], folder: Path, stem: str, render: Callable[[dict[str, Any]], str] = render) -> str:
    """Write ``<stem>.json`` and ``<stem>.md`` into a folder, made where it is missing; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = render(results)
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    (folder / f"{stem}.json").write_text(json.dumps(finite(results), indent=1) + "\n", encoding="utf-8")
    return text


def without_paths(value: Any, folders: Sequence[Path]) -> Any:
    """The same with the paths of these folders cut out of every text, such as error messages."""
    if isinstance(value, dict):
        return {key: without_paths(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, folders) for item in value]
    if isinstance(value, str):
        for path in sorted(map(str, folders), key=len, reverse=True):
            value = value.replace(f"{path}/", "").replace(path, "")
    return value


def finite(value: Any) -> Any:
    """The same with non-finite numbers as strings: JSON has none."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
