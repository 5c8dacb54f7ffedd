"""What surrounds the work of a command: its progress, and a standard output that only the result reaches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from onnxq.cli._progress_lines import progress_lines

Progress = Callable[[str, int, int | None], None]
"""Called with the step, how much of it is done, and how much there is (None where that is unknown)."""

_SECONDS_BETWEEN_DRAWINGS = 0.1


@contextmanager
def working(as_json: bool) -> Iterator[Progress]:
    """Surround the work of a command.

    What the user's own readers print goes to standard error where standard output is for one JSON object. Progress
    goes to standard error: a bar where that is a terminal, else a line now and then.

    Args:
        as_json: standard output is for one JSON object.

    Yields:
        What the work calls to show progress.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    with progress_bar() if on_terminal else progress_lines() as progress:
        if as_json:
            with redirect_stdout(sys.stderr):
                yield progress
        else:
            yield progress


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give the function that draws progress on the terminal.

    Drawing happens inside the calls, never from a thread, so that latency measurements are not disturbed. The bar is
    wiped when the work ends, also when it fails.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, emoji=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task("load", total=None, count="")
        step, drawn = "load", 0.0

        def update(name: str, done: int, total: int | None) -> None:
            nonlocal task, step, drawn
            count = f"{done}/{total}" if total is not None else str(done or "")
            if name != step:
                bar.remove_task(task)  # a total cannot be taken back: a step without one needs a task of its own
                task = bar.add_task(name, total=total, completed=done, count=count)
            else:
                bar.update(task, completed=done, total=total, count=count)
            now = time.monotonic()
            if name != step or done == total or now - drawn >= _SECONDS_BETWEEN_DRAWINGS:
                bar.refresh()
                drawn = now
            step = name

        yield update
