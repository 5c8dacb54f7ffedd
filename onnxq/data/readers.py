"""Calibration data in every form it may come in, as one kind of reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.carried_states import CarriedSource, Recurrence
from onnxq.data.feeds import Feed, FeedHash, InputSpec, check_feed
from onnxq.data.images import IMAGE_SUFFIXES, Images
from onnxq.data.media_files import files_with
from onnxq.data.npz import NpzSource
from onnxq.data.recordings import AUDIO_SUFFIXES, AudioSource
from onnxq.data.sources import FolderSource, RewindSource, SequenceSource, Source, SpoolSource, get_all
from onnxq.data.state_pairs import possible_states, state_pairs, with_asked
from onnxq.data.table_files import TABLE_SUFFIXES, TableSource, frame_columns, is_frame, table_file
from onnxq.data.text.text_samples import TextSamples
from onnxq.data.user_code import import_callable
from onnxq.errors import CalibrationError, OnnxqError

__all__ = ["Feed", "InputSpec", "Reader", "open_reader", "split"]

FORMS = "an .npz, .parquet or .csv file, a folder of feeds (.npz, .npy), images or recordings, or module:callable"

_ARRAYS = ("numpy", "torch", "tensorflow", "jax")
"""Formats in which a data set of Hugging Face gives its rows as arrays."""


class Reader:
    """Calibration samples: checked feeds that can be read any number of times, in the same order.

    Attributes:
        inputs: what the model takes; every feed fits it.
        notes: what a user should know about the data.
        states: the input that each state output goes back into; None where outputs were not looked at.
        calibrates_on_all: ranges are made from every feed, those that the result is checked on among them.
    """

    states: Mapping[str, str] | None = None
    calibrates_on_all = False

    def __init__(self, source: Source, inputs: Sequence[InputSpec], start: int = 0, stop: int | None = None) -> None:
        """Read the feeds ``start`` to ``stop`` of a source (None: to its end)."""
        self.inputs = list(inputs)
        self._source = source
        self._start = start
        self._stop = stop
        self._hash: str | None = None
        self.notes: list[str] = list(source.notes)

    def __iter__(self) -> Iterator[Feed]:
        """The feeds, each with all inputs in their order.

        Raises:
            CalibrationError: a feed does not fit, the source failed, or there is not one feed; the message says which
                sample.
        """
        index = self._start
        feeds = iter(self._source.feeds(self._start, self._stop))
        while True:
            try:
                sample = next(feeds)
            except StopIteration:
                break
            except OnnxqError:
                raise
            except (Exception, SystemExit) as error:  # whatever the user's own code raises
                raise CalibrationError(
                    f"calibration sample {index}: the reader raised {type(error).__name__}: {error}"
                ) from error
            yield check_feed(sample, self.inputs, f"calibration sample {index}")
            index += 1
        if index == self._start:
            raise CalibrationError("calibration data: there is not one sample; pass at least one feed")

    @property
    def count(self) -> int | None:
        """Feeds; None where the source has to be read to its end to know (see `count_feeds`)."""
        total = self._source.count
        if total is None:
            return None
        return max(0, (total if self._stop is None else min(self._stop, total)) - self._start)

    def count_feeds(self) -> int:
        """Feeds; reads the source to its end where that is not known yet.

        Raises:
            CalibrationError: as for iteration.
        """
        if self.count is None:
            for _ in self:
                pass
        return self.count or 0

    @property
    def labels(self) -> Array | None:
        """Classes of the samples, one for each item of all batches; None where the data has none."""
        return self._source.labels(self._start, self._stop)

    @property
    def hash(self) -> str:
        """What identifies the feeds, in hexadecimal; the same for the same arrays whatever form they came in.

        Raises:
            CalibrationError: as for iteration.
        """
        if self._hash is None:
            digest = FeedHash()
            for feed in self:
                digest.update(feed)
            self._hash = digest.hexdigest()
        return self._hash

    def part(self, start: int, stop: int) -> Reader:
        """The feeds ``start`` to ``stop`` of this reader, as a reader of their own."""
        end = self._start + stop
        part = Reader(
            self._source, self.inputs, self._start + start, end if self._stop is None else min(end, self._stop)
        )
        part.states = self.states
        return part


def open_reader(
    calibration: Any,
    inputs: Sequence[InputSpec],
    *,
    batch_size: int | None = None,
    recurrence: Recurrence | None = None,
) -> Reader:
    """Make a reader of calibration data.

    Args:
        calibration: path of an .npz file (arrays by input name, samples along axis 0, ``labels`` optional), path of
            a folder (each .npz or .npy one feed), ``module:callable`` or a callable that gives an iterable of feeds,
            an iterable of feeds, or an object with onnxruntime's ``get_next()``. A feed is a dict of arrays by input
            name. What can be read only once is kept in a temporary folder while it is read. Texts come as
            `onnxq.data.text.text_samples.TextSamples`.
        inputs: what the model takes.
        batch_size: samples of an .npz in a feed; None takes what the model is fixed to, else 1.
        recurrence: how states that the samples lack are carried from one to the next; None asks for all inputs.

    Raises:
        CalibrationError: it is none of these, does not exist, or does not fit the model.
        RecipeError: the user named states that the model does not have.
    """
    if isinstance(calibration, Reader):
        return calibration
    if isinstance(calibration, TextSamples):
        source, caches = calibration.source(inputs, recurrence)
        reader = Reader(source, inputs)
        reader.states = caches
        return reader
    if recurrence is not None:
        pairs = with_asked({}, recurrence.asked, inputs, recurrence.outputs)
        maybe = possible_states(inputs, recurrence.outputs) | set(pairs.values())
        if maybe:
            return _carrying(calibration, inputs, batch_size, recurrence, maybe)
    reader = Reader(_source(calibration, inputs, batch_size, recurrence), inputs)
    reader.states = None if recurrence is None else {}
    return reader


def _source(
    calibration: Any, inputs: Sequence[InputSpec], batch_size: int | None, recurrence: Recurrence | None
) -> Source:
    folder = None if isinstance(calibration, Images) else _kind_of_folder(calibration)
    if folder == "images":
        calibration = Images(calibration)
    if isinstance(calibration, Images):
        run, outputs = (None, []) if recurrence is None else (recurrence.run, recurrence.outputs)
        return calibration.open(inputs, run, outputs)
    if folder == "recordings":
        return AudioSource(Path(calibration), inputs)
    if isinstance(calibration, str | os.PathLike):
        return _from_text(os.fspath(calibration), inputs, batch_size)
    return _from_object(calibration, inputs, "calibration data")


def _carrying(
    calibration: Any, inputs: Sequence[InputSpec], batch_size: int | None, recurrence: Recurrence, maybe: set[str]
) -> Reader:
    """A reader of samples that need not hold the states of the model."""
    loose = [replace(spec, optional=spec.name in maybe) for spec in inputs]
    source = _source(calibration, loose, batch_size, recurrence)
    held = next(iter(Reader(source, loose)))
    found = state_pairs(inputs, recurrence.outputs, held)
    pairs = with_asked(found, recurrence.asked, inputs, recurrence.outputs)
    lacking = [spec.name for spec in inputs if spec.name not in held and spec.name not in pairs.values()]
    if lacking:
        listed = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise CalibrationError(
            f"calibration data: input '{lacking[0]}' is missing; got {sorted(held)}, the model takes {listed}; if it "
            f"is a state, --state OUTPUT={lacking[0]} says which output goes back into it"
        )
    carried: Source = source
    if pairs:
        carried = CarriedSource(source, inputs, pairs, recurrence)
        carried.describe()
    reader = Reader(carried, inputs)
    reader.states = pairs
    return reader


def _stacks(given: Array, inputs: Sequence[InputSpec]) -> bool:
    """Whether an array holds samples of the only input that a model needs: along its first axis, or a new one."""
    needed = _needed(inputs)
    rank = len(needed[0].shape) if len(needed) == 1 else 0
    return rank > 0 and given.dtype == needed[0].dtype and given.ndim in (rank, rank + 1)


def _needed(inputs: Sequence[InputSpec]) -> list[InputSpec]:
    return [spec for spec in inputs if not spec.optional]


def _kind_of_folder(calibration: object) -> str | None:
    """What a folder without feeds holds."""
    if not isinstance(calibration, str | os.PathLike) or not Path(calibration).is_dir():
        return None
    folder = Path(calibration)
    if files_with(folder, frozenset({".npz", ".npy"})).get(""):
        return None
    kinds = {"images": IMAGE_SUFFIXES, "recordings": AUDIO_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if files_with(folder, suffixes)), None)


def _from_text(text: str, inputs: Sequence[InputSpec], batch_size: int | None) -> Source:
    path = Path(text)
    if path.is_dir():
        return FolderSource(path, inputs)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return table_file(path, inputs)
    if path.is_file():
        return NpzSource(path, inputs, batch_size)
    module, colon, name = text.rpartition(":")
    if colon and module and name and path.suffix not in (".npz", ".npy") and os.sep not in module:
        return _from_object(_callable(module, name, text), inputs, text)
    what = "is neither a regular file nor a folder" if path.exists() else "no such file or folder"
    raise CalibrationError(f"{text}: {what}; pass {FORMS}")


def _callable(module: str, name: str, text: str) -> Callable[[], Any]:
    return import_callable(module, name, text, CalibrationError, "a callable that returns feeds")


def _from_object(given: Any, inputs: Sequence[InputSpec], where: str) -> Source:
    made = not isinstance(given, type) and (hasattr(given, "__iter__") or hasattr(given, "get_next"))
    if callable(given) and not made:
        try:
            given = given()
        except (Exception, SystemExit) as error:  # the callable is the user's own code
            raise CalibrationError(f"{where}: the call raised {type(error).__name__}: {error}") from error
    if isinstance(given, Mapping):
        raise CalibrationError(f"{where}: is one dict; pass a list of feeds, for example [feed]")
    if isinstance(given, np.ndarray) and _stacks(given, inputs):
        stacked = given if given.ndim > len(_needed(inputs)[0].shape) else given[:, None]
        return SequenceSource(list(stacked))
    given = _as_rows(given)
    if is_frame(given):
        return TableSource(frame_columns(given), inputs, where)
    if isinstance(given, np.ndarray | str | bytes):
        raise CalibrationError(
            f"{where}: is a {type(given).__name__}; pass an iterable of dicts of arrays by input name"
        )
    if hasattr(given, "get_next"):
        rewind = getattr(given, "rewind", None) or getattr(given, "reset", None)
        return RewindSource(given, rewind) if callable(rewind) else SpoolSource(get_all(given), inputs)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return SequenceSource(given)
    try:
        iterator = iter(given)
    except TypeError:
        raise CalibrationError(
            f"{where}: is a {type(given).__name__}; pass {FORMS}, or an iterable of dicts of arrays by input name"
        ) from None
    except (Exception, SystemExit) as error:  # the iterable is the user's own code
        raise CalibrationError(f"{where}: the reader raised {type(error).__name__}: {error}") from error
    return SpoolSource(iterator, inputs)


def _as_rows(given: Any) -> Any:
    """A data set of Hugging Face that gives arrays or tensors, as one that gives lists, which get a batch axis."""
    formatted = getattr(given, "format", None)
    kind = formatted.get("type") if isinstance(formatted, Mapping) else None
    plain = getattr(given, "with_format", None)
    return plain(None) if callable(plain) and kind in _ARRAYS else given


def split(reader: Reader, fraction: float = 0.2, at_most: int = 64) -> tuple[Reader, Reader]:
    """Hold out the last feeds, for verification.

    Args:
        reader: all feeds; read to its end first where their number is not known.
        fraction: share to hold out.
        at_most: feeds to hold out at most; at least one is.

    Returns:
        (those to calibrate on, those held out), which are disjoint; with one feed both are that feed and the
        second's notes say so. Where the reader calibrates on all, the first are all.

    Raises:
        CalibrationError: there is not one feed.
    """
    count = reader.count_feeds()
    if count == 0:
        raise CalibrationError("calibration data: there is not one sample; pass at least one feed")
    if count == 1:
        held = reader.part(0, 1)
        held.notes.append("calibration data: one sample only, so the check runs on what was calibrated on; add samples")
        return reader, held
    held_out = min(max(int(count * fraction), 1), at_most, count - 1)
    used = reader if reader.calibrates_on_all else reader.part(0, count - held_out)
    return used, reader.part(count - held_out, count)
