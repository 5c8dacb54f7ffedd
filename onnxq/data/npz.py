"""An .npz file with samples along axis 0, read sample by sample in constant memory."""

from __future__ import annotations

import contextlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec, check_array, check_names
from onnxq.errors import CalibrationError

_MOST = 1 << 16
"""Feeds of a file that are used; ranges have settled long before."""
_OTHER_FORMS = "stack the samples along a new first axis, or pass a folder with one .npz a feed"
"""What works where axis 0 of an input is no batch."""

LABELS = "labels"
"""Array with the class of each sample; not an input unless the model has one of that name."""

DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError, NotImplementedError, RuntimeError,
    TypeError, OverflowError, MemoryError, SyntaxError, LookupError, AttributeError, tokenize.TokenError, struct.error,
)  # fmt: skip
"""What reading a damaged archive raises."""


@dataclass(frozen=True)
class _Member:
    """Header of one array; ``whole`` holds it where it cannot be streamed (Fortran order)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: Array | None = None


class NpzSource:
    """Feeds from an .npz file: arrays by input name, samples along axis 0.

    That axis is the first of the input, its batch; or, where an array has one axis more than the input, a new one in
    front of all that the input has, and each feed is then one element of it.

    Compressed or not, each pass reads the file once, from front to back, and holds one feed at a time.

    Attributes:
        batch: samples in a feed: what the model's first axis is fixed to, else ``batch_size``.
        count: feeds.
        notes: what a user should know, for example that samples were left over.
    """

    def __init__(self, path: Path, inputs: Sequence[InputSpec], batch_size: int | None = None) -> None:
        """Read the headers and check them against the inputs.

        Raises:
            CalibrationError: no .npz file, an empty or damaged one, pickled arrays, or arrays that do not fit.
        """
        self.path = path
        self.notes: list[str] = []
        self._inputs = list(inputs)
        members = _headers(path)
        label_member = None if LABELS in [spec.name for spec in inputs] else members.pop(LABELS, None)
        if not members:
            raise CalibrationError(f"{path}: holds no arrays; save samples with np.savez(path, <input name>=array)")
        check_names(list(members), inputs, str(path))
        inputs = self._inputs = [spec for spec in inputs if spec.name in members]
        self._stacked = {s.name for s in inputs if s.shape and len(members[s.name].shape) == len(s.shape) + 1}
        batched = [spec for spec in inputs if spec.name not in self._stacked]
        self.batch = batch_length(batched, batch_size, str(path)) if batched else 1
        self._members = members
        samples = self._count_samples()
        if label_member is not None and (not label_member.shape or label_member.shape[0] != samples):
            raise CalibrationError(
                f"{path}: array '{LABELS}' has shape {label_member.shape} for {samples} samples; pass one for each"
            )
        self._has_labels = label_member is not None
        self.count = min(samples // self.batch, _MOST)
        if self.count == 0:
            raise CalibrationError(
                f"{path}: holds {samples} samples, but the model takes {self.batch} at a time; add samples"
            )
        if samples // self.batch > _MOST:
            self.notes.append(f"{path}: the first {_MOST} of {samples // self.batch} samples are used")
        elif left := samples % self.batch:
            self.notes.append(f"{path}: {left} of {samples} samples left over, the model takes {self.batch} at a time")

    def _count_samples(self) -> int:
        lengths = {}
        for spec in self._inputs:
            member = self._members[spec.name]
            if not member.shape:
                raise CalibrationError(
                    f"{self.path}: array '{spec.name}' has no axis of samples; pass one element for each sample"
                )
            lengths[spec.name] = member.shape[0] * self.batch // self._per_feed(spec)
            if spec.name in self._stacked:
                check_array(np.broadcast_to(np.empty((), member.dtype), member.shape[1:]), spec, str(self.path))
            elif not self._scalar(spec):
                stand_in = np.broadcast_to(np.empty((), member.dtype), member.shape)  # has the shape, takes no memory
                check_array(stand_in, spec, str(self.path), samples_axis=True)
            elif member.dtype.newbyteorder("=") != spec.dtype:
                check_array(np.empty((), member.dtype), spec, str(self.path))
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise CalibrationError(f"{self.path}: the arrays hold different numbers of samples along axis 0: {listed}")
        samples = next(iter(lengths.values()))
        if samples == 0:
            raise CalibrationError(f"{self.path}: the arrays hold no samples (axis 0 has length 0); add samples")
        return samples

    def _per_feed(self, spec: InputSpec) -> int:
        """Elements of axis 0 in a feed."""
        return 1 if spec.name in self._stacked else self.batch

    def _scalar(self, spec: InputSpec) -> bool:
        return not spec.shape and len(self._members[spec.name].shape) == 1

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """The feeds ``start`` to ``stop`` (None: all), in order.

        Raises:
            CalibrationError: the file is damaged.
        """
        end = self.count if stop is None else min(stop, self.count)
        try:
            with zipfile.ZipFile(self.path) as archive, contextlib.ExitStack() as stack:
                streams = {}
                for spec in self._inputs:
                    name, member = spec.name, self._members[spec.name]
                    if member.whole is None:
                        streams[name] = stack.enter_context(archive.open(f"{name}.npy"))
                        _read_header(streams[name])
                        streams[name].seek(start * self._per_feed(spec) * _bytes_of(member), 1)
                for index in range(start, end):
                    yield {spec.name: self._array(spec, index, streams.get(spec.name)) for spec in self._inputs}
        except DAMAGE as error:
            raise CalibrationError(f"{self.path}: the file is damaged: {error}; save it again") from error

    def _array(self, spec: InputSpec, index: int, stream: IO[bytes] | None) -> Array:
        member, items = self._members[spec.name], self._per_feed(spec)
        if stream is None:
            assert member.whole is not None
            array = member.whole[index * items : (index + 1) * items]
        else:
            size = items * _bytes_of(member)
            content = stream.read(size)
            if len(content) < size:
                raise EOFError(f"array '{spec.name}' ends early")
            array = np.frombuffer(content, member.dtype).reshape(items, *member.shape[1:])
        return array[0, ...] if self._scalar(spec) or spec.name in self._stacked else array

    def labels(self, start: int, stop: int | None) -> Array | None:
        """Labels of the samples in the feeds ``start`` to ``stop``; None where the file has none."""
        if not self._has_labels:
            return None
        end = self.count if stop is None else min(stop, self.count)
        labels: Array = load_npz(self.path, [LABELS])[LABELS]
        return labels[start * self.batch : end * self.batch]


def batch_length(inputs: Sequence[InputSpec], batch_size: int | None, where: str) -> int:
    """Samples in a feed.

    Raises:
        CalibrationError: axis 0 of an input is no batch, or ``batch_size`` is not what the model is fixed to.
    """
    firsts = {spec.name: spec.shape[0] for spec in inputs if spec.shape}
    for spec in inputs:
        for dim in spec.shape[1:]:
            if isinstance(dim, str) and dim != spec.shape[0] and dim in firsts.values():
                raise CalibrationError(
                    f"{where}: input '{spec.name}' {spec.shape_text} has no samples along axis 0 (its batch is "
                    f"another axis); {_OTHER_FORMS}"
                )
    fixed = {name: length for name, length in firsts.items() if isinstance(length, int)}
    if len(set(fixed.values())) > 1:
        listed = ", ".join(f"'{name}' {length}" for name, length in fixed.items())
        raise CalibrationError(
            f"{where}: axis 0 of the inputs is fixed to different lengths ({listed}), so it is no batch; {_OTHER_FORMS}"
        )
    length = next(iter(fixed.values()), None)
    if length is not None and batch_size is not None and batch_size != length:
        raise CalibrationError(f"{where}: batch size {batch_size}, but the model is fixed to {length}; use {length}")
    return max(length or batch_size or 1, 1)


def load_npz(path: Path, only: Sequence[str] | None = None) -> dict[str, Array]:
    """All arrays of an .npz file, or some of them.

    Raises:
        CalibrationError: no such file, damaged, or pickled.
    """
    try:
        _headers(path, whole=False)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if only is None else only)}
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def load_npy(path: Path) -> Array:
    """The array of an .npy file.

    Raises:
        CalibrationError: no such file, damaged, or pickled.
    """
    try:
        with path.open("rb") as stream:
            _checked_header(stream, path.stat().st_size, path.name)
        array: Array = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    return array


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file.

    Raises:
        CalibrationError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> CalibrationError:
    if isinstance(error, OSError) and error.errno is not None:
        return CalibrationError(f"{path}: cannot be read: {error.strerror}")
    if "allow_pickle" in str(error) or "pickled" in str(error):
        return _pickled(str(path))
    return CalibrationError(f"{path}: not a numpy file, or a damaged one ({error}); save it again with np.savez")


def _pickled(where: str) -> CalibrationError:
    return CalibrationError(
        f"{where}: holds pickled Python objects, which are never loaded; save plain arrays of one type"
    )


def _headers(path: Path, *, whole: bool = True) -> dict[str, _Member]:
    """The arrays of an archive without their contents; with them, if ``whole``, where they cannot be streamed."""
    if path.exists() and path.is_file() and not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise CalibrationError(
            f"{path}: not an .npz file, or a truncated one ({size} bytes, no zip archive); save it with np.savez"
        )
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if not entry.endswith(".npy"):
                    continue
                name = entry.removesuffix(".npy")
                with archive.open(entry) as stream:
                    header = _checked_header(stream, archive.getinfo(entry).file_size, f"array '{name}'")
                shape, fortran, dtype = header
                if dtype.hasobject:
                    raise _pickled(f"{path}: array '{name}'")
                streams = not (fortran and whole) or len(shape) < 2
                members[name] = _Member(shape, dtype, None if streams else load_npz(path, [name])[name])
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    return members


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(shape), bool(fortran), dtype


def _checked_header(stream: IO[bytes], size: int, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The header of an array that has the bytes which it announces; nothing is allocated for one that has not.

    Raises:
        ValueError: it has fewer or more.
    """
    shape, fortran, dtype = _read_header(stream)
    announced = math.prod(shape) * dtype.itemsize
    there = size - stream.tell()
    if not dtype.hasobject and (announced != there or any(length < 0 for length in shape)):
        raise ValueError(f"{what} of shape {str(shape)[:90]} takes {announced} bytes, and {there} are there")
    return shape, fortran, dtype


def _bytes_of(member: _Member) -> int:
    """Bytes of one sample."""
    return math.prod(member.shape[1:]) * member.dtype.itemsize
