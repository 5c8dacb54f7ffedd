"""Samples on their way through two models at once: the float one, and the one whose earlier layers are quantized.

What is between two cuts of the model is on disk, a file a sample, so that memory holds one segment's weights and one
sample, and no node runs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader
from onnxq.errors import CalibrationError, ModelError
from onnxq.graph.files.io import forget_weights
from onnxq.graph.types import Model
from onnxq.graph.views.cuts import Segment, segment_model, segments_of
from onnxq.runtime.padding import Masks
from onnxq.runtime.session import Session, session_of
from onnxq.stats.second_moment import SecondMoment

_HELD_OUT = 5
"""Of so many samples one is held out."""

_TOGETHER = 1024
"""Rows of a layer's input that are multiplied at once."""


@dataclass
class Sums:
    """What layers read at one value.

    Attributes:
        moment: Σ x̂x̂ᵀ of the quantized model.
        difference: float64, (channels, channels): Σ (x − x̂)x̂ᵀ; None before any row.
    """

    moment: SecondMoment = field(default_factory=SecondMoment)
    difference: Array | None = None
    _waiting: list[tuple[Array, Array]] = field(default_factory=list)

    def add(self, exact: Array, given: Array) -> None:
        """Fold in rows: (rows, channels) of the float model, and of the other one; some wait until `finish`."""
        finite = np.isfinite(exact).all(axis=1) & np.isfinite(given).all(axis=1)
        exact, given = (np.asarray(rows[finite], np.float32) for rows in (exact, given))
        self._waiting.append((exact, given))
        if sum(len(rows) for rows, _ in self._waiting) >= _TOGETHER:
            self.finish()

    def finish(self) -> None:
        """Fold in the rows that wait: adding a product to a sum costs as much as some hundred rows of the product."""
        if not self._waiting:
            return
        exact, given = (np.concatenate(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.moment.update(given)
        exact -= given
        product = exact.T @ given
        if self.difference is None:
            self.difference = product.astype(np.float64)
        else:
            self.difference += product


class TwoStreams:
    """The samples, as far as they have come."""

    def __init__(
        self, model: Model, values: Sequence[str], samples: Reader, folder: Path, threads: int | None = None
    ) -> None:
        """Begin in front of the model; nothing is run yet.

        Args:
            model: the float model; it must not be changed before the last value was reached.
            values: where to stop, none behind a later one.
            samples: read again for each value.
            folder: empty; where values are kept.
            threads: threads an operator may use.
        """
        self._model, self._samples, self._folder, self._threads = model, samples, folder, threads
        self._segments = {segment.value: segment for segment in segments_of(model, values)}
        self._masks = Masks.of(model)
        self._numbers: dict[str, int] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._count = samples.count_feeds()

    def advance(
        self, value: str, constants: Mapping[str, tuple[int, Array]], progress: Callable[[int], None] | None = None
    ) -> tuple[Sums, Sums]:
        """Take all samples to the next value.

        Args:
            value: the next of the values.
            constants: by node, the constants of the quantized model that differ.
            progress: called with the samples that are done.

        Returns:
            Sums over most samples, and over those that are held out.

        Raises:
            CalibrationError: a sample cannot be run, or the value is no floating-point tensor.
        """
        segment = self._segments[value]
        used = {name: constants[name] for name in self.nodes_of(value) if name in constants}
        models = [self._open(segment, each) for each in ({}, used)]
        fitted, held = Sums(), Sums()
        every = min(_HELD_OUT, max(self._count, 2))
        for index, feed in enumerate(self._samples):
            pair = [self._run(run, segment, feed, index, side) for side, run in enumerate(models)]
            padding = self._masks.in_feed(feed)
            exact, given = (padding.rows(value, array) for array in pair)
            if exact.dtype.kind != "f" or exact.ndim < 1:
                raise CalibrationError(f"--sequential: value '{value}' is {exact.dtype}, and layers read real numbers")
            into = held if index % every == every - 1 else fitted
            into.add(exact.reshape(-1, exact.shape[-1]), given.reshape(-1, given.shape[-1]))
            if progress is not None:
                progress(index + 1)
        for sums in (fitted, held):
            sums.finish()
        for name in [name for name in self._numbers if name not in segment.keeps]:
            for file in self._folder.glob(f"{self._numbers.pop(name)}-*.npy"):
                file.unlink()
        return fitted, held

    def nodes_of(self, value: str) -> list[str]:
        """The nodes that are run on the way to a value, and never again."""
        nodes = list(self._model.graph)
        return [nodes[index].name or "" for index in self._segments[value].nodes]

    def _open(self, segment: Segment, constants: Mapping[str, tuple[int, Array]]) -> _Part | None:
        if not segment.nodes:
            return None
        model, inputs = segment_model(self._model, segment, constants, self._dtypes)
        part = _Part(session_of(model, threads=self._threads), inputs)
        forget_weights(model)  # which the runtime has copied
        return part

    def _run(self, part: _Part | None, segment: Segment, feed: Feed, index: int, side: int) -> Array:
        """The value of one sample on one side; what later segments read is written."""
        if part is None:
            return self._read(segment.value, index, side) if segment.value in self._numbers else feed[segment.value]
        given = {there: self._read(name, index, side) for name, there in part.inputs.items()}
        given |= {spec.name: feed[spec.name] for spec in part.session.input_specs if spec.name in feed}
        try:
            results = part.session.run(given, list(segment.gives))
        except ModelError as error:
            raise CalibrationError(f"calibration sample {index}: {error}") from error
        found = dict(zip(segment.gives, results, strict=True))
        for name in set(segment.keeps).intersection(found):
            self._write(name, found[name], index, side)
        return np.asarray(found[segment.value])

    def _file(self, name: str, index: int, side: int) -> Path:
        return self._folder / f"{self._numbers.setdefault(name, len(self._dtypes))}-{side}-{index}.npy"

    def _write(self, name: str, array: object, index: int, side: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise CalibrationError(f"--sequential: value '{name}' is no tensor of numbers, and cannot be kept on disk")
        file = self._file(name, index, side)
        self._dtypes[name] = array.dtype
        try:
            np.save(file, array)
        except OSError as error:
            raise CalibrationError(
                f"--sequential: {self._folder}: values of the samples cannot be kept ({error.strerror}); pass fewer "
                "samples, or set TMPDIR to a larger disk"
            ) from None

    def _read(self, name: str, index: int, side: int) -> Array:
        return np.asarray(np.load(self._file(name, index, side)))


@dataclass(frozen=True)
class _Part:
    """A segment that is ready to run, and its input by name of each value that it reads."""

    session: Session
    inputs: dict[str, str]
