"""Files that appear whole or not at all: written beside their place, flushed to the disk, renamed.

A process that is killed leaves its temporary file. It holds a lock on it while it lives, so the next write into the
same folder knows those of the dead and removes them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import OnnxqError

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""The module of file locks; Windows has none."""

_PREFIX, _SUFFIX = ".onnxq-", ".tmp"

_OLD = 3600.0
"""Seconds after which a temporary file is nobody's where there are no locks."""

Content: TypeAlias = bytes | Callable[[BinaryIO], object]
"""What to write, or what writes it."""


@dataclass(frozen=True)
class Staged:
    """A file that is complete on the disk under a temporary name.

    Attributes:
        path: that name.
        file: the open file, whose lock lasts until it is closed.
    """

    path: Path
    file: BinaryIO

    def place(self, target: Path) -> None:
        """Give it its name, in place of the file that has it now."""
        if fcntl is None:
            self.file.close()  # Windows renames no open file
        self.path.replace(target)


def write(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old one or the new one.

    A link stays a link: the file that it leads to is replaced. Rights are those of the old file.

    Raises:
        OSError: it cannot be written; nothing was changed and no temporary file stays.
    """
    target = Path(os.path.realpath(path))
    with staged(target, content) as new:
        new.place(target)
    sync_folder(target.parent)


@contextlib.contextmanager
def staged(target: Path, content: Content) -> Iterator[Staged]:
    """A complete file beside ``target``; gone afterwards unless it was given its place."""
    sweep(target.parent)
    path, file = _new(target.parent)
    try:
        with file:
            if target.exists():
                with contextlib.suppress(OSError):
                    path.chmod(target.stat().st_mode & 0o7777)
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            yield Staged(path, file)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Keep a piece of work that took long, as one file of a folder, which is made where it is missing.

    Raises:
        OnnxqError: it cannot be written.
    """
    stored: dict[str, Any] = dict(arrays)
    try:
        path.parent.mkdir(exist_ok=True)
        write(path, lambda file: np.savez(file, **stored))
    except OSError as error:
        raise OnnxqError(
            f"{path.parent}: finished layers cannot be kept there: {error.strerror or error}; free space there, or "
            "choose another output"
        ) from error


def read_arrays(path: Path) -> dict[str, Array] | None:
    """What `write_arrays` wrote; None where there is nothing, or nothing usable."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _new(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        file = path.open("xb")
        if fcntl is None:
            return path, file
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # no other process has taken it for that of a dead one before it was locked
            return path, file
        file.close()


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that are dead."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            if fcntl is not None or time.time() - path.stat().st_mtime > _OLD:
                remove_unheld(path)


def remove_unheld(path: Path) -> None:
    """Remove a file unless a living process is writing it."""
    if fcntl is None:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        return
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames last; some systems cannot open a folder, and there is nothing to do about it there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
