"""Spend bits where they buy most: the best choice for each layer under an average number of bits a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError

_STATES = 1 << 17


@dataclass(frozen=True)
class StorageChoice:
    """One way to store a layer.

    Attributes:
        bits: bits a weight, scales and zero points included.
        error: what it adds to the error that is to be small; comparable between layers and summed over them.
    """

    bits: float
    error: float


def allocate(elements: Sequence[int], choices: Sequence[Sequence[StorageChoice]], target_bits: float) -> list[int]:
    """Choose for each layer, for the smallest summed error with at most ``target_bits`` a weight on average.

    A multiple-choice knapsack, solved exactly: partial solutions that cost as much and err as much as another are
    dropped, and so is what a Lagrangian bound shows to be no better than the best solution known. Only where more
    than 131,072 partial solutions are left are they thinned; what is found is then still no worse than the Lagrangian
    solution with what it leaves of the budget spent greedily.

    Args:
        elements: weights of each layer.
        choices: for each layer, one or more.
        target_bits: largest average over all weights.

    Returns:
        An index into each layer's choices. Among equal errors the cheaper solution is taken, and then the earlier
        choice, so that the same input gives the same answer.

    Raises:
        RecipeError: even the cheapest choices take more bits, a layer has none, or a number is not finite.

    References:
        Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27(3), 1979.
    """
    if len(elements) != len(choices) or any(not options for options in choices):
        raise RecipeError(
            f"allocate: {len(elements)} layers and choices for {len(choices)}, each of which needs one or more; "
            "pass choices for every layer"
        )
    costs = [
        np.array([option.bits * size for option in options]) for size, options in zip(elements, choices, strict=True)
    ]
    errors = [np.array([option.error for option in options], np.float64) for options in choices]
    if not all(np.isfinite(part).all() for part in (*costs, *errors)):
        raise RecipeError("allocate: a choice has a number of bits or an error that is not finite; leave it out")
    if not costs:
        return []
    total = sum(elements)
    budget = target_bits * total * (1 + 1e-12)
    cheapest = sum(float(cost.min()) for cost in costs)
    if cheapest > budget:
        raise RecipeError(
            f"target bits {target_bits:g}: the cheapest choices take {cheapest / max(total, 1):.3f} bits a weight, "
            "scales included; raise the target or use larger blocks"
        )
    return _exact(costs, errors, budget)


def _pick(costs: list[Array], errors: list[Array], price: float) -> list[int]:
    """Each layer's choice of the least error + price · cost; the cheaper of equals."""
    picks = []
    for cost, error in zip(costs, errors, strict=True):
        value = error + price * cost
        best = np.flatnonzero(value <= value.min())
        picks.append(int(best[np.argmin(cost[best])]))
    return picks


def _sum(parts: list[Array], picks: list[int]) -> float:
    return float(sum(part[pick] for part, pick in zip(parts, picks, strict=True)))


def _price(costs: list[Array], errors: list[Array], budget: float) -> tuple[float, list[int]]:
    """(the lowest price of a bit at which the picks fit the budget, those picks), by bisection."""
    free = _pick(costs, errors, 0.0)
    if _sum(costs, free) <= budget:
        return 0.0, free
    low, high = 0.0, 1e-30
    picks = _pick(costs, errors, high)
    while _sum(costs, picks) > budget and high < 1e300:
        low, high = high, high * 16
        picks = _pick(costs, errors, high)
    if _sum(costs, picks) > budget:  # errors fall with the cost beyond any price: the cheapest choices fit
        return high, [int(np.lexsort((error, cost))[0]) for cost, error in zip(costs, errors, strict=True)]
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        tried = _pick(costs, errors, middle)
        if _sum(costs, tried) <= budget:
            high, picks = middle, tried
        else:
            low = middle
    return high, picks


def _repaired(costs: list[Array], errors: list[Array], picks: list[int], budget: float) -> list[int]:
    """The picks with what is left of the budget spent, the best error for each bit first."""
    picks = list(picks)
    spare = budget - _sum(costs, picks)
    while True:
        best, gain = (-1, -1), 0.0
        for layer, (cost, error) in enumerate(zip(costs, errors, strict=True)):
            more = cost - cost[picks[layer]]
            less = error[picks[layer]] - error
            for option in np.flatnonzero((more <= spare) & (less > 0)):
                rate = less[option] / more[option] if more[option] > 0 else np.inf
                if rate > gain:
                    best, gain = (layer, int(option)), float(rate)
        at, taken = best
        if at < 0:
            return picks
        spare -= float(costs[at][taken] - costs[at][picks[at]])
        picks[at] = taken


def _exact(costs: list[Array], errors: list[Array], budget: float) -> list[int]:
    price, picks = _price(costs, errors, budget)
    known = _repaired(costs, errors, picks, budget)
    least = _sum(errors, known)
    # what the layers to come cost at least, and add at least to error + price · cost
    count = len(costs)
    later_cost = np.append(np.cumsum([cost.min() for cost in costs][::-1])[::-1], 0.0)
    later_value = np.append(
        np.cumsum([(error + price * cost).min() for cost, error in zip(costs, errors, strict=True)][::-1])[::-1], 0.0
    )
    cost_at, error_at = np.zeros(1), np.zeros(1)
    history: list[tuple[Array, Array]] = []
    for layer in range(count):
        options = costs[layer].size
        cost = (cost_at[:, None] + costs[layer]).ravel()
        error = (error_at[:, None] + errors[layer]).ravel()
        bound = error + price * cost + later_value[layer + 1] - price * budget
        slack = 1e-9 * (abs(least) + 1e-300)
        keep = np.flatnonzero((cost + later_cost[layer + 1] <= budget) & (bound <= least + slack))
        keep = keep[np.lexsort((keep, error[keep], cost[keep]))]
        # by rising cost, only what errs less than all that is cheaper
        running = np.minimum.accumulate(error[keep])
        keep = keep[np.append(True, error[keep][1:] < running[:-1])] if keep.size else keep
        if keep.size == 0:
            return known
        if keep.size > _STATES:
            keep = keep[np.linspace(0, keep.size - 1, _STATES).astype(np.int64)]
        history.append((keep // options, keep % options))
        cost_at, error_at = cost[keep], error[keep]
    state = int(np.argmin(error_at))
    if error_at[state] > least:
        return known
    chosen = []
    for parents, option in reversed(history):
        chosen.append(int(option[state]))
        state = int(parents[state])
    return chosen[::-1]
