"""Which nodes may keep 8-bit activations where all of them with 16 are inside the limits: pure, as `strategy` is.

What many nodes do to the outputs together cannot be told from what each does alone while the signal is lost anyway.
It can where everything else is exact, so that the search starts from 16 bits everywhere and gives back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxq.search.within.history import StepOutcome

_GROUPS = 16
"""Groups of neighbours that the nodes are divided into at first."""

_LEVELS = 3
"""How many times; each time what is left in 16 bits is divided in halves."""


@dataclass(frozen=True)
class Widening:
    """What the search asks of its caller.

    Attributes:
        attempt: what a model gives in which these nodes have 16-bit activations.
        inside: whether an outcome keeps the limits.
        out_of_time: whether no further attempt may be made.
    """

    attempt: Callable[[Sequence[str]], StepOutcome]
    inside: Callable[[StepOutcome], bool]
    out_of_time: Callable[[], bool]

    def fewest(self, nodes: Sequence[str]) -> list[str]:
        """The nodes that keep 16 bits, from all of them, which is inside the limits.

        Groups of neighbours get 8 bits one at a time. They are sorted by the noise that this makes at the outputs for
        the time that it saves, and as many as are inside the limits together keep 8 bits. What is left is divided.

        Args:
            nodes: all nodes, in the order of the graph.
        """
        wide = list(nodes)
        outcome = self.attempt(wide)
        size = max(1, math.ceil(len(wide) / _GROUPS))
        for _ in range(_LEVELS):
            groups = [wide[start : start + size] for start in range(0, len(wide), size)]
            wide, outcome = self._given_back(wide, outcome, groups)
            if size == 1 or self.out_of_time():
                break
            size = math.ceil(size / 2)
        return wide

    def _given_back(
        self, wide: list[str], outcome: StepOutcome, groups: Sequence[Sequence[str]]
    ) -> tuple[list[str], StepOutcome]:
        found: list[tuple[float, Sequence[str]]] = []
        for group in groups:
            if self.out_of_time():
                break
            alone = self.attempt(_less(wide, group)) if len(group) < len(wide) else None
            if alone is not None and self.inside(alone) and alone.cost < outcome.cost:
                noise = max(_noise(alone) - _noise(outcome), 0.0)
                found.append((noise / (outcome.cost - alone.cost), group))
        order = [group for _, group in sorted(found, key=lambda entry: entry[0])]
        enough, too_many = min(1, len(order)), len(order) + 1
        while too_many - enough > 1 and not self.out_of_time():
            middle = (enough + too_many) // 2 if too_many <= len(order) else len(order)
            left = _less(wide, *order[:middle])
            if left and self.inside(self.attempt(left)):
                enough = middle
            else:
                too_many = middle
        if not enough:
            return wide, outcome
        left = _less(wide, *order[:enough])
        return left, self.attempt(left)


def _less(nodes: Sequence[str], *groups: Sequence[str]) -> list[str]:
    gone = {node for group in groups for node in group}
    return [node for node in nodes if node not in gone]


def _noise(outcome: StepOutcome) -> float:
    """Noise over signal; where a model has no SQNR, the fall of the metric."""
    if outcome.sqnr_db is None:
        return outcome.drop or 0.0
    return float(10.0 ** (-outcome.sqnr_db / 10.0))
