"""Notice that a model or its weights were replaced or cut while they were in use."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.files.cut_files import refuse_cut


@dataclass(frozen=True)
class _Seen:
    size: int
    modified: int
    inode: int
    digest: str


@dataclass(frozen=True)
class Watch:
    """The files of one model as they were when it was read.

    Attributes:
        files: by path, size, time, inode and, for the model itself, the hash of its content.
    """

    files: dict[Path, _Seen]

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Watch:
        """Look at a model and its weights.

        Raises:
            ModelError: as for `onnxq.graph.files.io.load`.
        """
        model = Path(path)
        weights = io.weight_files(model)
        return cls({model: _look(model, content=True), **{file: _look(file, content=False) for file in weights}})

    def check(self) -> None:
        """Compare with what is there now. A file that was only touched or copied over itself is the same.

        Raises:
            ModelError: a file is gone, has another size or other content, or, for weights, another time.
        """
        refuse_cut()
        for path, before in self.files.items():
            try:
                now = _look(path, content=False)
                changed = (now.size, now.modified, now.inode) != (before.size, before.modified, before.inode)
                if changed and before.digest and now.size == before.size:
                    changed = _digest(path) != before.digest
            except OSError:
                raise _changed(path, "is gone") from None
            if changed:
                more = f" ({before.size} bytes, now {now.size})" if now.size != before.size else ""
                raise _changed(path, f"was changed{more}")


def _changed(path: Path, what: str) -> ModelError:
    return ModelError(f"{path}: {what} while it was being used, so nothing was written; run again on a file that stays")


def _look(path: Path, *, content: bool) -> _Seen:
    found = path.stat()
    return _Seen(found.st_size, found.st_mtime_ns, found.st_ino, _digest(path) if content else "")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
