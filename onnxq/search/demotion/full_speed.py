"""What costs no time at inference and may bring a model inside: better rounded weights, other ranges."""

from __future__ import annotations

from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.plan.decisions import WEIGHT
from onnxq.recipe.recipe import Recipe
from onnxq.search.choice import STORED
from onnxq.search.comparing import ENOUGH
from onnxq.search.demotion.confidence import Confidence
from onnxq.search.trials import Trials

OUT_OF_REACH = 1000.0, 30.0
"""Factors of the noise that are not taken away by better rounded weights, 30 dB, and by other ranges, 15 dB."""

_LITTLE = 0.15
"""Share of the noise from which rounded weights are worth the seconds that better ones take."""

STORED_BETTER = f"{STORED} (gptq)"

WEIGHTS_MISS = 1.5
"""Times the budget that stored weights lose from which other ranges are in vain."""

_TRIES: tuple[tuple[str, dict[str, object]], ...] = (
    ("gptq", {"algorithm": "gptq"}),
    ("minmax", {"range": "minmax"}),
    ("percentile", {"range": "percentile"}),
    ("equalized", {"equalize": True}),
)
"""Entropy is never the best range by much, and often the worst."""


class FullSpeed:
    """Builds the same layers in the same forms with less error."""

    def __init__(self, job: Job, trials: Trials, confidence: Confidence) -> None:
        """Start with nothing tried."""
        self._job, self._trials, self._confidence = job, trials, confidence

    def run(self, start: Candidate) -> Candidate | None:
        """The same layers in the same forms with better weights or other ranges; None if none is inside."""
        trials, best, said = self._trials, start, ""
        for what, options in _TRIES:
            if self._confidence.excess(best) > OUT_OF_REACH[what != "gptq"]:
                continue
            if not self.leaves_open(what) or (what == "gptq" and not self._weights_matter(start)):
                continue
            if trials.out_of_time("no other ranges were tried"):
                return None
            trial = self.like(f"{start.name} ({said}{what})", best, best.recipe.override(**options))
            if trial is None:
                continue
            if not trial.refused:
                return trial
            if what == "gptq":
                if self._closer(trial, best):
                    best, said = trial, f"{what}, "
                if self._weights_alone_miss():
                    return None
        return None

    def leaves_open(self, what: str) -> bool:
        """Whether the user left to us what a try would change."""
        recipe = self._job.recipe
        if what == "gptq":
            return recipe.algorithm is None and self._job.data is not None
        if what == "equalized":  # which is done for layers' errors, as equalizing is not
            return not recipe.equalize and not self._job.prepared.evened
        return recipe.range == Recipe().range

    def _weights_matter(self, start: Candidate) -> bool:
        """Whether rounded weights make a share of the noise that is worth the seconds which better ones take."""
        stored = self._trials.made.get(STORED)
        if stored is None or stored.comparison is None or start.comparison is None:
            return True
        weights, all_of_it = stored.comparison.sqnr_db, start.comparison.sqnr_db
        if weights is None or all_of_it is None:
            return True
        return 10 ** ((all_of_it - weights) / 10) > _LITTLE

    def _weights_alone_miss(self) -> bool:
        """Whether 8-bit weights cost more than the budget by themselves, however they are rounded.

        No range of activations brings that back.
        """
        stored, limit = self._trials.made.get(STORED), WEIGHTS_MISS**2
        if stored is None or not self._trials.by_budget or self._confidence.excess(stored) <= limit:
            return False
        better = self.stored_better()
        return better is None or better.comparison is None or self._confidence.excess(better) > limit

    def stored_better(self) -> Candidate | None:
        """Stored weights that were rounded by how they are used; None where there are none."""
        name, stored = STORED_BETTER, self._trials.made.get(STORED)
        packs = stored is not None and bool(stored.plan.counts(WEIGHT))  # which would need other statistics
        if name not in self._trials.made and stored is not None and not packs and self.leaves_open("gptq"):
            self.like(name, stored, stored.recipe.override(algorithm="gptq"))
        return self._trials.made.get(name)

    def like(self, name: str, model: Candidate, recipe: Recipe) -> Candidate | None:
        """A candidate that differs from another one in its recipe alone; None where it cannot be built."""
        trial = self._trials.build(name, recipe)
        if trial is not None:
            self._trials.reasons[name] = dict(self._trials.reasons.get(model.name, {}))
            self._trials.open(trial)
            self._trials.compare([trial])
        return trial

    def _closer(self, one: Candidate, other: Candidate) -> bool:
        """Whether a trial is closer to float than another: by its loss, or by its noise where few samples were seen."""
        left, right = one.comparison, other.comparison
        if left is None or right is None:
            return right is None
        if min(left.samples, right.samples) <= ENOUGH and None not in (left.sqnr_db, right.sqnr_db):
            return left.sqnr_db > right.sqnr_db  # type: ignore[operator]
        return self._trials.loss(one) < self._trials.loss(other)

    def refined(self, start: Candidate) -> Candidate:
        """The start, or that of the models which differ from it by what costs no time that is closest to float."""
        best = start
        for trial in self._trials.made.values():
            if trial.recipe.reconstructs != start.recipe.reconstructs:
                continue  # what blocks learned is of that model alone
            if trial.name.startswith(f"{start.name} (") and self._closer(trial, best):
                best = trial
        return best
