"""How many layers have to be given back: predicted from what each does to the outputs, corrected by measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.search.choice import Layer

_CLOSE_ENOUGH = 8
"""The number is settled where at most one layer in so many is given back without need."""

_SAME_TIME = 0.03
"""It is settled, too, where fewer layers would save at most this share of the model's time."""


@dataclass(frozen=True)
class Attempt:
    """What came of a model.

    Attributes:
        good: it keeps the budget, with the margin that a search needs.
        excess: by what factor its noise is too large; inf where it cannot be taken whatever its noise, as with a file
            that is too large, and None where nobody knows.
    """

    good: bool
    excess: float | None = None


def noise_left(order: Sequence[Sequence[Layer]], base: str, forms: Mapping[str, str]) -> list[float]:
    """The share of the noise that is left with the first 0, 1, 2 … groups of layers in another form.

    The errors of layers are taken as independent, so that their powers at the outputs add up.

    Args:
        order: layers that change together, the worst first.
        base: the form that they have.
        forms: the other form by name of the layer.
    """

    def power(layer: Layer, form: str) -> float:
        found = layer.forms.get(form)
        error = None if found is None else found.model_db if form != base else found.error_db
        return 0.0 if error is None else 10.0 ** (-max(error, -100.0) / 10)

    before = [sum(power(layer, base) for layer in group) for group in order]
    after = [sum(min(power(layer, forms[layer.name]), power(layer, base)) for layer in group) for group in order]
    total = sum(before)
    if total <= 0:
        return [1.0 - count / max(len(order), 1) for count in range(len(order) + 1)]
    return [(sum(after[:count]) + sum(before[count:])) / total for count in range(len(order) + 1)]


def fewest(
    left: Sequence[float],
    excess: float,
    attempt: Callable[[int], Attempt | None],
    times: Sequence[float] | None = None,
    longest: float = math.inf,
) -> int | None:
    """The smallest number that is good, to within an eighth, or 3 % of the time; None where none was found.

    Args:
        left: share of the noise that is left by number, as of `noise_left`.
        excess: by what factor the noise is too large with none.
        attempt: builds the model with so many; None ends the search.
        times: that the model takes, by number; None where that is not known.
        longest: time from which a model is worth nothing. The first number is tried in any case: how much noise has to
            go is known well only from a model that comes close.
    """
    too_few, limit = 0, len(left) - 1
    enough: int | None = None
    need = 1.0 / max(excess, 1.0)
    while too_few < limit:
        if enough is None:
            count = _predicted(left, need, too_few, limit)
            if too_few and times is not None and times[count] >= longest:
                break
            if too_few and times is None and _settled(too_few, limit, None):
                count = limit  # what lies between would be no better by what matters
        elif _settled(too_few, enough, times):
            break
        else:
            count = (too_few + enough) // 2
        found = attempt(count)
        if found is None:
            break
        if found.good:
            enough = limit = count
        elif found.excess == math.inf:
            limit = count - 1
        else:
            too_few = count
            if found.excess is not None:
                need = left[count] / max(found.excess, 1.0)
    return enough


def _settled(too_few: int, enough: int, times: Sequence[float] | None) -> bool:
    """Whether no number between the two would be better by what matters."""
    if enough - too_few <= max(1, enough // _CLOSE_ENOUGH):
        return True
    return times is not None and times[enough] - times[too_few + 1] <= _SAME_TIME * times[enough]


def _predicted(left: Sequence[float], need: float, too_few: int, limit: int) -> int:
    """The smallest number from which as little noise is left as needed; twice as many where that was not enough."""
    count = next((index for index, share in enumerate(left) if share <= need), limit)
    return min(limit, count if count > too_few else max(2 * too_few, 1))
