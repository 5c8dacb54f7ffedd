"""Write models: a reader, or a kill at any moment, sees the old model or the new one, never a part or a mixture."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from onnxq.core import atomic
from onnxq.core.mapped import forget
from onnxq.errors import ModelError, OnnxqError
from onnxq.graph.files import io, whole_file
from onnxq.graph.files.cut_files import refuse_cut, refuse_shorter

__all__ = ["check_destination", "copy", "save", "write_text"]

_DIGITS = 16
"""Hexadecimal digits of the weights' SHA-256 in their file's name."""

_AT_ONCE = 64 * 2**20
"""Bytes of weights up to which a file is made in memory."""

_HEADS = 64
"""Bytes that a weight may take beside its numbers and its name."""

_MODEL_STARTS = b"\x08"
"""The first byte of a model: the protobuf key of its IR version."""


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    threshold: int = io.PROTOBUF_LIMIT,
) -> int:
    """Write a model so that a reader sees the old one or the new one, never a part.

    The file is written beside its place under a temporary name, flushed to the disk and renamed. A model of more than
    ``threshold`` bytes keeps its weights in ``<file name>.<hash>.data``, a name that depends on their content: they are
    put in place first and touch nothing that the old model reads; then the model file is switched; then the weights
    that no model reads any more are removed. Whatever ends the call, no temporary file stays; what a killed process
    left is removed by the next call for the same place.

    Args:
        model: what to write; unchanged.
        path: the file to write or replace.
        source: the file that the model was made from, which must not be overwritten.
        threshold: bytes above which weights are stored externally.

    Returns:
        Bytes that were written.

    Raises:
        OnnxqError: the folder is missing or cannot be written, the disk is full, or a file of the input would be
            overwritten.
    """
    target = Path(os.path.realpath(path))
    _check_target(target, path)
    inputs = _inputs(model, source)
    _check_not_input(path, target, inputs)
    with io.detached(model, "0" * len(os.fsencode(_weights_name(target, "0" * _DIGITS)))) as (proto, tensors):
        size = len(io.serialized(proto, path))
    try:
        if tensors and size + sum(tensor.nbytes for tensor in tensors) > threshold:
            beside = _write_external(model, target, path, inputs)
        else:
            weights = sum(tensor.nbytes for tensor in tensors)
            large = weights > _AT_ONCE and size + weights + _HEADS * len(tensors) <= io.PROTOBUF_LIMIT
            write = partial(whole_file.write_whole, model)
            beside = 0
            atomic.write(target, _whole(write if large else io.serialized(io.to_proto(model), path)))
    except OSError as error:
        if error.errno == errno.EFAULT:
            refuse_shorter()
        raise OnnxqError(_os_error(path, error)) from error
    _remove_unread(target, inputs)
    return target.stat().st_size + beside


def copy(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write a model file elsewhere as it is, byte for byte; one with external data gets its weights written anew.

    Raises:
        ModelError: as for `onnxq.graph.files.io.load`.
        OnnxqError: as for `save`.
    """
    model = io.load(source)
    if io.mapped_files(model):
        save(model, path, source=source)
        return
    target = Path(os.path.realpath(path))
    _check_target(target, path)
    inputs = _inputs(model, source)
    _check_not_input(path, target, inputs)
    content = Path(source).read_bytes()
    try:
        atomic.write(target, content)
    except OSError as error:
        raise OnnxqError(_os_error(path, error)) from error
    _remove_unread(target, inputs)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a small file beside models, all or nothing.

    Raises:
        OnnxqError: it cannot be written.
    """
    try:
        atomic.write(path, content.encode())
    except OSError as error:
        raise OnnxqError(_os_error(path, error)) from error


def _whole(content: atomic.Content) -> Callable[[BinaryIO], None]:
    """What writes the content, and refuses it where weights that it was made of were cut meanwhile."""

    def write(file: BinaryIO) -> None:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        refuse_cut()

    return write


def _weights_name(target: Path, digest: str) -> str:
    return f"{target.name}.{digest[:_DIGITS]}.data"


def _as_location(weights: Path) -> str:
    """The name by which the model knows its weights: their file name in UTF-8, whatever the locale.

    Raises:
        OnnxqError: it is not UTF-8.
    """
    try:
        return os.fsencode(weights.name).decode()
    except UnicodeDecodeError:
        raise OnnxqError(
            f"{weights}: the name of a model with weights beside it has to be UTF-8; choose another output"
        ) from None


def _write_external(model: ir.Model, target: Path, path: str | os.PathLike[str], inputs: Iterable[Path]) -> int:
    """Write model and weights; bytes of the weights."""
    digest = hashlib.sha256()

    def write_weights(file: BinaryIO) -> None:
        for tensor in io.large_tensors(model).values():
            content = io.tensor_bytes(tensor)
            digest.update(content)
            file.write(content)
            if isinstance(tensor, ir.Tensor):
                forget(tensor.numpy())
        refuse_cut()

    with atomic.staged(target, write_weights) as weights:
        data_target = target.with_name(_weights_name(target, digest.hexdigest()))
        _check_target(data_target, data_target)
        _check_not_input(data_target, data_target, inputs)
        with io.detached(model, _as_location(data_target)) as (proto, _):
            content = io.serialized(proto, path)
        # The lock on the weights lasts until the model that reads them is in place.
        with atomic.staged(target, content) as new:
            kept = data_target.exists()
            try:
                weights.place(data_target)
                atomic.sync_folder(target.parent)
                new.place(target)
            except BaseException:
                if new.path.exists() and not kept:
                    data_target.unlink(missing_ok=True)
                raise
            atomic.sync_folder(target.parent)
            return data_target.stat().st_size


def _remove_unread(target: Path, inputs: Iterable[Path]) -> None:
    """Remove weights that earlier calls, killed ones too, wrote for this place and that no model there reads."""
    ours = re.compile(re.escape(target.name) + rf"\.[0-9a-f]{{{_DIGITS}}}\.data")
    with contextlib.suppress(OSError):
        files = [file for file in target.parent.iterdir() if file.is_file()]
        old = [file for file in files if ours.fullmatch(file.name) and file.resolve() not in inputs]
        for file in old:
            if not any(_mentions(other, file.name) for other in files if other not in old):
                atomic.remove_unheld(file)


def _mentions(file: Path, name: str) -> bool:
    """Whether a file is a model that may read the file ``name``."""
    try:
        if not 0 < file.stat().st_size <= 2**31:
            return False
        with file.open("rb") as stream:
            if stream.read(1) != _MODEL_STARTS and file.suffix != ".onnx":
                return False
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(os.fsencode(name)) >= 0
    except OSError:
        return True  # what cannot be read may read it


def _check_target(target: Path, path: str | os.PathLike[str]) -> None:
    if target.is_dir():
        raise OnnxqError(f"{path}: is a folder; name a file in it, for example {Path(path) / 'model.onnx'}")
    if target.exists() and not target.is_file():
        raise OnnxqError(f"{path}: is not a regular file; name another output")
    if not target.parent.is_dir():
        raise OnnxqError(f"{path}: the folder {target.parent} does not exist; create it or choose another output")


def _inputs(model: ir.Model, source: str | os.PathLike[str] | None) -> set[Path]:
    own = set() if source is None else {Path(source).resolve()}
    return own | io.mapped_files(model)


def _check_not_input(path: str | os.PathLike[str], target: Path, inputs: Iterable[Path]) -> None:
    for used in inputs:
        if used.exists() and target.exists() and used.samefile(target):
            raise OnnxqError(f"{path}: would overwrite the input {used}, which is never changed; choose another output")


def _os_error(path: str | os.PathLike[str], error: OSError) -> str:
    remedy = "free space there or choose another folder" if error.errno in (28, 122) else "choose another folder"
    return f"{path}: cannot be written: {error.strerror or error}; nothing was changed; {remedy}"


def check_destination(path: str | os.PathLike[str], inputs: Iterable[object] = ()) -> None:
    """Find out before the work starts whether a file can be written there, and replaces nothing that is read.

    Args:
        path: the file to write.
        inputs: what the run reads, paths or not: models, whose weight files count too; files and folders of samples;
            ``module:callable``, whose module counts; recipes; statistics. Whatever is no path is passed over.

    Raises:
        OnnxqError: the folder is missing or not writable, the path is a folder, or it is one of the inputs, also
            through a link or under another spelling.
    """
    target = Path(os.path.realpath(path))
    _check_target(target, path)
    for used in inputs:
        if isinstance(used, str | os.PathLike):
            for file in _read_with(os.fspath(used)):
                if _same(file, target):
                    raise OnnxqError(
                        f"{path}: is an input of this run ({file}), and inputs are never changed; name another output"
                    )
    try:
        with atomic.staged(target, b""):
            pass
    except OSError as error:
        raise OnnxqError(_os_error(path, error)) from error


def _same(file: Path, target: Path) -> bool:
    try:
        return file.exists() and target.exists() and file.samefile(target)
    except OSError:
        return False


def _read_with(used: str | bytes) -> list[Path]:
    """The files that reading an input reads."""
    text = os.fsdecode(used)
    path = Path(text)
    if path.is_dir():
        return [path, *path.iterdir()]
    if path.is_file():
        if path.suffix in (".npz", ".npy", ".yaml", ".yml", ".json"):
            return [path]
        try:
            return [path, *io.weight_files(path)]
        except ModelError:  # another kind of input, or one whose faults are told where it is read
            return [path]
    module, colon, _ = text.rpartition(":")
    return [Path(*module.split(".")).with_suffix(".py")] if colon and module else []
