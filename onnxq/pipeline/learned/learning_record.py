"""What letting blocks learn came to: which models were tried, which one was taken, and in how much time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from onnxq.verify.loss import share


@dataclass(frozen=True)
class TriedModel:
    """A whole model that was compared with float.

    Attributes:
        start: how its weights were rounded before anything learned.
        learned: whether its blocks learned from there.
        sqnr_db: of samples that nothing learned from; None where there is none.
        loss: expected share of decisions that change on them; None where nothing could be judged.
    """

    start: str
    learned: bool
    sqnr_db: float | None
    loss: float | None

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.start}, blocks learned" if self.learned else self.start


@dataclass
class LearningRecord:
    """What letting blocks learn came to.

    Attributes:
        models: all that were compared; the first is what there is without learning.
        taken: place of the one that was taken.
        reason: why nothing was taken over; empty where something was.
        seconds: on the clock, all comparisons included.
        steps: that blocks made.
        planned: that they make where time suffices.
        cut: what ended learning early, in words; empty where nothing did.
        notes: warnings, one line each.
    """

    models: list[TriedModel] = field(default_factory=list)
    taken: int = 0
    reason: str = ""
    seconds: float = 0.0
    steps: int = 0
    planned: int = 0
    cut: str = ""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        facts = asdict(self)
        facts.pop("notes")
        return {
            **facts,
            "models": [{"name": model.name, **asdict(model)} for model in self.models],
            "taken": self.models[self.taken].name if self.models else None,
            "seconds": round(self.seconds, 3),
            "words": self.words(),
        }

    def words(self) -> str:
        """One phrase: what it started from, what that won, and in how much time."""
        took = f"in {self.seconds:.0f} s" + (f", {self.cut}" if self.cut else "")
        if not self.models:
            return f"nothing learned {took}"
        before, after = self.models[0], self.models[self.taken]
        if before is after:
            return f"blocks learned and won nothing {took}" + (f": {self.reason}" if self.reason else "")
        figures = []
        if before.sqnr_db is not None and after.sqnr_db is not None:
            figures.append(f"SQNR {before.sqnr_db:.1f} -> {after.sqnr_db:.1f} dB")
        if before.loss is not None and after.loss is not None:
            figures.append(f"loss {share(before.loss)} -> {share(after.loss)}")
        told = f"{after.name}: {', '.join([*figures, 'held out']) if figures else 'taken'}, {took}"
        return told if after.learned else f"{told}; blocks won nothing: {self.reason}"
