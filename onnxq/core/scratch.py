"""Temporary folders, which the next run removes where a killed one left them.

A process holds a lock on each of its folders while it lives, so that those of the dead can be told from all others.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""The module of file locks; Windows has none, and nothing is swept there."""

_NAME = re.compile(r"onnxq-[0-9a-f]{16}\.tmp")


@dataclass(frozen=True)
class Scratch:
    """A temporary folder.

    Attributes:
        path: where it is.
        descriptor: the folder, opened and locked; None where there are no locks.
    """

    path: Path
    descriptor: int | None

    @classmethod
    def make(cls, beside: Path | None = None) -> Scratch:
        """Make one that stays until it is removed; the first of a process removes those of dead processes.

        Args:
            beside: the folder to make it in; None takes the system's for temporary files.

        Raises:
            OSError: there is no room, or no right to write.
        """
        place = Path(tempfile.gettempdir()) if beside is None else beside
        sweep_once(place)
        while True:
            path = place / f"onnxq-{secrets.token_hex(8)}.tmp"
            path.mkdir(mode=0o700)
            if fcntl is None:
                return cls(path, None)
            with contextlib.suppress(FileNotFoundError):  # another process took it for that of a dead one
                descriptor = os.open(path, os.O_RDONLY)
                with contextlib.suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if path.exists():
                    return cls(path, descriptor)
                os.close(descriptor)

    def remove(self) -> None:
        """Remove it with all that it holds."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.descriptor is not None:
            os.close(self.descriptor)


@contextlib.contextmanager
def folder(beside: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the length of a ``with``; ``beside`` as for `Scratch.make`."""
    made = Scratch.make(beside)
    try:
        yield made.path
    finally:
        made.remove()


@cache
def sweep_once(place: Path) -> None:
    """`sweep`, once in a process."""
    sweep(place)


def sweep(place: Path) -> None:
    """Remove temporary folders of this user's dead processes, and nothing else."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unheld(Path(entry.path))


def _remove_unheld(path: Path) -> None:
    if path.stat().st_uid != os.getuid():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
