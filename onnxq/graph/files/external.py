"""Weights in files beside the model: found only inside the model's folder, read or, if long, mapped into memory."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.errors import ModelError
from onnxq.graph.files.cut_files import guard

READ_UP_TO = 512 * 2**20
"""Bytes of a file that is read into memory; longer ones are mapped, and guarded against being cut."""


class DataFiles:
    """The external files of one model.

    Attributes:
        files: the files mapped so far, resolved.
    """

    def __init__(self, where: str, folder: Path | None) -> None:
        """Remember the model.

        Args:
            where: name of the model in messages.
            folder: the folder of the model file; None for a model in memory, which cannot have external data.
        """
        self._where = where
        self._folder = folder
        self._bytes: dict[Path, Array] = {}
        self.files: set[Path] = set()

    def resolve(self, location: str) -> Path:
        """The file that a location in the model names.

        Raises:
            ModelError: it lies outside the model's folder (also through a link), or is not a file.
        """
        what = f"{self._where}: external data '{location}'"
        if self._folder is None:
            raise ModelError(f"{what}: a model in memory has no folder to find it in; load it from its file instead")
        if not location or "\0" in location:
            raise ModelError(f"{what} is not a file name; export the model again")
        if PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive or location[0] in "/\\":
            raise ModelError(f"{what} is an absolute path; only files inside the model's folder are read")
        if ".." in PurePosixPath(location.replace("\\", "/")).parts:
            raise ModelError(f"{what} leaves the model's folder; only files inside it are read")
        root = self._folder.resolve()
        file = (self._folder / os.fsdecode(location.encode())).resolve()  # a file name is bytes, whatever the locale
        if not file.is_relative_to(root):
            raise ModelError(f"{what} is a link that leaves the model's folder; put the file itself there")
        if not file.exists():
            raise ModelError(f"{what} is missing; put the file beside the model")
        if not file.is_file():
            raise ModelError(f"{what} is not a regular file; only files inside the model's folder are read")
        return file

    def tensor(self, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        """A tensor over the mapped bytes of its file.

        Raises:
            ModelError: the file cannot be used, or does not have the bytes that the tensor says.
        """
        location = str(tensor.location)
        file = self.resolve(location)
        shape = tensor.shape.numpy()
        needed = math.ceil(math.prod(shape) * tensor.dtype.itemsize)
        offset = tensor.offset or 0
        what = f"{self._where}: initializer '{tensor.name}': external data '{location}'"
        if tensor.length is not None and tensor.length != needed:
            raise ModelError(f"{what} has {tensor.length} bytes for shape {list(shape)}, which takes {needed}")
        content = self._mapped(file)
        if offset < 0 or offset + needed > content.size:
            raise ModelError(
                f"{what} is too short: bytes {offset} to {offset + needed} of {content.size}; copy or export it again"
            )
        part = content[offset : offset + needed]
        if tensor.dtype.bitwidth < 8:
            packed: ir.TensorProtocol = ir.PackedTensor(part, tensor.dtype, shape=shape, name=tensor.name)
            return packed
        array = part.view(tensor.dtype.numpy().newbyteorder("<")).reshape(shape)
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)

    def _mapped(self, file: Path) -> Array:
        if file not in self._bytes:
            self.files.add(file)
            if file.stat().st_size <= READ_UP_TO:
                self._bytes[file] = np.fromfile(file, np.uint8)
            else:
                guard(file)
                with file.open("rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                self._bytes[file] = np.frombuffer(mapped, np.uint8)
        return self._bytes[file]
