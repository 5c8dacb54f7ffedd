"""Text, tables and JSON on standard output; warnings on standard error.

On a terminal tables fit its width and have a little colour (NO_COLOR is respected); piped, they are plain lines that
are never wrapped, so that paths and names stay whole.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from onnxq.cli._json import dumps
from onnxq.cli._streams import say
from onnxq.report.result_tables import Table


def emit_json(result: Mapping[str, Any]) -> None:
    """Print the one JSON object of a run."""
    say(dumps(result))


def show_text(text: str = "") -> None:
    """Print text as it is."""
    say(text.rstrip())


def show_warnings(warnings: Iterable[str]) -> None:
    """Print each warning as one line on standard error."""
    for warning in warnings:
        say(f"warning: {' '.join(str(warning).split())}", error=True)


def end_with(failures: Iterable[str]) -> None:
    """Say which limits were missed and leave with 3; standard output has the result already.

    Raises:
        click.exceptions.Exit: one was missed.
    """
    import click

    lines = list(failures)
    for line in lines:
        say(f"error: {line}", error=True)
    if lines:
        raise click.exceptions.Exit(3)


def show_table(table: Table) -> None:
    """Print a table: on a terminal in its width, else as wide as it needs to be."""
    if sys.stdout is None or not sys.stdout.isatty():
        show_text(table.text())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    lines = box.SIMPLE_HEAD if unicode else box.ASCII
    drawn = RichTable(box=lines, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for index, name in enumerate(table.header):
        drawn.add_column(
            name,
            justify="right" if index in table.right else "left",
            no_wrap=index not in table.long,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(
        file=io.StringIO(), force_terminal=True, markup=False, emoji=False, highlight=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(drawn)
    show_text("\n".join(line.rstrip() for line in capture.get().splitlines()))
    if table.more:
        show_text(table.more)
