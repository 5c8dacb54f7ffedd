"""Arrays that are mapped from files: what was read of them can be forgotten, and new ones can be put there."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.codebook import CodebookTensor
from onnxq.core.dtypes import Array
from onnxq.core.spec import QParams, QTensor
from onnxq.errors import OnnxqError

_SMALLEST = 1 << 16
"""Bytes below which an array stays in memory."""


def map_of(array: Array) -> mmap.mmap | None:
    """The map that an array, or a view of one, lies in; None where it is in memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) else None


def forget(array: Array) -> None:
    """Give back the memory that reading a mapped array took; it stays usable, and is read from its file again.

    Args:
        array: read-only, as all mapped weights are. Nothing happens where it lies in memory, or where the system has
            no such call.
    """
    mapped = map_of(array)
    if mapped is None or not hasattr(mapped, "madvise") or not array.size:
        return
    mapped.madvise(mmap.MADV_DONTNEED, *_pages(mapped, array))


def expect(array: Array) -> None:
    """Let the system read what is mapped ahead, in order, while something else is computed.

    A transposed weight is read by strips of its columns: page by page that is a hundred times as many waits for the
    disk as there are bytes to read.

    Args:
        array: mapped; nothing happens where it lies in memory, or where the system has no such call.
    """
    mapped = map_of(array)
    if mapped is None or not hasattr(mmap, "MADV_WILLNEED") or not array.size:
        return
    first, length = _pages(mapped, array)
    mapped.madvise(mmap.MADV_WILLNEED, first, length)


def _pages(mapped: mmap.mmap, array: Array) -> tuple[int, int]:
    """Start and length of what an array takes of a map, from the beginning of a page on."""
    low, high = np.lib.array_utils.byte_bounds(array)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    first = (low - start) // mmap.PAGESIZE * mmap.PAGESIZE
    return first, high - start - first


def forget_tensor(tensor: QTensor) -> None:
    """As `forget`, for a quantized tensor."""
    for array in (tensor.values, tensor.params.scale, tensor.params.zero_point):
        forget(array)


class Spill:
    """A file of arrays, beside which a model can lie that reads them.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path, smallest: int = _SMALLEST) -> None:
        """Start an empty file.

        Args:
            folder: a temporary one, on the disk that has to have the room.
            smallest: bytes below which arrays are not put there.

        Raises:
            OnnxqError: the file cannot be made.
        """
        self.path, self._smallest = folder / "weights", smallest
        self._places: dict[int, tuple[mmap.mmap, int]] = {}
        try:
            self._file = self.path.open("w+b")
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Write no more; arrays stay readable."""
        self._file.close()

    def place_of(self, array: Array) -> int | None:
        """Where the contents of an array begin in the file; None where they are not in it."""
        mapped, place = self._places.get(id(map_of(array)), (None, 0))
        return None if mapped is None or mapped is not map_of(array) else place

    def keep(self, array: Array) -> Array:
        """The array with its contents in the file; itself where it is small or lies in a file already.

        Raises:
            OnnxqError: the disk is full.
        """
        if array.nbytes < self._smallest or map_of(array) is not None:
            return array
        plain = np.ascontiguousarray(array)
        try:
            end = self._file.seek(0, 2)
            start = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._file.seek(start)
            self._file.write(plain.reshape(-1).view(np.uint8).data)
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), plain.nbytes, access=mmap.ACCESS_READ, offset=start)
        except OSError as error:
            raise self._failed(error) from error
        self._places[id(mapped)] = mapped, start
        return np.frombuffer(mapped, np.uint8).view(plain.dtype).reshape(plain.shape)

    def keep_tensor(self, tensor: QTensor) -> QTensor:
        """As `keep`, for a quantized tensor."""
        params = tensor.params
        kept = QParams(params.spec, self.keep(params.scale), self.keep(params.zero_point))
        return QTensor(self.keep(tensor.values), kept)

    def keep_codes(self, tensor: CodebookTensor) -> CodebookTensor:
        """As `keep`, for indices into a table."""
        return replace(tensor, indices=self.keep(tensor.indices), scale=self.keep(tensor.scale))

    def _failed(self, error: OSError) -> OnnxqError:
        return OnnxqError(
            f"{self.path.parent.parent}: weights cannot be kept there until they are written: "
            f"{error.strerror or error}; nothing was written; free space there, or choose another output"
        )
