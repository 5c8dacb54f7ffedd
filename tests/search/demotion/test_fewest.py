"""How few layers are given back, and how few models that takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.search.choice import FLOAT, STATIC, STORED, Form, Layer
from onnxq.search.demotion.fewest import Attempt, fewest, noise_left


def layer(name: str, **decibels: float) -> Layer:
    return Layer(name, "Conv", {form: Form(1.0, model_db=error) for form, error in decibels.items()})


def test_powers_of_errors_add_up() -> None:
    order = [[layer("a", w8a8=20.0, w8=30.0)], [layer("b", w8a8=30.0)], [layer("c", w8a8=30.0)]]
    left = noise_left(order, STATIC, dict.fromkeys("abc", FLOAT))
    assert left == pytest.approx([1.0, 2 / 12, 1 / 12, 0.0])
    assert noise_left(order, STATIC, {"a": STORED, "b": FLOAT, "c": FLOAT})[1] == pytest.approx(3 / 12)
    assert noise_left([[layer("a")], [layer("b")]], STATIC, {"a": FLOAT, "b": FLOAT}) == [1.0, 0.5, 0.0]
    assert noise_left([], STATIC, {}) == [1.0]
    groups = [[order[0][0], order[1][0]], order[2]]
    assert noise_left(groups, STATIC, dict.fromkeys("abc", FLOAT)) == pytest.approx([1.0, 1 / 12, 0.0])


def truth(left: list[float], excess: float, tried: list[int]) -> object:
    def attempt(count: int) -> Attempt:
        tried.append(count)
        now = left[count] * excess
        return Attempt(now <= 1.0, now)

    return attempt


@pytest.mark.parametrize("excess", [1.5, 5.0, 40.0, 900.0])
def test_a_prediction_that_is_right_is_found_at_once(excess: float) -> None:
    powers = np.geomspace(1.0, 1e-4, 80)
    left = [float(powers[count:].sum() / powers.sum()) for count in range(81)]
    tried: list[int] = []
    found = fewest(left, excess, truth(left, excess, tried))  # type: ignore[arg-type]
    best = next(count for count in range(81) if left[count] * excess <= 1.0)
    assert found is not None and best <= found <= best + max(1, best // 8)
    assert len(tried) <= 6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40),
    st.lists(st.floats(0.0, 10.0), min_size=40, max_size=40),
    st.floats(1.0, 1e4),
)
def test_whatever_was_predicted_what_is_found_is_good_and_the_search_ends(
    predicted: list[float], real: list[float], excess: float
) -> None:
    count = len(predicted)
    left = [sum(predicted[i:]) / max(sum(predicted), 1e-9) for i in range(count + 1)]
    actual = [sum(real[i:count]) / max(sum(real[:count]), 1e-9) for i in range(count + 1)]
    tried: list[int] = []
    found = fewest(left, excess, truth(actual, excess, tried))  # type: ignore[arg-type]
    assert found is not None and actual[found] * excess <= 1.0
    assert len(tried) == len(set(tried)) <= 16
    if found > 1:
        assert max([c for c in tried if actual[c] * excess > 1.0], default=0) >= found - max(1, found // 8)


def test_a_file_that_is_too_large_bounds_the_number() -> None:
    tried: list[int] = []

    def attempt(count: int) -> Attempt:
        tried.append(count)
        return Attempt(False, math.inf) if count > 5 else Attempt(count == 5, 2.0)

    left = [1.0 - index / 16 for index in range(17)]
    assert fewest(left, 2.0, attempt) == 5
    assert max(tried) > 5


def test_none_is_found_where_none_is_good_or_time_is_over() -> None:
    assert fewest([1.0, 0.5, 0.0], 4.0, lambda count: Attempt(False, 2.0)) is None
    assert fewest([1.0, 0.5, 0.0], 4.0, lambda count: Attempt(False)) is None
    assert fewest([1.0, 0.5, 0.0], 4.0, lambda count: None) is None
    assert fewest([1.0], 4.0, lambda count: Attempt(True)) is None


@pytest.mark.parametrize(("noise", "found"), [(0.5, None), (0.01, 19)])
def test_a_search_ends_where_what_is_left_to_try_gains_nothing(noise: float, found: int | None) -> None:
    """The first number is tried whatever it takes, for what it shows of the noise."""
    left = [0.95**index for index in range(60)]
    times = [1.0 + index / 60 for index in range(60)]
    tried: list[int] = []

    def attempt(count: int) -> Attempt:
        tried.append(count)
        return Attempt(left[count] * noise <= 0.004, left[count] * noise / 0.004)

    assert fewest(left, 10.0, attempt, times, longest=1.8) == found
    assert tried[0] == 45 and (found is not None or len(tried) == 1)
