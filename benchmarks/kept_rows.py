"""Tables that stay from run to run: a row a model, written after each, so that what was measured is not lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.tables import finite
from benchmarks.workloads import DEFAULT_ZOO, Workload

Row = dict[str, Any]


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which tasks are measured."""
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
    parser.add_argument("--list", action="store_true", help="show the tasks and stop")


def chosen(found: Sequence[Workload], options: argparse.Namespace) -> list[Workload] | int:
    """The tasks that the options of `add_choice` ask for; a status where the command ends here."""
    names = [workload.name for workload in found]
    if options.list:
        print("\n".join(names))
        return 0
    if unknown := sorted(set(options.task or ()) - set(names)):
        print(f"no task {unknown[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    return [workload for workload in found if not options.task or workload.name in options.task]


def measured(
    tasks: Sequence[Workload],
    measure: Callable[[Workload, Path], Row],
    path: Path,
    key: str,
    render: Callable[[dict[str, Any]], str],
) -> Iterator[Row]:
    """Measure one task after the other, and write the table after each.

    Args:
        tasks: what to measure.
        measure: makes the row of one, with its ``model`` and ``key``; gets an empty folder that is removed after it.
        path: file of the rows, as JSON; the page lies beside it. Rows of other tasks in it stay.
        key: what tells rows of one model apart.
        render: makes the page.

    Yields:
        Each row once it is written.
    """
    for workload in tasks:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            row = measure(workload, Path(folder))
        keep(row, path, key, render)
        yield row


def keep(row: Row, path: Path, key: str, render: Callable[[dict[str, Any]], str]) -> None:
    """Put a row into the table in the place of the one with the same ``model`` and ``key``; arguments as `measured`."""
    rows = rows_in(path)["rows"]
    same = [r for r in rows if (r[key], r["model"]) != (row[key], row["model"])]
    kept = {"machine": machine.facts(), "rows": sorted([*same, row], key=lambda r: (r[key], r["model"]))}
    path.write_text(json.dumps(finite(kept), indent=1) + "\n", "utf8")
    path.with_suffix(".md").write_text(render(kept), "utf8")


def rows_in(path: Path) -> dict[str, Any]:
    """The table of earlier runs: ``machine`` and ``rows``, with the numbers that `finite` wrote as text."""
    if not path.is_file():
        return {"machine": {}, "rows": []}
    kept: dict[str, Any] = _with_infinities(json.loads(path.read_text("utf8")))
    return kept


def _with_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinities(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
