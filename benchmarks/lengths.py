"""Feeds of one sequence of a given length, made from the samples of a model that reads tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.feeds import Feed
from benchmarks.measure import open_session

LENGTHS = (1, 16, 128)
AS_FED = "as fed"


def timed_feeds(model: Path, feeds: Sequence[Feed], most: int = 4) -> dict[str, list[Feed]]:
    """What to time a model on, by the name of the shape.

    A model whose inputs are all tokens, int64 of shape (batch, length), is timed on one sequence of each of `LENGTHS`
    that it takes; any other on its samples as they are.

    Args:
        model: the float model.
        feeds: samples.
        most: feeds for each shape.
    """
    if not all(array.dtype == np.int64 and array.ndim == 2 for array in feeds[0].values()):
        return {AS_FED: list(feeds[:most])}
    session = open_session(model)
    found = {}
    for length in LENGTHS:
        made = [of_length(feeds[i:], length) for i in range(min(most, len(feeds)))]
        try:
            session.run(None, made[0])
        except Exception:  # too long or too short for it; the runtime has no class for this alone
            continue
        found[f"1 x {length}"] = made
    return found or {AS_FED: list(feeds[:most])}


def of_length(feeds: Sequence[Feed], length: int) -> Feed:
    """One sequence without padding: the tokens of the samples one behind the other, over again where they are few."""
    masks = [name for name in feeds[0] if "mask" in name]
    tokens: dict[str, list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = {name: [] for name in feeds[0]}
    for feed in feeds:
        seen = feed[masks[0]].astype(bool) if masks else np.ones_like(next(iter(feed.values())), bool)
        for name, array in feed.items():
            tokens[name].append(array[seen])
    return {name: np.resize(np.concatenate(parts), (1, length)) for name, parts in tokens.items()}
