"""``python -m benchmarks.halves``: every model of the zoo, of packages and of ``models/`` in 16-bit floats.

For each model: the size, the error of its outputs on held-out samples, and how many nodes stay float32, with the
reasons that most of them have. Results are kept by preset and model, so that a run may be made in parts.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

import onnxq
from benchmarks import wild, workloads
from benchmarks.command import RESULTS
from benchmarks.feeds import Feed
from benchmarks.kept_rows import Row, add_choice, chosen, measured, rows_in
from benchmarks.tables import NONE, markdown, number
from benchmarks.workloads import Workload
from onnxq.errors import OnnxqError

_TYPES = {"fp16": "float16", "bf16": "bfloat16"}
PRESETS = tuple(_TYPES)
ENOUGH_DB = 50.0
MOST_SAMPLES, NAMED = 24, 3


def find(zoo: Path) -> list[Workload]:
    """All models, those that come without data too: one synthetic sample is run of these."""
    found = [*workloads.find(zoo)[0], *wild.find(zoo)[0]]
    return found + [_without_data(path) for path in sorted((zoo / "run_only").glob("*.onnx"))]


def _without_data(path: Path) -> Workload:
    return Workload(path.stem, "run only", lambda folder: path, list)


def measure(workload: Workload, preset: str, folder: Path) -> dict[str, Any]:
    """Everything about one model in one type; what is refused is a row with the reason."""
    model, output = workload.model(folder), folder / f"{preset}.onnx"
    feeds: list[Feed] = workload.feeds()
    feeds = feeds[:: max(len(feeds) // MOST_SAMPLES, 1)][:MOST_SAMPLES]
    nodes = len(onnx.load(model, load_external_data=False).graph.node)
    row: dict[str, Any] = {"model": workload.name, "preset": preset, "nodes": nodes, "error": None}
    try:
        result = onnxq.quantize(model, output, preset=preset, calibration=feeds or None, benchmark=False)
    except OnnxqError as error:
        return {**row, "error": str(error)}
    reasons = Counter(_kind(reason) for _, _, reason in result.kept_float)
    return {
        **row,
        "sqnr_db": result.sqnr_db,
        "times_smaller": result.size_before / result.size_after,
        "kept": len(result.kept_float),
        "reasons": dict(reasons.most_common()),
        "warnings": result.warnings,
    }


def _kind(reason: str) -> str:
    """A reason without the name of the value that it speaks of."""
    parts = reason.split("'")
    return "'…'".join(parts[::2]) if len(parts) > 1 else reason


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is refused, or below 50 dB although neither a node that stayed float32 nor a warning says why."""
    found = [f"{row['model']} {row['preset']}: {row['error']}" for row in rows if row["error"]]
    for row in rows:
        low = row["error"] is None and row["sqnr_db"] is not None and row["sqnr_db"] < ENOUGH_DB
        said = row["error"] is None and any(line.startswith(f"{_TYPES[row['preset']]}:") for line in row["warnings"])
        if low and not row["kept"] and not said:
            found.append(f"{row['model']} {row['preset']}: {row['sqnr_db']:.1f} dB, and nothing says why")
    return found


def render(results: dict[str, Any]) -> str:
    """A table a preset."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = ["# Models in 16-bit floats", facts]
    for preset in PRESETS:
        rows = [row for row in results["rows"] if row["preset"] == preset]
        if rows:
            parts += [f"## {preset}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if row["error"]:
            lines.append([row["model"], str(row["nodes"]), NONE, NONE, NONE, row["error"]])
            continue
        why = "; ".join(f"{count} {reason}" for reason, count in list(row["reasons"].items())[:NAMED])
        smaller = number(row["times_smaller"], ".2f", "x")
        lines.append(
            [row["model"], str(row["nodes"]), number(row["sqnr_db"], ".1f", " dB"), smaller, str(row["kept"]), why]
        )
    return markdown(["model", "nodes", "SQNR", "smaller", "float32", "why, most of them"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 where a model fails, 2 where a task is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.halves", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="fp16")
    add_choice(parser)
    options = parser.parse_args(arguments)
    tasks = chosen(find(options.zoo.resolve()), options)
    if isinstance(tasks, int):
        return tasks
    path = RESULTS / "halves.json"

    def with_preset(workload: Workload, folder: Path) -> Row:
        return measure(workload, options.preset, folder)

    failed: list[str] = []
    for row in measured(tasks, with_preset, path, "preset", render):
        failed += failures([row])
    print(render(rows_in(path)))
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
