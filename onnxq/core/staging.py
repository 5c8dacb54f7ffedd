"""A folder that appears whole or not at all: filled beside its place, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from onnxq.core.atomic import sync_folder
from onnxq.core.scratch import Scratch, sweep
from onnxq.errors import OnnxqError

_FULL = (errno.ENOSPC, errno.EDQUOT)


_OTHERWISE = "another folder, or replace it with --force"


def check_folder(output: Path, folder: Path | None, *, force: bool = False, otherwise: str = _OTHERWISE) -> None:
    """Find out before the work starts whether a folder can be written there.

    Args:
        output: the folder to write.
        folder: the one that is read; None where none is.
        force: one that has something in it may be replaced.
        otherwise: what to name where it may not.

    Raises:
        OnnxqError: it is the input, in it or around it, a file, has something in it, or has no folder to stand in.
    """
    target = Path(os.path.realpath(output))
    if folder is not None:
        source = Path(os.path.realpath(folder))
        if target == source:
            raise OnnxqError(f"{output}: is the input, which is never changed; name another folder with -o")
        if source in target.parents or target in source.parents:
            raise OnnxqError(
                f"{output}: is {'in' if source in target.parents else 'around'} the input; name another folder"
            )
    if target.exists() and not target.is_dir():
        raise OnnxqError(f"{output}: is a file, and the result is a folder; name another output")
    if not target.parent.is_dir():
        raise OnnxqError(f"{output}: the folder {target.parent} does not exist; create it or choose another output")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise OnnxqError(f"{output}: exists and is not empty; name {otherwise}")


@contextlib.contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its place at the end of the ``with``, if that ends well.

    A kill at any moment leaves ``output`` absent or complete; what it leaves beside is removed by the next run.

    Raises:
        OnnxqError: the disk is full, or there is no right to write; what is said of a file in it names its place in
            ``output``, here and for errors of what fills it.
    """
    target = Path(os.path.realpath(output))
    sweep(target.parent)
    try:
        made = Scratch.make(target.parent)
    except OSError as error:
        raise OnnxqError(_unwritten(output, error)) from error
    try:
        yield made.path
        _sync(made.path)
        made.path.chmod(0o777 & ~_umask())
        _place(made.path, target)
    except OnnxqError as error:
        text = str(error)
        if str(made.path) not in text:
            raise
        raise type(error)(text.replace(str(made.path), str(output))) from error
    except OSError as error:
        raise OnnxqError(_unwritten(output, error)) from error
    finally:
        made.remove()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its rights; folders on the way are made.

    Raises:
        OnnxqError: it cannot be read or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    except OSError as error:
        raise OnnxqError(_unwritten(error.filename or target, error)) from error


def _place(path: Path, target: Path) -> None:
    """Rename; what stood there goes first, under a temporary name that the next run would remove."""
    if target.is_dir() and any(target.iterdir()):
        old = Scratch.make(target.parent)
        try:
            target.replace(old.path / "old")
            try:
                path.rename(target)
            except OSError:
                (old.path / "old").replace(target)
                raise
        finally:
            old.remove()
    else:
        if target.is_dir():
            target.rmdir()  # Windows renames onto no folder, not even an empty one
        path.rename(target)
    sync_folder(target.parent)


def _sync(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            with path.open("rb+" if os.access(path, os.W_OK) else "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritten(place: object, error: OSError) -> str:
    remedy = "free space there" if error.errno in _FULL else "choose another folder"
    return f"{place}: cannot be written: {error.strerror or error}; nothing was changed; {remedy}"
