"""The best choice for each layer, against trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.algorithms import knapsack
from onnxq.algorithms.knapsack import StorageChoice, allocate
from onnxq.errors import RecipeError


def totals(
    elements: list[int], choices: list[list[StorageChoice]], picks: tuple[int, ...] | list[int]
) -> tuple[float, float]:
    """(bits, error) of a solution."""
    taken = [options[pick] for options, pick in zip(choices, picks, strict=True)]
    return sum(c.bits * n for c, n in zip(taken, elements, strict=True)), sum(c.error for c in taken)


layers = st.lists(
    st.tuples(
        st.integers(1, 5000),
        st.lists(st.tuples(st.floats(1, 9), st.floats(0, 100)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@given(layers, st.floats(0, 1))
def test_nothing_is_better(drawn: list[tuple[int, list[tuple[float, float]]]], where: float) -> None:
    elements = [size for size, _ in drawn]
    choices = [[StorageChoice(*option) for option in options] for _, options in drawn]
    every = [totals(elements, choices, picks) for picks in itertools.product(*(range(len(c)) for c in choices))]
    least = min(bits for bits, _ in every) / sum(elements)
    most = max(bits for bits, _ in every) / sum(elements)
    target = least + where * (most - least)
    bits, error = totals(elements, choices, allocate(elements, choices, target))
    assert bits <= target * sum(elements) * (1 + 1e-9)
    # sums rounded in another order may lie on the other side of the budget
    best = min((e for b, e in every if b <= target * sum(elements) * (1 - 1e-9)), default=np.inf)
    assert error <= best + 1e-7 * (1 + best)


def transformer(seed: int, count: int) -> tuple[list[int], list[list[StorageChoice]]]:
    """Layers of a few sizes, whose errors fall about fourfold with each bit."""
    rng = np.random.default_rng(seed)
    elements = [int(rng.choice([384 * 384, 384 * 1536, 30000 * 384])) for _ in range(count)]
    choices = [
        [StorageChoice(b + 0.5, float(size * scale * 4.0**-b * rng.uniform(0.8, 1.2))) for b in (2, 3, 4, 8)]
        for size, scale in zip(elements, np.exp(rng.normal(size=count) * 2), strict=True)
    ]
    return elements, choices


def test_a_large_model_is_at_least_as_good_as_every_uniform_choice() -> None:
    elements, choices = transformer(0, 150)
    picks = allocate(elements, choices, 4.5)
    bits, error = totals(elements, choices, picks)
    assert bits <= 4.5 * sum(elements) * (1 + 1e-9)
    assert error < 0.5 * totals(elements, choices, [2] * 150)[1]
    assert picks == allocate(elements, choices, 4.5)
    assert set(picks) >= {1, 2, 3}


def test_thinned_searches_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    elements, choices = transformer(1, 40)
    _, best = totals(elements, choices, allocate(elements, choices, 4.0))
    monkeypatch.setattr(knapsack, "_STATES", 8)
    bits, error = totals(elements, choices, allocate(elements, choices, 4.0))
    assert bits <= 4.0 * sum(elements) * (1 + 1e-9)
    assert best <= error <= 1.05 * best


def test_a_budget_for_everything_buys_everything() -> None:
    elements, choices = transformer(2, 20)
    assert allocate(elements, choices, 8.5) == [3] * 20
    assert allocate(elements, choices, 2.5) == [0] * 20
    assert allocate([], [], 4.0) == []
    assert allocate([0, 5], [[StorageChoice(4, 0)], [StorageChoice(4, 1), StorageChoice(8, 0)]], 8) == [0, 1]


def test_more_bits_that_buy_nothing_are_not_spent() -> None:
    assert allocate([10], [[StorageChoice(8, 1.0), StorageChoice(4, 1.0), StorageChoice(3, 2.0)]], 9) == [1]


def test_what_cannot_be_met_is_said() -> None:
    elements, choices = transformer(3, 4)
    with pytest.raises(RecipeError, match="the cheapest choices take 2.500 bits a weight, scales included"):
        allocate(elements, choices, 2.4)
    with pytest.raises(RecipeError, match="each of which needs one or more"):
        allocate([1], [[]], 4)
    with pytest.raises(RecipeError, match="not finite"):
        allocate([1], [[StorageChoice(4, float("nan"))]], 4)
