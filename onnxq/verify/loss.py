"""One scale for all kinds of outputs: the expected share of decisions that change.

What float itself changes when its inputs move inside their own resolution is next to nothing on it, and `BUDGET` is
what is taken as "as good" where the user sets no limit. docs/judging.md derives each function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BUDGET = 0.01
"""One decision in a hundred."""

CLASSES, POSITIONS, TEXT, PROBABILITIES = "classes", "positions", "text", "probabilities"
EMBEDDING, VALUES, SIGNAL, STATE, ELEMENTS, DETECTION = (
    "embedding",
    "values",
    "signal",
    "state",
    "elements",
    "detection",
)
"""The kinds of outputs."""


@dataclass(frozen=True)
class Judged:
    """How one output stands against the float model's, in terms of what it is for.

    Attributes:
        kind: what the output holds: `CLASSES` (scores of classes of an item), `POSITIONS` (of each position), `TEXT`
            (of a sequence with blanks, CTC), `PROBABILITIES` (each with its own threshold), `DETECTION` (probabilities
            and coordinates side by side), `EMBEDDING`, `VALUES`, `SIGNAL` (sound or images), `STATE` (goes back in at
            the next call) or `ELEMENTS` (integers, booleans, text).
        measure: what ``value`` is.
        value: the measure of that kind.
        loss: the expected share of changed decisions, 0 to 1: the estimate and one standard error.
        loss_error: that standard error, as far as samples tell it.
    """

    kind: str
    measure: str
    value: float
    loss: float
    loss_error: float = 0.0


def by_noise(ratio: float) -> float:
    """Loss of real numbers whose error has this ratio to their spread, both as standard deviations.

    Two Gaussian numbers, the second the first plus such an error, lie on different sides of the first one's median with
    probability arctan(ratio) / π (Sheppard 1899). 30 dB are 1.0 %.
    """
    return math.atan(ratio) / math.pi if math.isfinite(ratio) else 0.5


def by_angle(cosine: float) -> float:
    """Loss of vectors that are turned by this angle: θ / π.

    That is the probability that a random plane through the origin separates them (Goemans and Williamson 1995).
    """
    if cosine > 1.0 - 1e-12:  # rounding
        return 0.0
    return math.acos(max(-1.0, cosine)) / math.pi


def by_similarity(ratio: float) -> float:
    """Loss of embeddings whose pairwise similarities have an error of this ratio to their spread.

    Of the difference between two similarities that a comparison of them turns on, the share that lies in comparisons
    which come out the other way: ½ − ½ / √(1 + ratio²), for Gaussian numbers. It is the price of a wrong neighbour, as
    that of a wrong class is the difference of the two probabilities.
    """
    return 0.5 - 0.5 / math.sqrt(1.0 + ratio * ratio) if math.isfinite(ratio) else 0.5


def of_sequences(changes: float) -> float:
    """Loss of sequences in which so many symbols change on average: the share in which at least one does (Poisson)."""
    return -math.expm1(-changes)


def worst(outputs: Mapping[str, Judged | None]) -> float | None:
    """The loss of a model: that of its worst output that is no state, or of its worst state if it has no other."""
    found = worst_output(outputs)
    return None if found is None else found.loss


def worst_output(outputs: Mapping[str, Judged | None]) -> Judged | None:
    """The output that the loss of a model is that of; None where none is judged."""
    judged = [found for found in outputs.values() if found is not None]
    answers = [found for found in judged if found.kind != STATE]
    return max(answers or judged, key=lambda found: found.loss, default=None)


def inside_budget(loss: float | None, budget: float = BUDGET) -> bool:
    """Whether a loss is inside a budget; one that is not known is not."""
    return loss is not None and loss <= budget


def in_words(outputs: Mapping[str, Judged | None], budget: float = BUDGET) -> str:
    """Why a model is outside the budget, by its worst output; empty where it is inside."""
    loss = worst(outputs)
    if loss is None or inside_budget(loss, budget):
        return ""
    name, found = next((n, f) for n, f in outputs.items() if f is not None and f.loss == loss)
    return f"output {name!r} ({found.kind}): {phrase(found)}, a loss of {share(loss)}; the budget is {share(budget)}"


def phrase(judged: Judged) -> str:
    """The measure of an output in words."""
    if judged.measure == "SNR":
        return "equal" if judged.value == math.inf else f"SNR {judged.value:.1f} dB"
    if judged.measure == "cosine":
        return f"cosine {judged.value:.5f}"
    return f"{share(judged.value)} {judged.measure}"


def share(value: float) -> str:
    """A share in percent, with two digits that count."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def mixed(parts: Iterable[Judged], kind: str) -> Judged:
    """An output of several parts: what its worst part is."""
    found = max(parts, key=lambda part: part.loss)
    return Judged(kind, found.measure, found.value, found.loss, found.loss_error)
