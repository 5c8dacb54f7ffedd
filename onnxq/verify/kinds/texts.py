"""Texts that are read off scores of symbols by dropping repetitions and blanks, as CTC does (Graves et al. 2006)."""

from __future__ import annotations

import math
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.verify import loss
from onnxq.verify.kinds.flips import Flips, log_probabilities
from onnxq.verify.kinds.measures import OF_RESULTS, UNSURE, bound_of
from onnxq.verify.loss import Judged

_LONGEST_RUN = 2.0
"""Positions for which such models give the same symbol, on average; a model that labels each position gives more."""

_LEAST_BLANKS = 0.25
_LEAST_SYMBOLS = 20


class TextMeasure:
    """Sequences of symbols: how many texts come out otherwise.

    A symbol stands where a run of positions prefers it, and goes only where none of them does any longer; where a blank
    run lets a symbol in that is none of its neighbours, the text changes too. Boundaries that move change nothing, and
    neither does a symbol that moves.
    """

    def __init__(self, *, normalized: bool) -> None:
        """Start with no sample; ``normalized``: the scores are probabilities."""
        self._normalized = normalized
        self._blank: int | None = None
        self._flips = Flips()
        self._texts = self._changed = 0
        self._counts = np.zeros(3, np.int64)  # positions, blank positions, runs of symbols
        self._symbols = 0

    def add(self, expected: Array, got: Array, batch_axis: int) -> None:
        """Add one sample: scores (N, T, symbols) or (T, N, symbols) of both models."""
        pair = [np.moveaxis(array, batch_axis, 0) for array in (expected, got)]
        self._symbols = expected.shape[-1]
        for before, after in zip(*pair, strict=True):
            self._add_text(*(log_probabilities(array, normalized=self._normalized) for array in (before, after)))

    def _add_text(self, before: Array, after: Array) -> None:
        if not len(before):
            return
        best, other = before.argmax(axis=-1), after.argmax(axis=-1)
        if self._blank is None:
            ends = 0, before.shape[-1] - 1
            self._blank = max(ends, key=lambda symbol: int(np.count_nonzero(best == symbol)))
        runs, now = _runs(best), _runs(other)
        symbols = [run.symbol for run in runs]
        self._texts += 1
        self._changed += _collapsed(best, self._blank) != _collapsed(other, self._blank)
        blanks, count = np.count_nonzero(best == self._blank), sum(symbol != self._blank for symbol in symbols)
        self._counts += np.array([len(best), blanks, count], np.int64)
        margins = []
        for index, (run, place) in enumerate(zip(runs, _places(runs, now, self._blank, len(best)), strict=True)):
            if place.start >= place.stop:  # the gap closed, and both symbols stand
                continue
            beside = np.array(symbols[max(index - 1, 0) : index + 2] if run.symbol == self._blank else [], np.int64)
            pair = [
                _lead(array[part.start : part.stop], run.symbol, beside)
                for array, part in ((before, run), (after, place))
            ]
            margins.append([lead.min() if beside.size else lead.max() for lead in pair])
        both = np.asarray(margins, np.float64).reshape(-1, 2)
        self._flips.add(np.maximum(both[:, 0], 0.0), both[:, 1], 1)

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        self._flips.others_follow()

    @property
    def fits(self) -> bool:
        """The scores look like those of such a model: many blanks, and between them symbols in short runs."""
        positions, blanks, runs = self._counts.tolist()
        if self._symbols < _LEAST_SYMBOLS or not runs:
            return False
        return bool(blanks >= _LEAST_BLANKS * positions and positions - blanks <= _LONGEST_RUN * runs)

    def judged(self) -> Judged:
        """The figures."""
        texts = max(self._texts, 1)
        symbols, error = bound_of(self._flips, UNSURE, OF_RESULTS)
        expected = loss.of_sequences(symbols / texts)
        spread = math.sqrt(self._changed)
        found = max((expected, (1.0 - expected) * error / texts), ((self._changed - spread) / texts, spread / texts))
        return Judged(loss.TEXT, "changed texts", self._changed / texts, *found)


class _Run(NamedTuple):
    """Positions that prefer one symbol."""

    start: int
    stop: int
    symbol: int


def _runs(best: Array) -> list[_Run]:
    starts = np.flatnonzero(np.r_[True, best[1:] != best[:-1]]).tolist()
    return [_Run(a, b, int(best[a])) for a, b in zip(starts, [*starts[1:], len(best)], strict=True)]


def _places(before: list[_Run], after: list[_Run], blank: int, length: int) -> list[_Run]:
    """Where the runs of one model are in the other: a symbol that stands some positions away is the same symbol.

    Symbols are aligned as texts are. One that has no counterpart, and a gap in which there is another symbol now, are
    looked for where they were; a gap between two symbols that stand is between them, and may be empty.
    """
    had, have = ([run for run in runs if run.symbol != blank] for runs in (before, after))
    matcher = SequenceMatcher(None, [r.symbol for r in had], [r.symbol for r in have], autojunk=False)
    same = {block.a + k: block.b + k for block in matcher.get_matching_blocks() for k in range(block.size)}
    same |= {-1: -1, len(had): len(have)}
    found, seen = [], 0
    for run in before:
        if run.symbol != blank:
            found.append(have[same[seen]] if seen in same else run)
            seen += 1
            continue
        left, right = same.get(seen - 1), same.get(seen)
        if left is None or right is None or right != left + 1:
            found.append(run)
            continue
        start = have[left].stop if left >= 0 else 0
        found.append(_Run(start, have[right].start if right < len(have) else length, blank))
    return found


def _lead(logs: Array, symbol: int, beside: Array) -> Array:
    """By how much each position prefers a symbol to all others but those beside it."""
    others = logs.copy()
    others[:, symbol] = -np.inf
    others[:, beside] = -np.inf
    return np.asarray(logs[:, symbol] - others.max(axis=-1))


def _collapsed(symbols: Array, blank: int) -> tuple[int, ...]:
    kept = np.r_[True, symbols[1:] != symbols[:-1]] & (symbols != blank)
    return tuple(symbols[kept].tolist())
