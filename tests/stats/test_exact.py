"""Exact sums: against integers of any size, whatever the order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.stats.exact import ExactSum

STEP = Fraction(1, 1 << 50)


def summed(terms: np.ndarray) -> ExactSum:
    total = ExactSum.zeros(terms.shape[1])
    for term in terms:
        total.add(term)
        total.count_term()
    return total


def some_terms(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 50)) * 10.0 ** rng.integers(-12, 9, (count, 50))


def test_sums_are_those_of_whole_steps_without_any_error() -> None:
    terms = some_terms(1500)
    total = summed(terms)
    total.carry()
    for column in range(50):
        exact = sum(round(Fraction(float(term)) / STEP) for term in terms[:, column])
        found = Fraction(float(total.high[column])) + Fraction(float(total.low[column]))
        assert found / STEP == exact


def test_order_and_grouping_do_not_matter() -> None:
    terms = some_terms(1300)
    whole = summed(terms)
    shuffled = terms[np.random.default_rng(0).permutation(len(terms))]
    parts = [summed(part) for part in np.split(shuffled, [3, 700])]
    assert parts[2].merge(parts[0]).merge(parts[1]).equals(whole)
    assert parts[0].merge(parts[1].merge(parts[2])).equals(whole)


def test_rows_together_are_the_rows_one_by_one() -> None:
    terms = some_terms(1400)
    together = ExactSum.zeros(50)
    for part in np.split(terms, [1, 500, 1000]):
        together.add_rows(part)
    assert together.equals(summed(terms))


def test_one_sum_has_one_form_even_at_ties() -> None:
    half = 2.0**-7
    left = summed(np.array([[half], [2.0**-6]]))
    right = summed(np.array([[3 * half]]))
    twice = summed(np.array([[half]])).merge(summed(np.array([[half]]))).merge(summed(np.array([[half]])))
    assert left.equals(right)
    assert twice.equals(right)


def test_beyond_the_grid_sums_are_as_good_as_float64() -> None:
    terms = np.full((100, 1), 1e15 / 3)
    total = summed(terms)
    assert (total.high + total.low)[0] == pytest.approx(1e17 / 3, rel=1e-14)


def test_sums_of_different_lengths_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="sums of 2 and of 3 elements"):
        ExactSum.zeros(2).merge(ExactSum.zeros(3))
