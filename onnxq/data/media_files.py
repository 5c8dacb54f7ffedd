"""Files of a folder of images or recordings: which there are, their classes, and those that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError

_MOST_BAD = 0.05
"""Share of the files that may be unreadable."""

MOST_FILES = 1024
"""Files that are used of a folder; ranges have settled long before."""

_NAMED = 3
"""Unreadable files that a note names."""


@contextmanager
def quiet() -> Iterator[None]:
    """Decoders warn of what they can read all the same: very large images, odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class MediaFiles:
    """The files of a folder that can be read, in the order of use.

    Attributes:
        paths: the files; those of different classes take turns, so that each part of them holds all classes.
        labels: class of each; None where the folder is not one of folders by class.
        notes: what a user should know.
    """

    paths: list[Path]
    labels: Array | None
    notes: list[str] = field(default_factory=list)


def files_with(folder: Path, suffixes: frozenset[str]) -> dict[str, list[Path]]:
    """Files of the given endings, in lower case, by class: the name of the folder they are in, "" for none.

    An empty folder beside others is a class without samples: the numbers of the classes behind it count it. One that
    holds other files is no class.

    Raises:
        CalibrationError: the folder cannot be read.
    """
    empty: set[str] = set()
    try:
        entries = sorted(folder.iterdir())
        found = {"": _fitting(entries, suffixes)}
        if not found[""]:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    inside = sorted(entry.iterdir())
                    found[entry.name] = _fitting(inside, suffixes)
                    empty |= {entry.name} if not inside else set()
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return {name: paths for name, paths in found.items() if paths or name in empty} if any(found.values()) else {}


def _fitting(entries: list[Path], suffixes: frozenset[str]) -> list[Path]:
    return [
        path for path in entries if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def readable_files(folder: Path, by_class: dict[str, list[Path]], check: Callable[[Path], Any]) -> MediaFiles:
    """Leave out the files that cannot be read, and say so.

    Args:
        folder: for messages.
        by_class: what `files_with` found.
        check: reads a file and raises what it will if that fails.

    Raises:
        CalibrationError: no file can be read, or more than one in twenty cannot.
    """
    classes = sorted(name for name in by_class if name)
    numbers = {name: int(name) for name in classes} if _all_numbers(classes) else {n: i for i, n in enumerate(classes)}
    entries = [(path, numbers.get(name, 0)) for name, path in _in_turn(by_class)]
    notes = []
    if len(entries) > MOST_FILES:
        step = len(entries) / MOST_FILES
        notes.append(
            f"{folder}: {MOST_FILES} of {len(entries)} files are used, evenly spread; ranges settle long before"
        )
        entries = [entries[int(index * step)] for index in range(MOST_FILES)]
    good, bad = [], []
    for entry in entries:
        try:
            check(entry[0])
        except Exception as error:  # whatever a decoder raises at a damaged file
            bad.append(f"{entry[0].name} ({_without_path(error, entry[0]) or type(error).__name__})")
        else:
            good.append(entry)
    if bad:
        listed = ", ".join(bad[:_NAMED]) + (f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
        said = f"{folder}: {len(bad)} of {len(entries)} files cannot be read: {listed}"
        if len(bad) > _MOST_BAD * len(entries):
            raise CalibrationError(f"{said}; more than {_MOST_BAD:.0%} is too many: repair or remove them")
        notes.append(f"{said}; they are left out")
    if classes:
        shown = ", ".join(f"{name} = {numbers[name]}" for name in classes[:_NAMED])
        without = sum(not by_class[name] for name in classes)
        notes.append(
            f"{folder}: labels are the folders' names in their order: {shown}{', …' * (len(classes) > _NAMED)}"
            + (f"; {without} of {len(classes)} folders are empty, and counted" if without else "")
        )
    labels = np.array([label for _, label in good], np.int64) if classes else None
    return MediaFiles([path for path, _ in good], labels, notes)


def _without_path(error: Exception, path: Path) -> str:
    """What a decoder said of a file that is named already."""
    return str(error).replace(f"'{path}'", "it").replace(str(path), "it")


def _all_numbers(names: list[str]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) < 10 for name in names)


def _in_turn(by_class: dict[str, list[Path]]) -> list[tuple[str, Path]]:
    rows = zip_longest(*([(name, path) for path in paths] for name, paths in sorted(by_class.items())))
    return [entry for entry in chain.from_iterable(rows) if entry is not None]
