"""Results of `benchmarks.learned` as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import NONE, Row, Workload, cell, failures, head, markdown, number, page


def render(results: dict[str, Any]) -> str:
    """All tables of a run.

    Args:
        results: ``machine`` (facts by name), ``settings``, ``left_out`` (lines) and ``workloads``, each with ``name``,
            ``metric``, ``float``, ``loses`` and ``rows``.
    """
    tasks: list[Workload] = results["workloads"]
    few = [task for task in tasks if any(_is_few(row) for row in task["rows"])]
    losing = [task for task in tasks if task["loses"]]
    unharmed = [task["name"] for task in tasks if not task["loses"]]
    parts = [*head(results, "What learning wins back")]
    if losing:
        parts += ["## 8 bits, where they cost more than 0.5 % of the metric or 3 dB against weights alone"]
        parts += [_table([(task, row) for task in losing for row in task["rows"] if not _is_few(row)])]
    if unharmed:
        parts += [f"Not shown, since w8a8 costs them less: {', '.join(unharmed)}."]
    if few:
        parts += ["## Fewer bits, every layer on integers"]
        parts += [_table([(task, row) for task in few for row in task["rows"] if _is_few(row)])]
    return page([*parts, *failures(tasks)])


def _is_few(row: Row) -> bool:
    return bool(row["config"].startswith("W"))


def _table(rows: list[tuple[Workload, Row]]) -> str:
    header = ["model", "metric", "float", "form", "its metric", "SQNR dB", "computing s", "peak MB"]
    lines, last = [], None
    for task, row in rows:
        name = NONE if task["metric"] is None else task["metric"]
        first = [task["name"], name if task["higher_is_better"] else f"{name} (lower)"]
        first += [number(task["float"]["metric"], ".4f")]
        form = row["config"] if row["by"] == "onnxq" else f"{row['by']}: {row['config']}"
        figures = [cell(row, "metric", ".4f"), cell(row, "sqnr_db", ".1f"), cell(row, "processor_seconds", ".0f")]
        lines.append(
            [*(first if task is not last else [""] * 3), form, *figures, cell(row, "peak_bytes", ".0f", scale=1e-6)]
        )
        last = task
    return markdown(header, lines)
