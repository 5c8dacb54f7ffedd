"""Where samples come from, other than one .npz file: folders, sequences, ``get_next()`` readers, iterators."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.scratch import Scratch
from onnxq.data.feeds import Feed, InputSpec, check_feed
from onnxq.data.npz import LABELS, load_npy, load_npz, npz_names
from onnxq.errors import CalibrationError


class Source(Protocol):
    """A stream of samples that can be read again.

    Attributes:
        count: feeds; None where that is not known yet.
        notes: what a user should know.
    """

    notes: list[str]

    @property
    def count(self) -> int | None:
        """Feeds; None where that is not known yet."""

    def feeds(self, start: int, stop: int | None) -> Iterator[Any]:
        """The samples ``start`` to ``stop`` (None: all), in order, not checked."""

    def labels(self, start: int, stop: int | None) -> Array | None:
        """Labels of those samples, one for each item of their batches; None where there are none."""


class FolderSource:
    """A folder whose files are feeds, in the order of their names.

    An .npz holds arrays by input name, with a batch of its own; an .npy the only input of the model. Other files are
    left alone.
    """

    def __init__(self, folder: Path, inputs: Sequence[InputSpec]) -> None:
        """List the files.

        Raises:
            CalibrationError: there are none, or .npy files for a model with several inputs.
        """
        self.notes: list[str] = []
        self._inputs = list(inputs)
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise CalibrationError(f"{folder}: cannot be read: {error.strerror or error}") from error
        self._files = [
            path
            for path in entries
            if path.suffix in (".npz", ".npy") and not path.name.startswith(".") and path.is_file()
        ]
        if not self._files:
            raise CalibrationError(f"{folder}: holds no .npz or .npy files, images or recordings; save one a feed")
        arrays = [path for path in self._files if path.suffix == ".npy"]
        needed = [spec for spec in inputs if not spec.optional]
        self._only = needed[0] if len(needed) == 1 else None
        if arrays and self._only is None:
            raise CalibrationError(
                f"{arrays[0]}: an .npy file is one array, but the model has {len(inputs)} inputs; "
                "save .npz files with arrays by input name"
            )

    @property
    def count(self) -> int:
        """Files."""
        return len(self._files)

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """One feed a file; a file that does not fit is named in the error."""
        for path in self._files[start:stop]:
            if path.suffix == ".npy" and self._only is not None:
                feed = {self._only.name: load_npy(path)}
            else:
                feed = load_npz(path)
                if not self._is_input(LABELS):
                    feed.pop(LABELS, None)
            yield check_feed(feed, self._inputs, str(path))

    def labels(self, start: int, stop: int | None) -> Array | None:
        """The arrays ``labels`` of all files, joined; None unless every file has one."""
        files = self._files[start:stop]
        if self._is_input(LABELS) or not all(path.suffix == ".npz" and LABELS in npz_names(path) for path in files):
            return None
        return np.concatenate([np.atleast_1d(load_npz(path, [LABELS])[LABELS]) for path in files]) if files else None

    def _is_input(self, name: str) -> bool:
        return any(spec.name == name for spec in self._inputs)


class SequenceSource:
    """Samples that are at hand by index: a list, a tuple, a dataset."""

    def __init__(self, samples: Any) -> None:
        self.notes: list[str] = []
        self._samples = samples

    @property
    def count(self) -> int:
        """Samples."""
        return len(self._samples)

    def feeds(self, start: int, stop: int | None) -> Iterator[Any]:
        """The samples."""
        count = self.count
        for index in range(start, count if stop is None else min(stop, count)):
            yield self._samples[index]

    def labels(self, start: int, stop: int | None) -> None:
        """There are none."""


class RewindSource:
    """A reader with onnxruntime's ``get_next()`` that can start again, by ``rewind()`` or ``reset()``."""

    def __init__(self, reader: Any, rewind: Callable[[], object]) -> None:
        self.notes: list[str] = []
        self._reader = reader
        self._rewind = rewind
        self._count: int | None = None

    @property
    def count(self) -> int | None:
        """Samples, once it was read to its end."""
        return self._count

    def feeds(self, start: int, stop: int | None) -> Iterator[Any]:
        """Rewind, skip and give."""
        self._rewind()
        index = 0
        for feed in get_all(self._reader):
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield feed
            index += 1
        self._count = index

    def labels(self, start: int, stop: int | None) -> None:
        """There are none."""


def get_all(reader: Any) -> Iterator[Any]:
    """What ``get_next()`` gives until it gives None."""
    while (feed := reader.get_next()) is not None:
        yield feed


class SpoolSource:
    """Samples of an iterator that can be read only once, kept in a temporary folder as they are read.

    The folder goes with the object, or at the end of the process.
    """

    def __init__(self, samples: Iterator[Any], inputs: Sequence[InputSpec]) -> None:
        self.notes: list[str] = []
        self._inputs = list(inputs)
        self._samples: Iterator[Any] | None = samples
        self._stored = 0
        made = Scratch.make()
        self._folder = made.path
        weakref.finalize(self, made.remove)

    @property
    def count(self) -> int | None:
        """Samples, once all were read."""
        return self._stored if self._samples is None else None

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """Those stored, then those still to come, which are stored first."""
        index = start
        while stop is None or index < stop:
            while index >= self._stored:
                if not self._read_one():
                    return
            yield self._load(index)
            index += 1

    def labels(self, start: int, stop: int | None) -> None:
        """There are none."""

    def _read_one(self) -> bool:
        if self._samples is None:
            return False
        for sample in islice(self._samples, 1):
            feed = check_feed(sample, self._inputs, f"calibration sample {self._stored}")
            try:
                with self._path(self._stored).open("wb") as file:
                    np.save(file, np.array([spec.name in feed for spec in self._inputs]))
                    for array in feed.values():
                        np.save(file, _plain(array), allow_pickle=False)
            except OSError as error:
                raise CalibrationError(
                    f"{self._folder}: calibration samples cannot be kept there: {error.strerror or error}; set TMPDIR "
                    "to a folder with space, or pass a list or a folder of samples"
                ) from error
            self._stored += 1
            return True
        self._samples = None
        return False

    def _load(self, index: int) -> Feed:
        with self._path(index).open("rb") as file:
            held = np.load(file, allow_pickle=False)
            specs = [spec for spec, there in zip(self._inputs, held, strict=True) if there]
            arrays = [np.load(file, allow_pickle=False) for _ in specs]
        return {
            spec.name: array if spec.dtype.kind == "U" else array.view(spec.dtype)
            for spec, array in zip(specs, arrays, strict=True)
        }

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:08d}.bin"


def _plain(array: Array) -> Array:
    """Types that numpy files do not know, as integers of the same size."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
