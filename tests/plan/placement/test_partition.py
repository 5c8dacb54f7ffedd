"""The minimum cut against every possible choice of sides."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from onnxq.plan.placement.partition import Link, partition


def total(sides: tuple[bool, ...], floats: list[float], ints: list[float], links: list[Link]) -> float:
    cost = sum(i if side else f for side, f, i in zip(sides, floats, ints, strict=True))
    for link in links:
        made_on_integers = link.producer is not None and sides[link.producer]
        if not made_on_integers and any(sides[c] for c in link.consumers):
            cost += link.quantize
        if made_on_integers and (link.float_consumer or any(not sides[c] for c in link.consumers)):
            cost += link.dequantize
    return cost


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[float], list[Link], dict[int, bool]]:
    count = draw(st.integers(1, 7))
    cost = st.integers(0, 30).map(float)
    floats = draw(st.lists(cost, min_size=count, max_size=count))
    ints = draw(st.lists(cost, min_size=count, max_size=count))
    links = []
    for _ in range(draw(st.integers(0, 8))):
        producer = draw(st.one_of(st.none(), st.integers(0, count - 1)))
        consumers = draw(st.sets(st.integers(0, count - 1), max_size=3)) - {producer}
        links.append(Link(producer, tuple(sorted(consumers)), draw(st.booleans()), draw(cost), draw(cost)))
    forced = draw(st.dictionaries(st.integers(0, count - 1), st.booleans(), max_size=2))
    return floats, ints, links, forced


@given(problems())
def test_it_is_the_cheapest_choice(problem: tuple[list[float], list[float], list[Link], dict[int, bool]]) -> None:
    floats, ints, links, forced = problem
    sides = tuple(partition(floats, ints, links, forced))
    assert all(sides[i] == side for i, side in forced.items())
    allowed = (
        choice
        for choice in itertools.product((False, True), repeat=len(floats))
        if all(choice[i] == side for i, side in forced.items())
    )
    best = min(total(choice, floats, ints, links) for choice in allowed)
    assert total(sides, floats, ints, links) == best


def test_a_cheap_operator_between_integer_ones_joins_them_and_a_stranded_one_does_not() -> None:
    chain = [Link(0, (1,), False, 5, 5), Link(1, (2,), False, 5, 5), Link(2, (), True, 5, 5)]
    assert partition([10, 2, 10], [3, 3, 3], chain) == [True, True, True]
    assert partition([10, 2, 10], [3, 3, 3], chain, {0: False, 2: False}) == [False, False, False]


def test_equal_costs_go_to_the_integers() -> None:
    assert partition([1.0, 1.0], [1.0, 1.0], [Link(0, (1,), False, 0, 0)]) == [True, True]


def test_thousands_of_nodes_in_a_row_are_no_problem() -> None:
    count = 3000
    links = [Link(i, (i + 1,), False, 1.0, 1.0) for i in range(count - 1)]
    assert all(partition([2.0] * count, [1.0] * count, links))
