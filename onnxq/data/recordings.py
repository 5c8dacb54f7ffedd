"""Recordings as samples: a folder of WAV, FLAC or OGG files, cut to what a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.media_files import MOST_FILES, files_with, quiet, readable_files
from onnxq.errors import CalibrationError, MissingExtraError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})

_LONGEST_SECONDS = 30
"""Of a recording, where the model takes any length."""
_RATE_NAMES = frozenset({"sr", "rate", "sample_rate", "samplerate", "sampling_rate"})


@dataclass(frozen=True)
class _Piece:
    """A part of a recording: its file, and the frames from ``start`` on; ``frames`` of them."""

    path: Path
    label: int
    start: int
    frames: int


class AudioSource:
    """Feeds of raw waveform, read one at a time; channels are averaged, nothing is resampled.

    A model of a fixed length gets one piece of a recording after the other, so that its states go on; one of any length
    gets whole recordings, of at most 30 seconds.

    Attributes:
        notes: what a user should know.
    """

    def __init__(self, folder: Path, inputs: Sequence[InputSpec]) -> None:
        """List the files.

        Raises:
            CalibrationError: there are none, too many cannot be read, they differ in rate, or the model takes no
                waveform.
        """
        self._reader = _soundfile()
        self._slot, self._rate_input = _waveform_input(inputs, str(folder))
        files = readable_files(folder, files_with(folder, AUDIO_SUFFIXES), self._check)
        self.notes: list[str] = files.notes
        labels = files.labels if files.labels is not None else np.zeros(len(files.paths), np.int64)
        self._labelled = files.labels is not None
        rates: dict[int, Path] = {}
        self._pieces: list[_Piece] = []
        length = self._length
        for path, label in zip(files.paths, labels, strict=True):
            with quiet():
                info = self._reader.info(str(path))
            rates.setdefault(info.samplerate, path)
            step = length or min(info.frames, _LONGEST_SECONDS * info.samplerate)
            last = info.frames - step if length else 0
            self._pieces += [_Piece(path, int(label), start, step) for start in range(0, last + 1, max(step, 1))]
            if len(self._pieces) >= MOST_FILES:
                self.notes.append(f"{folder}: the first {MOST_FILES} pieces of the recordings are used")
                break
        if len(rates) > 1:
            listed = ", ".join(f"{path.name} {rate} Hz" for rate, path in sorted(rates.items()))
            raise CalibrationError(f"{folder}: the recordings differ in rate ({listed}); resample them to the model's")
        if not self._pieces:
            raise CalibrationError(
                f"{folder}: no recording has the {length} samples that input '{self._slot.name}' takes; add longer ones"
            )
        self._rate = next(iter(rates))
        self.notes.append(
            f"{folder}: recordings of {self._rate} Hz, used as they are; the model has to be of that rate"
        )

    @property
    def _length(self) -> int | None:
        last = self._slot.shape[-1]
        return last if isinstance(last, int) else None

    @property
    def _batch(self) -> int:
        first = self._slot.shape[0]
        return first if isinstance(first, int) and len(self._slot.shape) > 1 else 1

    @property
    def count(self) -> int:
        """Feeds."""
        return len(self._pieces) // self._batch

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """The feeds ``start`` to ``stop`` (None: all), in order.

        Raises:
            CalibrationError: a file can no longer be read.
        """
        for index in range(start, self.count if stop is None else min(stop, self.count)):
            pieces = self._pieces[index * self._batch : (index + 1) * self._batch]
            waves = np.stack([self._wave(piece) for piece in pieces])
            spec = self._slot
            feed = {spec.name: waves[0] if len(spec.shape) == 1 else waves.reshape(_shape(spec, waves))}
            if self._rate_input is not None:
                feed[self._rate_input.name] = np.full(
                    [1] * len(self._rate_input.shape), self._rate, self._rate_input.dtype
                )
            yield feed

    def labels(self, start: int, stop: int | None) -> Array | None:
        """Classes of the recordings in those feeds; None where they are not in folders by class."""
        if not self._labelled:
            return None
        end = self.count if stop is None else min(stop, self.count)
        return np.array([piece.label for piece in self._pieces[start * self._batch : end * self._batch]], np.int64)

    def _check(self, path: Path) -> None:
        """Read the end of a file, which a damaged one does not have."""
        with quiet(), self._reader.SoundFile(str(path)) as file:
            file.seek(max(file.frames - 1, 0))
            if not file.frames or not len(file.read(1)):
                raise ValueError("it is empty or ends early")

    def _wave(self, piece: _Piece) -> Array:
        whole = self._slot.dtype.kind == "i"
        try:
            with quiet():
                wave, _ = self._reader.read(
                    str(piece.path), piece.frames, piece.start, dtype="int16" if whole else "float32", always_2d=True
                )
        except Exception as error:  # whatever a decoder raises
            raise CalibrationError(f"{piece.path}: can no longer be read: {error}; repair or remove it") from error
        mono = wave.astype(np.float64).mean(axis=1)
        made: Array = (np.rint(mono) if whole else mono).astype(self._slot.dtype)
        return made


def _shape(spec: InputSpec, waves: Array) -> tuple[int, ...]:
    return (waves.shape[0], *(1 for _ in spec.shape[1:-1]), waves.shape[-1])


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError(
            'recordings are read by soundfile, which is not installed; pip install "onnxq[audio]", or save arrays with '
            "np.savez"
        ) from None
    return soundfile


def _waveform_input(inputs: Sequence[InputSpec], where: str) -> tuple[InputSpec, InputSpec | None]:
    """The input that takes a waveform, and the one that takes its rate, if there is one.

    Raises:
        CalibrationError: there is none, or more is needed.
    """
    needed = [spec for spec in inputs if not spec.optional]
    rates = [spec for spec in needed if spec.name.lower() in _RATE_NAMES and spec.dtype.kind in "iu"]
    waves = [spec for spec in needed if spec not in rates]
    if len(waves) == 1 and len(rates) <= 1:
        (spec,) = waves
        between = spec.shape[1:-1]
        fits = 1 <= len(spec.shape) <= 3 and all(not isinstance(dim, int) or dim == 1 for dim in between)
        if fits and (spec.dtype.kind == "f" or spec.dtype == np.int16):
            return spec, rates[0] if rates else None
    listed = ", ".join(f"'{spec.name}' {spec.dtype} {spec.shape_text}" for spec in needed) or "none"
    raise CalibrationError(
        f"{where}: holds recordings, but the model takes {listed}, which is no waveform (one input of floats or int16, "
        "samples along its last axis); save feeds with np.savez"
    )
