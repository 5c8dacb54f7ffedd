"""Tables of `benchmarks.weight_only`."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from benchmarks.tables import Row, Workload, cell, markdown, number

PAIRS = {
    ("w4 rtn", "4 bits rtn symmetric"): "4 bits, blocks of 32, symmetric",
    ("w4 rtn affine", "4 bits rtn"): "4 bits, blocks of 32, affine",
    ("w8 rtn", "8 bits rtn symmetric"): "8 bits, blocks of 128, symmetric",
    ("w2 rtn", "2 bits rtn"): "2 bits, blocks of 32, affine",
}
"""Rows of onnxq and onnxruntime in the same form, and its name."""
COSTS = {("w4 gptq", "4 bits gptq"): "GPTQ", ("w4 awq", "4 bits awq"): "AWQ"}
"""Rows of onnxq and onnx-neural-compressor by the same method."""


def render(results: dict[str, Any]) -> str:
    """All tables of a run; ``results`` as for `tables.render`, its rows those of `benchmarks.weight_only`."""
    workloads: list[Workload] = results["workloads"]
    parts = tables.head(results, "Weights alone: onnxq, onnxruntime and onnx-neural-compressor")
    for workload in workloads:
        parts += [f"## {workload['name']}", _about(workload), _task(workload)]
    pairs, costs = _pairs(workloads), _costs(workloads)
    if pairs:
        parts += ["## The same form: latency of onnxruntime's model ÷ onnxq's, above 1 is faster", pairs]
    if costs:
        parts += ["## The same method: processor seconds", costs]
    return tables.page([*parts, *tables.failures(workloads)])


def _about(workload: Workload) -> str:
    float_model = workload["float"]
    metric = "" if workload["metric"] is None else f"{workload['metric']} {number(float_model['metric'], '.4f')}, "
    times = ", ".join(f"{number(ms, '.3f')} at M = {size}" for size, ms in float_model["median_ms"].items())
    size = number(float_model["bytes"] / 1000, ".0f")
    return f"Float: {metric}{size} kB, ms: {times}. {workload['elements']} weights, {workload['samples']} samples."


def _task(workload: Workload) -> str:
    metric = workload["metric"]
    rows: list[Row] = workload["rows"]
    is_exact = any("exact_metric" in row for row in rows)
    has_divergence = any("divergence" in row for row in rows)
    columns: list[tuple[str, str, str, str, float]] = []
    if metric is not None:
        columns.append((metric, "metric", ".4f", "", 1.0))
    if is_exact:
        columns.append(("at level 0", "exact_metric", ".4f", "", 1.0))
    if has_divergence:
        columns.append(("KL nats", "divergence", ".5f", "", 1.0))
    columns += [
        ("SQNR dB", "sqnr_db", ".1f", "", 1.0),
        ("kB", "bytes", ".0f", "", 1e-3),
        ("bits", "bits", ".2f", "", 1.0),
    ]
    last = [("quantize s", "processor_seconds", ".1f", "", 1.0), ("peak MB", "peak_bytes", ".0f", "", 1e-6)]
    sizes = list(workload["float"]["median_ms"])
    header = ["by", "configuration", *(column[0] for column in columns), *(f"M = {size}" for size in sizes)]
    body = []
    for row in rows:
        latency = [cell({**row, "ratio": ratio(row, size)}, "ratio", ".2f", "x") for size in sizes]
        cells = [cell(row, *column[1:]) for column in (*columns, *last)]
        body.append([row["by"], row["config"], *cells[: len(columns)], *latency, *cells[len(columns) :]])
    return markdown([*header, *(column[0] for column in last)], body)


def ratio(row: Row | None, size: str) -> float | None:
    """Time of the float model over that of the row, or None where it was not measured."""
    found = None if row is None else row.get("latency", {}).get(size)
    return None if found is None else float(found["ratio"])


def _pairs(workloads: list[Workload]) -> str:
    body = []
    sizes = list(workloads[0]["float"]["median_ms"]) if workloads else []
    for workload in workloads:
        for (ours, theirs), form in PAIRS.items():
            both = [tables.row_of(workload, "onnxq", ours), tables.row_of(workload, "onnxruntime", theirs)]
            ratios = [(ratio(both[0], size), ratio(both[1], size)) for size in sizes]
            if any(a is not None and b is not None for a, b in ratios):
                cells = [number(a / b if a is not None and b is not None else None, ".2f", "x") for a, b in ratios]
                body.append([workload["name"], form, *cells])
    return markdown(["task", "form", *(f"M = {size}" for size in sizes)], body) if body else ""


def _costs(workloads: list[Workload]) -> str:
    body = []
    for workload in workloads:
        for (ours, theirs), method in COSTS.items():
            both = [tables.row_of(workload, "onnxq", ours), tables.row_of(workload, "neural-compressor", theirs)]
            seconds = [None if row is None else row.get("processor_seconds") for row in both]
            if None not in both:
                times = seconds[1] / seconds[0] if seconds[0] and seconds[1] else None
                cells = [cell(row, "processor_seconds", ".1f") for row in both]
                body.append([workload["name"], method, *cells, number(times, ".1f", "x")])
    header = ["task", "method", "onnxq", "neural-compressor", "times as long"]
    return markdown(header, body) if body else ""
