"""Processes that do not outlive the one that started them, nor do those that they start themselves.

The parent holds one end of a pipe that is the child's standard input, and the system closes it when the parent ends, by
whatever signal. The child leads a process group of its own, which it ends then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_in_group(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit: float) -> int | None:
    """Run a program that calls `end_with_parent` first, and drop what it prints.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        environment: its variables.
        limit: seconds after which it is ended, with all that it has started.

    Returns:
        Its exit status; None where it took too long.
    """
    silent = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=silent, stderr=silent,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def end_with_parent() -> None:
    """End the process group of this process when the other end of its standard input is closed."""
    watched = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what this process starts must not hold the pipe
    os.close(nothing)

    def watch() -> None:
        while os.read(watched, 1024):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
