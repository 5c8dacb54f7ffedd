"""Groups of neighbours that may keep 8 bits, on networks whose noise and time add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.search.within.history import StepOutcome
from onnxq.search.within.widening import Widening

NODES = [f"n{i}" for i in range(64)]


def widening(noise: Sequence[float], limit_db: float, most: float = math.inf) -> tuple[Widening, list[Sequence[str]]]:
    """Nodes with 16 bits take 2 instead of 1, and 1 more where the width changes."""
    asked: list[Sequence[str]] = []

    def attempt(wide: Sequence[str]) -> StepOutcome:
        asked.append(wide)
        kept = set(wide)
        total = 1e-6 + sum(part for node, part in zip(NODES, noise, strict=True) if node not in kept)
        turns = sum((a in kept) != (b in kept) for a, b in itertools.pairwise(NODES))
        return StepOutcome(sqnr_db=-10 * math.log10(total), cost=float(len(NODES) + len(kept) + turns))

    return Widening(attempt, lambda o: (o.sqnr_db or 0.0) >= limit_db, lambda: len(asked) >= most), asked


def test_groups_with_little_noise_keep_8_bits() -> None:
    noise = [1e-2 if 20 <= i < 24 else 1e-7 for i in range(64)]
    asked, trail = widening(noise, 40.0)
    assert asked.fewest(NODES) == NODES[20:24]
    assert len(trail) < 40


def test_noise_that_lies_apart_from_groups_is_found_by_halves() -> None:
    noise = [1e-2 if i in (21, 40) else 1e-7 for i in range(64)]
    asked, _ = widening(noise, 40.0)
    assert asked.fewest(NODES) == ["n21", "n40"]


def test_where_nothing_can_be_given_back_all_keep_16() -> None:
    asked, _ = widening([1.0] * 64, 40.0)
    assert asked.fewest(NODES) == NODES
    one, trail = widening([1.0] * 64, 40.0)
    assert one.fewest(["n0"]) == ["n0"]
    assert len(trail) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-7, -1), min_size=64, max_size=64), st.integers(2, 60))
def test_the_result_is_inside_the_limit_whenever_time_ends(powers: list[float], most: int) -> None:
    asked, trail = widening([10.0**p for p in powers], 25.0, most)
    found = asked.fewest(NODES)
    outcome = asked.attempt(found)
    assert asked.inside(outcome)
    assert outcome.cost <= asked.attempt(NODES).cost
    assert len(trail) <= most + 4  # the one that was asked for as time ended, and what is asked for again
