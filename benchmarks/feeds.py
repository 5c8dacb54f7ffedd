"""Feeds as a folder: one ``.npz`` a feed, 0000.npz, 0001.npz, …, arrays by input name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray[Any, Any]]


def write_feeds(feeds: Iterable[Feed], folder: Path) -> Path:
    """Write each feed to its own file in a new folder; returns the folder."""
    folder.mkdir(parents=True)
    for number, feed in enumerate(feeds):
        arrays: dict[str, Any] = dict(feed)
        np.savez(folder / f"{number:04d}.npz", **arrays)
    return folder


def read_feeds(folder: Path) -> Iterator[Feed]:
    """The feeds of a folder, in order, one in memory at a time."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            yield dict(arrays)


def repeated(feeds: Iterable[Feed], count: int) -> Iterator[Feed]:
    """The first ``count`` feeds, starting again from the first where there are fewer."""
    return itertools.islice(itertools.cycle(feeds), count)
