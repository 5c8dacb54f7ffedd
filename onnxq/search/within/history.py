"""What a search for accuracy knows: its limits, what a recipe gave, which nodes hurt, and the trail of all of that."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onnxq.recipe.recipe import Recipe
from onnxq.verify.budget import Limits

KEPT = "better, kept"
"""Verdict on a change that later attempts build on."""

GIVEN_UP = "given up for lack of time"
"""Verdict on an attempt that was broken off: nothing is known of the recipe."""


@dataclass(frozen=True)
class StepOutcome:
    """What one recipe gives.

    Attributes:
        drop: fall of the metric, in its units; None where it is not asked for.
        sqnr_db: of the worst output, in dB; None where there is none.
        cost: estimated time of one inference, in microseconds.
        size: bytes.
        failure: why the model cannot be used whatever its figures; empty where it can.
        gave_up: the attempt was broken off for lack of time.
        loss: expected share of changed decisions; None where nothing could be judged.
        note: what is to be said of it beside figures; empty where nothing is.
    """

    drop: float | None = None
    sqnr_db: float | None = None
    cost: float = math.inf
    size: int = 0
    failure: str = ""
    gave_up: bool = False
    loss: float | None = None
    note: str = ""

    def shortfall(self, limits: Limits) -> float:
        """How far outside the limits, in units of the metric and dB; 0 inside, inf where the model cannot be used."""
        if self.failure:
            return math.inf
        missing = []
        if limits.max_drop is not None:
            missing.append(math.inf if self.drop is None else self.drop - limits.max_drop)
        if limits.min_sqnr is not None:
            missing.append(math.inf if self.sqnr_db is None else limits.min_sqnr - self.sqnr_db)
        if limits.max_loss is not None:
            missing.append(math.inf if self.loss is None else 100 * (self.loss - limits.max_loss))
        return sum(math.inf if math.isnan(points) else max(0.0, points) for points in missing)


@dataclass(frozen=True)
class Suspect:
    """A quantized node and what is known of the damage it does.

    Attributes:
        node: its name.
        damage: noise over signal at the model's outputs where it alone is quantized; 0 where not measured.
        range: range method that would help it; None where its range is not at fault.
        by_weights: most of its error comes from rounding its weights.
        ranged: its output has a range, which could be another one.
        price: estimated microseconds that it takes longer in float.
    """

    node: str
    damage: float = 0.0
    range: str | None = None
    by_weights: bool = False
    ranged: bool = True
    price: float = 0.0


@dataclass(frozen=True)
class Step:
    """One line of the trail.

    Attributes:
        tried: what was changed, in words.
        outcome: what that gave.
        seconds: time that it took.
        inside: whether the limits were kept.
        verdict: what became of it, in words.
        recipe: what was tried, in full.
    """

    tried: str
    outcome: StepOutcome
    seconds: float
    inside: bool
    verdict: str
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain data; figures that are not there are None."""
        figures = asdict(self.outcome)
        failure = figures.pop("failure")
        cost = figures.pop("cost")
        figures.pop("gave_up")
        note = figures.pop("note")
        return {
            "tried": self.tried,
            **figures,
            "estimated_us": round(cost, 1) if math.isfinite(cost) else None,
            "seconds": round(self.seconds, 3),
            "inside": self.inside,
            "kept": self.inside or self.verdict == KEPT,
            "verdict": (failure or self.verdict) + (f"; {note}" if note else ""),
        }
