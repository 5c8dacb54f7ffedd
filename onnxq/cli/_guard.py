"""From an exception to one line on standard error, a JSON object where one was asked for, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from onnxq.cli._json import dumps
from onnxq.cli._streams import say
from onnxq.errors import OnnxqError

BROKEN_PIPE = 141
"""Exit code when the reader of standard output has gone: what a shell shows for SIGPIPE."""


class Interrupted(Exception):
    """Ctrl-C (130) or SIGTERM (143), as an ordinary exception."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: the work unwinds as it does on Ctrl-C, so that no temporary file stays."""


class OutputClosed(Exception):
    """The reader of standard output has gone, as after ``| head``."""


@dataclass
class State:
    """What the guard must know of the run.

    Attributes:
        json: standard output holds one JSON object and nothing else.
        verbose: details and tracebacks are wanted.
        written: the file that the command has finished, if any.
        resumable: the file that holds what an interrupted command has done so far, if it exists.
        place: the program and its command, as the user wrote them.
    """

    json: bool = False
    verbose: bool = False
    written: Path | None = None
    resumable: Path | None = None
    place: str = "onnxq"


@dataclass(frozen=True)
class Failure:
    """A failure as the user meets it.

    Attributes:
        kind: name of the exception, for programs.
        line: the line for standard error; empty for silence.
        message: the line without its prefix.
        exit_code: exit status of the program.
        details: traceback, where it is wanted; shown above the line.
    """

    kind: str
    line: str
    message: str
    exit_code: int
    details: str = ""


def debugging() -> bool:
    """Whether ONNXQ_DEBUG asks for tracebacks and for the warnings of libraries."""
    return os.environ.get("ONNXQ_DEBUG", "") not in ("", "0")


def failure(error: Exception, state: State) -> Failure:
    """Say what an exception means to the user."""
    if isinstance(error, OnnxqError):
        details = _traceback(error) if debugging() else ""
        return _error(error, _one_line(str(error)) or "failed", error.exit_code, details)
    if isinstance(error, (Interrupted, click.Abort)):
        code = error.exit_code if isinstance(error, Interrupted) else 130
        word = "terminated" if code != 130 else "interrupted"
        line = f"{word}: {_left_behind(state)}"
        return Failure("Interrupted", line, line, code)
    if isinstance(error, click.ClickException):
        return _error(error, _usage(error, state), error.exit_code)
    if isinstance(error, (OutputClosed, BrokenPipeError)):
        return Failure("OutputClosed", "", "standard output was closed", BROKEN_PIPE)
    if isinstance(error, MemoryError):
        details = _traceback(error) if state.verbose else ""
        remedy = "use fewer or smaller calibration samples at a time, or a machine with more memory"
        return _error(error, f"out of memory: {remedy}", 1, details)
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
        details = _traceback(error) if state.verbose else ""
        return _error(error, _system(error), 1, details)
    what = _shortened(_one_line(f"internal error: {type(error).__name__}: {error}"))
    if state.verbose:
        return _error(error, what, 1, _traceback(error))
    return _error(error, f"{what}; run with --verbose for the traceback", 1)


def report(fail: Failure, state: State) -> int:
    """Print a failure and return the exit code."""
    if fail.exit_code == BROKEN_PIPE:
        _silence_stdout()
        return fail.exit_code
    with suppress(OSError):  # nowhere is left to complain to
        if fail.details:
            say(fail.details.rstrip(), error=True)
        say(fail.line, error=True)
    if state.json:
        body = {"error": {"type": fail.kind, "message": fail.message, "exit_code": fail.exit_code}}
        try:
            say(dumps(body))
        except OSError:  # standard output is what failed; the line on standard error has said so
            _silence_stdout()
    return fail.exit_code


_LONGEST = 300
"""Characters of a defect's message that are shown; some print whole graphs."""

_USER_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.ENOTDIR,
        errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ELOOP, errno.EEXIST,
    }
)  # fmt: skip
"""System errors whose cause lies outside the program: the place, not a defect."""


def _left_behind(state: State) -> str:
    """Say what an interrupted command has written."""
    if state.written:
        return f"{state.written} was already written"
    if state.resumable and state.resumable.exists():
        return f"{state.resumable} holds what was done; run again with --resume to go on from there"
    return "nothing was written"


def _error(error: Exception, message: str, exit_code: int, details: str = "") -> Failure:
    kind = "UsageError" if isinstance(error, click.UsageError) else type(error).__name__
    return Failure(kind, f"error: {message}", message, exit_code, details)


def _usage(error: click.ClickException, state: State) -> str:
    """Click's message as one line, with the place where help is to be had."""
    message = _one_line(error.format_message()).rstrip(".")
    message = message[:1].lower() + message[1:]
    if not isinstance(error, click.UsageError):
        return message
    return f"{message}; see '{error.ctx.command_path if error.ctx else state.place} --help'"


def _system(error: OSError) -> str:
    reason = error.strerror or os.strerror(error.errno or 0)
    return _one_line(f"{error.filename}: {reason}" if error.filename else reason)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _silence_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush stays quiet."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
