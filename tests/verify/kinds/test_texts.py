"""Texts read off scores with blanks: what changes a text counts, and what only moves in it does not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.verify.kinds.texts import TextMeasure

BLANK, SYMBOLS = 0, 24


def scores(best: list[int], margin: float = 6.0) -> np.ndarray:
    """Log-scores (1, T, symbols) that prefer one symbol at each position by a margin."""
    found = np.zeros((1, len(best), SYMBOLS), np.float32)
    found[0, np.arange(len(best)), best] = margin
    return found


def judged(*pairs: tuple[list[int], list[int]]) -> TextMeasure:
    measure = TextMeasure(normalized=False)
    for before, after in pairs:
        measure.add(scores(before), scores(after), 0)
    return measure


HAD = [0, 0, 3, 0, 0, 5, 5, 0, 7, 0, 0, 0]


@pytest.mark.parametrize(
    "have",
    [
        [0, 0, 0, 3, 0, 5, 0, 0, 7, 0, 0, 0],  # symbols move, and are shorter
        [0, 3, 0, 0, 0, 0, 0, 5, 0, 7, 0, 0],
        [0, 0, 3, 5, 5, 7, 7, 7, 7, 7, 7, 7],  # gaps between other symbols close, and so does the one at the end
        [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 7],
    ],
)
def test_a_text_whose_symbols_only_move_stays_the_same(have: list[int]) -> None:
    measure = judged(*[(HAD, have)] * 40)
    found = measure.judged()
    assert found.value == 0.0 and found.loss < 0.01
    assert measure._flips.changed == 0


@pytest.mark.parametrize(
    ("have", "changes"),
    [
        ([0, 0, 3, 0, 0, 0, 0, 0, 7, 0, 0, 0], 1),  # one is gone
        ([0, 0, 3, 0, 0, 9, 9, 0, 7, 0, 0, 0], 2),  # another one: it is gone, and its place is no gap
        ([0, 0, 3, 0, 0, 5, 5, 0, 7, 0, 2, 0], 1),  # one more, in a gap
        ([0, 2, 3, 0, 0, 0, 5, 0, 7, 0, 0, 0], 1),  # one more, while another one moves
        ([0, 0, 5, 0, 0, 3, 3, 0, 7, 0, 0, 0], 1),  # two change places
    ],
)
def test_what_changes_the_text_is_a_decision_that_changes(have: list[int], changes: int) -> None:
    measure = judged((HAD, have))
    assert measure.judged().value == 1.0
    assert 1 <= measure._flips.changed <= changes + 1


def test_a_symbol_said_twice_becomes_one_where_the_gap_between_closes() -> None:
    twice, once = [0, 3, 0, 3, 0, 0], [0, 3, 3, 3, 0, 0]
    assert judged((twice, once)).judged().value == 1.0
    assert judged((twice, [3, 0, 3, 0, 0, 0]))._flips.changed == 0


def test_the_loss_of_texts_that_move_is_far_below_that_of_texts_that_change() -> None:
    still, other = [HAD] * 30, [0, 0, 0, 3, 0, 5, 0, 0, 7, 0, 0, 0]
    moved = judged(*[(had, other) for had in still]).judged()
    changed = judged(
        *[(had, HAD if i else [0, 0, 3, 0, 0, 0, 0, 0, 7, 0, 0, 0]) for i, had in enumerate(still)]
    ).judged()
    assert moved.loss < 0.01 < changed.loss or moved.loss < changed.loss / 3
    assert changed.value == pytest.approx(1 / 30)


def test_an_empty_text_and_one_that_is_all_blank_are_the_same() -> None:
    assert judged(([0] * 6, [0] * 6)).judged().value == 0.0
    assert judged(([0] * 6, [0, 0, 4, 0, 0, 0])).judged().value == 1.0
