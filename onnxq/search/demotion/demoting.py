"""Where the fastest model is outside the accuracy budget: one nearly as fast that is inside."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.search import choice as chooser
from onnxq.search.choice import CLEANED, FLOAT, MIXED, STATIC, STORED, Layer, LayerChoice
from onnxq.search.demotion.confidence import Confidence
from onnxq.search.demotion.fewest import Attempt, fewest, noise_left
from onnxq.search.demotion.full_speed import OUT_OF_REACH, STORED_BETTER, WEIGHTS_MISS, FullSpeed
from onnxq.search.demotion.stored_weights import LITTLE, affordable, that_matter, together, weight_of
from onnxq.search.demotion.worth import by_bytes, by_time, lost_times
from onnxq.search.layers import FORMS
from onnxq.search.mixing import Mixing
from onnxq.search.trials import Trials

_NEARLY = 0.8
"""Share of the static model's speed from which stored weights are worth as much as a static model in part."""

_SPARE_SHARE = 0.4
"""Share of the time that is left which giving static layers back leaves to sparing stored weights."""

_WORTH_SPARING = 0.85
"""Share of the smallest file that is inside which a file of partly stored weights may have."""

_DOUBT = 2.0
"""Factor by which noise that is predicted from that of single layers may be too large."""

_GAIN_DOUBT = 8.0
"""The same where it decides whether layers are given back at all: what a start loses that is far outside is known from
a few samples, and falls faster than with the size of the noise."""

_SPARABLE = 30.0
"""Factor of the noise from which so many weights have to stay float that little is saved: 15 dB."""

_ROOM = 0.5
"""Share of the noise allowed that 8-bit weights may make by themselves: with more of it a layer that keeps them, and
computes in float, is hardly better than one on integers, and float weights are what helps."""

_BETTER_ROUNDED = 4.0
"""Factor by which weights that are rounded by how they are used make less noise, if it goes very well: 6 dB."""

_MOST_TRIES = 6
"""Models that are built to find how many layers have to be given back."""


@dataclass(frozen=True)
class _Start:
    """What layers are given back from.

    Attributes:
        base: the form that costs accuracy.
        choices: the form of each layer before any is given back.
        trial: the model that has them.
        spare: seconds that have to be left for what comes after.
    """

    base: str
    choices: Mapping[str, LayerChoice]
    trial: Candidate
    spare: float = 0.0


class Demoting:
    """Looks for a model nearly as fast as the fastest one, with less error."""

    def __init__(self, job: Job, trials: Trials, mixing: Mixing) -> None:
        """Start with nothing tried.

        Args:
            job: whose model it is.
            trials: candidates so far, timed and compared.
            mixing: layers that were measured.
        """
        self._job, self._trials, self._mixing = job, trials, mixing
        self._confidence = Confidence(trials)
        self._full_speed = FullSpeed(job, trials, self._confidence)
        self._barely: list[Candidate] = []
        self._spared = False

    def run(self) -> None:
        """Where the fastest model has static layers and too much error, look for one nearly as fast that has less.

        What costs no time comes first: weights rounded by how they are used, other ranges, equalized weights. Then the
        layers that do most damage get a gentler form, or stay float; and where nothing
        static is inside, so do those of the model of stored weights.
        """
        trials = self._trials
        start = self._too_coarse()
        if not self._mixing.measured or (start is None and not self._worth_sparing()):
            return
        kept = None
        if start is not None and not self._weights_forbid(start):
            kept = self._full_speed.run(start)
            if kept is None and not (self._rounded_better() and self._weights_forbid(start, 1.0)):
                kept = self._by_layers(start)
        if kept is None and (self._worth_sparing() or self._has_grown()):
            kept = self._spare_weights()
        if kept is None:  # none is surely inside; the one that is farthest inside serves
            kept = min(self._barely, key=trials.loss, default=None)
        found = [kept, trials.made.get(STORED_BETTER)]
        new = [trial for trial in found if trial is not None and trial.timing is None and not trial.refused]
        if new:
            leaders = chooser.ranked(trials.outcomes())
            trials.time([*(trials.made[leader.name] for leader in leaders if leader.name != FLOAT), *new])

    def _by_layers(self, start: Candidate) -> Candidate | None:
        """A candidate with some layers in another form than in the start; None if none is inside."""
        least = self._full_speed.refined(start)
        if (better := self._with_float_weights(least)) is not None:
            if not better.refused:
                return better
            least = better
        kept = self._spare_weights() if self._nearly_as_fast(start) else None
        return self._give_back(least) if kept is None else kept

    def _rounded_better(self) -> bool:
        """Whether static weights were rounded by how they are used, so that it is known what that is worth."""
        return any(trial.recipe.algorithm == "gptq" and trial.comparison for trial in self._trials.made.values())

    def _weights_forbid(self, start: Candidate, rounding: float = _BETTER_ROUNDED) -> bool:
        """Whether 8-bit weights alone make so much noise that no model with static layers is inside and still faster.

        They are a part of the noise of a static layer, and the only part of which it is known in advance that other
        ranges do nothing about it.

        Args:
            start: a candidate with static layers.
            rounding: factor by which other rounding may make less noise.
        """
        trials, stored = self._trials, self._trials.made.get(STORED)
        if stored is None or stored.comparison is None or not trials.by_budget or self._job.data is None:
            return False
        known = [stored]
        if (
            rounding == 1.0
            and (better := self._full_speed.stored_better()) is not None
            and better.comparison is not None
        ):
            known.append(better)
        excess = min(map(self._confidence.excess, known))
        if excess <= WEIGHTS_MISS**2:
            return False
        self._mixing.find_damage(stored.recipe, STORED)
        forms = self._as_they_are(start)
        layers = chooser.by_damage(self._mixing.layers.values(), STORED)
        static = [layer for layer in layers if forms[layer.name].form == STATIC]
        order = by_time(static, STATIC, FLOAT, STORED)
        floats = {layer.name: FLOAT for layer in layers}
        times = self._times(order, floats, start)
        if times is None:
            return False
        # What is not static can have float weights at no cost in time.
        left = noise_left(
            [[layer] for layer in [*(one for one in layers if one not in static), *order]], STORED, floats
        )
        return not self._gains(left[len(layers) - len(order) :], times, excess, _DOUBT * rounding)

    # Layers given back.

    def _give_back(self, least: Candidate) -> Candidate | None:
        """A candidate with the layers that do most damage in a gentler form, or in float; None if none is inside."""
        trials, mixing = self._trials, self._mixing
        room = self._weights_leave_room(least)
        mixing.find_damage(least.recipe, STATIC, *(FORMS if room else ()))
        as_it_is = self._as_they_are(least)
        static = [layer for layer in chooser.by_damage(mixing.layers.values()) if as_it_is[layer.name].form == STATIC]
        gentle = {layer.name: chooser.gentler(layer) for layer in static}
        # Stored weights come last, and need time of their own.
        spare = _SPARE_SHARE * trials.seconds_left if self._stored_misses() else 0.0
        plan = _Start(STATIC, as_it_is, least, spare)
        kept = None
        if room and set(gentle.values()) != {FLOAT}:
            kept = self._fewest([[layer] for layer in static], gentle, plan, "gentler")
        if kept is None:
            floats = dict.fromkeys(gentle, FLOAT)
            kept = self._fewest([[layer] for layer in static], floats, plan, "float")
        return kept

    def _with_float_weights(self, start: Candidate) -> Candidate | None:
        """The start with float weights in layers that compute in float anyway; None where that is no better.

        They cost bytes and no time, and may be what costs accuracy: filters in front of a logarithm, for instance.
        """
        trials, mixing = self._trials, self._mixing
        choices = self._as_they_are(start)
        stored = [layer for layer in mixing.layers.values() if choices[layer.name].form == STORED]
        if not stored or self._stored_are_quiet():
            return None
        if trials.out_of_time("stored weights were not tried in float"):
            return None
        mixing.find_damage(start.recipe, STORED, only=[layer.name for layer in stored])
        chosen = that_matter(stored, self._weights(stored), self._allowed(start), start.size, self._job.prepared.size)
        if not chosen:
            return None
        for layer in chosen:
            error = layer.forms[STORED].error_db
            choices[layer.name] = LayerChoice(FLOAT, f"stored in 8 bits its weight costs accuracy ({error:.1f} dB)")
        what = f"{len(chosen)} float weights)"
        name = f"{start.name[:-1]}, {what}" if start.name.endswith(")") else f"{start.name} ({what}"
        trial = mixing.build(name, STATIC, choices, start.recipe)
        if trial is None or trial.session is None:
            return None
        trials.compare([trial])
        return trial if not trial.refused or trials.loss(trial) < trials.loss(start) else None

    def _allowed(self, start: Candidate) -> float:
        """Noise at the outputs, relative to the signal, that a candidate may have for the limits."""
        found = None if start.comparison is None else start.comparison.sqnr_db
        return float(10 ** (-(found or 0.0) / 10)) / max(self._confidence.excess(start), 1.0)

    def _stored_are_quiet(self) -> bool:
        """Whether all weights in 8 bits make so little noise that those of a part of the layers do not matter."""
        stored = self._trials.made.get(STORED)
        return stored is not None and stored.comparison is not None and self._confidence.excess(stored) < LITTLE

    def _as_they_are(self, trial: Candidate) -> dict[str, LayerChoice]:
        """The forms of the layers in a candidate, with their reasons where there are some."""
        forms = {name: self._mixing.form(trial, name) for name in self._mixing.layers}
        as_it_is = {name: LayerChoice(form, f"as in {trial.name}") for name, form in forms.items()}
        return as_it_is | self._trials.reasons.get(trial.name, {})

    def _weights(self, layers: Sequence[Layer]) -> list[Hashable]:
        """What layers read as their weights, by name."""
        nodes = {node.name or "": node for node in self._job.prepared.model.graph}
        return [weight_of(nodes[layer.name]) for layer in layers]

    def _weights_leave_room(self, like: Candidate) -> bool:
        """Whether 8-bit weights, rounded as those of a trial, cost so little alone that others need not be float."""
        trials, stored = self._trials, self._trials.made.get(STORED)
        if stored is None or not trials.by_budget or stored.comparison is None:
            return True
        near = _ROOM < self._confidence.excess(stored) <= OUT_OF_REACH[1]
        if near and like.recipe.algorithm is not None:
            better = self._full_speed.stored_better()
            stored = better if better is not None and better.comparison is not None else stored
        return self._confidence.excess(stored) <= _ROOM

    def _times(self, order: Sequence[Layer], forms: Mapping[str, str], start: Candidate) -> list[float] | None:
        """Time of the model by the number of layers given back, float being 1; None where times are not known."""
        timing = self._trials.made[start.name.partition(" (")[0]].timing
        lost = lost_times(order, STATIC, forms)
        if timing is None or not lost or lost[-1] <= 0:
            return None
        inside = [outcome.ratio for outcome in self._trials.outcomes() if not outcome.refused]
        first, last = 1 / timing.ratio, 1 / max(inside, default=1.0)
        return [first + (max(last, first) - first) * part / lost[-1] for part in lost]

    # Stored weights.

    def _worth_sparing(self) -> bool:
        """Whether stored weights, which are outside, would make a file that is smaller by far than those inside."""
        trials = self._trials
        smallest = min((outcome.size for outcome in trials.outcomes() if not outcome.refused), default=math.inf)
        if not self._stored_misses() or self._confidence.excess(trials.made[STORED]) > _SPARABLE:
            return False
        return trials.made[STORED].size <= chooser.SMALL * smallest

    def _has_grown(self) -> bool:
        """Whether the best that is inside is a larger file than the user's: it gives way to any that is not."""
        inside = chooser.ranked(self._trials.outcomes())
        return bool(inside) and inside[0].size > self._job.prepared.size

    def _cleaned_is_inside(self) -> bool:
        """Whether there is the prepared float model, which is as fast as stored weights and surer to be inside."""
        cleaned = self._trials.made.get(CLEANED)
        return cleaned is not None and not cleaned.refused

    def _stored_misses(self) -> bool:
        """Whether the model of stored weights runs and is outside the budget."""
        stored = self._trials.made.get(STORED)
        return stored is not None and bool(stored.refused) and stored.comparison is not None

    def _nearly_as_fast(self, start: Candidate) -> bool:
        """Whether stored weights are about as fast as the static model, so that layers given back gain nothing more."""
        stored = self._trials.made.get(STORED)
        if stored is None or stored.timing is None or start.timing is None:
            return False
        return stored.timing.ratio >= _NEARLY * start.timing.ratio

    def _spare_weights(self) -> Candidate | None:
        """Stored weights, but for the layers whose rounded weights do most damage; None where that is not needed."""
        trials, mixing = self._trials, self._mixing
        stored = trials.made.get(STORED)
        if stored is None or not self._stored_misses() or self._spared:
            return None
        self._spared = True
        better = self._full_speed.stored_better()
        if better is not None and not better.refused:
            return better
        if better is not None and better.comparison is not None and trials.loss(better) < trials.loss(stored):
            stored = better
        mixing.find_damage(stored.recipe, STORED)
        layers = chooser.by_damage(mixing.layers.values(), STORED)
        order = by_bytes(together(layers, self._weights(layers)), STORED)
        inside = [outcome.size for outcome in trials.outcomes() if not outcome.refused]
        largest = self._job.prepared.size if self._has_grown() else _WORTH_SPARING * min(inside, default=math.inf)
        count = affordable(order, stored.size, largest)
        floats = {layer.name: FLOAT for layer in layers}
        left = noise_left(order, STORED, floats)
        if not self._has_grown() and left[count] > _DOUBT / max(self._confidence.excess(stored), 1.0):
            return None
        order = order[:count]
        as_it_is = {layer.name: LayerChoice(STORED, "as in w8") for group in order for layer in group}
        return self._fewest(order, floats, _Start(STORED, as_it_is, stored), "of float weights")

    # The fewest layers.

    def _fewest(
        self, order: Sequence[Sequence[Layer]], forms: Mapping[str, str], start: _Start, how: str
    ) -> Candidate | None:
        """The model with the fewest layers in another form, by groups, that keeps the budget; None where none does.

        A model that is picked because it is just inside may be outside on other samples: the more are tried, the surer
        it has to be inside (`Confidence`).
        """
        trials, confidence = self._trials, self._confidence
        good: dict[int, Candidate] = {}
        tried: list[int] = []
        left, times = noise_left(order, start.base, forms), None
        longest = self._longest()
        if start.base == STATIC:
            times = self._times([layer for group in order for layer in group], forms, start.trial)
            if times is not None and not self._gains(left, times, confidence.excess(start.trial), _GAIN_DOUBT):
                return None

        def attempt(count: int) -> Attempt | None:
            if trials.out_of_time("no further layers were given a gentler form") or trials.seconds_left < start.spare:
                return None
            if len(tried) >= _MOST_TRIES:
                return None
            tried.append(count)
            self._job.clock.report("accuracy")(count, len(order))
            changed = [layer for group in order[:count] for layer in group]
            trial = self._with_other(changed, forms, start, f"{MIXED} ({len(changed)} {how})")
            if trial is None:
                return Attempt(False)
            runs = trial.session is not None and not trial.refused
            if not runs:
                return Attempt(False, math.inf if trial.size > self._job.prepared.size else None)
            trials.compare([trial])
            if not trial.refused and confidence.is_sure(trial, len(tried)):
                good[count] = trial
                return Attempt(True)
            if not trial.refused and (start.base == STATIC or not self._cleaned_is_inside()):
                self._barely.append(trial)
            return Attempt(False, confidence.excess(trial, len(tried)))

        found = fewest(left, confidence.excess(start.trial), attempt, times, longest)
        return None if found is None else good[found]

    def _gains(self, left: Sequence[float], times: Sequence[float], excess: float, doubt: float) -> bool:
        """Whether a model would still be the fastest with as many layers given back as its errors ask for."""
        need = doubt / max(excess, 1.0)
        count = next((index for index, share in enumerate(left) if share <= need), len(left) - 1)
        return times[count] < self._longest()

    def _longest(self) -> float:
        """Time from which a model is no faster than the fastest that is inside, float being 1."""
        reached = max((outcome.ratio for outcome in self._trials.outcomes() if not outcome.refused), default=1.0)
        return 1 / (reached * (1 + chooser.NOISE))

    def _with_other(
        self, changed: Sequence[Layer], forms: Mapping[str, str], start: _Start, name: str
    ) -> Candidate | None:
        """The start with some layers in another form; None where that is a model that there is already."""
        choices = dict(start.choices)
        for layer in changed:
            error = layer.forms[start.base].error_db
            what = "static costs" if start.base == STATIC else f"{start.base} costs"
            reason = f"{what} accuracy here ({error:.1f} dB), and the whole model missed the accuracy budget"
            choices[layer.name] = LayerChoice(forms[layer.name], reason)
        return self._mixing.build(name, start.base, choices, start.trial.recipe)

    def _too_coarse(self) -> Candidate | None:
        """The fastest candidate with static layers that is outside the accuracy budget and faster than all inside.

        Times of so short an alternation tell a few percent as little as nothing: of those about as fast as the fastest
        it is the one that is closest to float.
        """
        inside = chooser.ranked(self._trials.outcomes())
        reached = max((outcome.ratio for outcome in inside), default=0.0) * (1 + chooser.NOISE)
        ratios = {
            trial.name: trial.timing.ratio
            for trial in self._trials.made.values()
            if trial.name in (STATIC, MIXED) and trial.refused and trial.comparison is not None and trial.timing
        }
        fastest = max(ratios.values(), default=0.0)
        if fastest <= reached or self._job.data is None:
            return None
        least = max(reached, fastest * (1 - chooser.SMALL_GAIN - chooser.NOISE))
        made = self._trials.made
        tied = [name for name in sorted(ratios, key=lambda name: (-ratios[name], name)) if ratios[name] >= least]
        return made[min(tied, key=lambda name: self._trials.loss(made[name]))]
