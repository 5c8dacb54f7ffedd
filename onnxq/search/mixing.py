"""Models whose layers have several forms: the fastest of each, and gentler ones where accuracy is missed."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxq.data.feeds import Feed
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.types import Node
from onnxq.pipeline.job import Job
from onnxq.recipe.recipe import Recipe
from onnxq.search import choice as chooser
from onnxq.search import layers
from onnxq.search.choice import DYNAMIC, FLOAT, MIXED, STATIC, STORED, Layer, LayerChoice
from onnxq.search.fewest import Attempt, fewest, noise_left
from onnxq.search.trials import Trial, Trials
from onnxq.stats.statistics import Statistics
from onnxq.verify.loss import BUDGET

_LAYERS_SHARE = 0.5
"""Share of the time that is left which measuring layers may take."""

_DAMAGE_SHARE = 0.06
"""Share of the time that is left which finding the layers that cost accuracy may take."""

_NEARLY = 0.8
"""Share of the static model's speed from which stored weights are worth as much as a static model in part."""

_SPARE_SHARE = 0.4
"""Share of the time that is left which giving static layers back leaves to sparing stored weights."""

_WORTH_SPARING = 0.85
"""Share of the smallest file that is inside which a file of partly stored weights may have."""

_DOUBT = 2.0
"""Factor by which noise that is predicted from that of single layers may be too large."""

_OUT_OF_REACH = 1000.0
"""Factor of the noise that other ranges and equalized weights do not take away: 30 dB."""

_SPARABLE = 30.0
"""Factor of the noise from which so many weights have to stay float that little is saved: 15 dB."""

_WEIGHTS_MISS = 1.5
"""Times the budget that stored weights lose from which only float weights help; other forms correct biases besides."""

_RANGES = ("minmax", "percentile")
"""Range methods worth a try beside the default one; entropy is never the best of them by much, and often the worst."""


@dataclass(frozen=True)
class _Demotion:
    """What layers are given back from.

    Attributes:
        base: the form that costs accuracy.
        choices: the form of each layer before any is given back.
        trial: the model that has them.
        spare: seconds that have to be left for what comes after.
    """

    base: str
    choices: Mapping[str, LayerChoice]
    trial: Trial
    spare: float = 0.0


class Mixing:
    """Measures the layers of a job and builds candidates of them.

    Attributes:
        layers: those worth a measurement, by name; empty until `measure` has run.
    """

    def __init__(self, job: Job, trials: Trials) -> None:
        """Start with nothing measured."""
        self._job, self._trials = job, trials
        self.layers: dict[str, Layer] = {}
        self._bench: layers.Bench | None = None
        self._barely: list[Trial] = []
        self._spared = False

    @property
    def _sample(self) -> Feed:
        """What layers are measured on: of a workload the pass that it has most of."""
        used = self._job.workload
        return self._trials.feed if used is None else used.heaviest

    def measure(self) -> None:
        """Measure layers and, where some are faster in another form than a whole model gives them, build that."""
        job, trials = self._job, self._trials
        running = {name: trial.built for name, trial in trials.made.items() if not trial.refused}
        plans = {name: (built.recipe, built.plan) for name, built in running.items()}
        found = layers.find_layers(job.prepared, job.recipe, plans)
        if not found or trials.out_of_time("layers were not measured"):
            return
        self.layers = found
        timed = job.engine is None or job.engine.shows_kernels
        bench = self._bench = layers.Bench(
            job.prepared,
            job.recipe,
            job.target,
            _of_prepared(trials.statistics, job),
            job.timed_threads,
            real=job.data is not None,
            deadline=time.monotonic() + _LAYERS_SHARE * trials.seconds_left,
            engine=job.engine if timed else None,
        )
        forms = [form for form in layers.FORMS if form in plans]
        if not layers.measure(bench, found, self._sample, forms, job.clock):
            trials.cut_short("some layers were not measured")
        base = next((name for name in (STATIC, DYNAMIC, STORED) if name in plans), None)
        if not timed:
            trials.warnings.append(
                f"{job.engine.label if job.engine else ''}: shows no times of single kernels; whole models were timed "
                "there, and no layers were given the form that is fastest for each"
            )
        elif base is not None:
            self._build_mixed(MIXED, base, chooser.fastest_forms(found.values(), base))

    def _build_mixed(
        self, name: str, base: str, choices: Mapping[str, LayerChoice], like: Recipe | None = None
    ) -> Trial | None:
        given = self._job.recipe
        if like is not None:  # its ranges and rewrites, without the rules that it has
            given = replace(given, range=like.range, equalize=like.equalize)
        forms = {layer: choice.form for layer, choice in choices.items()}
        recipe = chooser.as_recipe(given, base, self.layers.values(), forms)
        if recipe.rules == given.rules:
            return None
        trial = self._trials.build(name, recipe)
        if trial is not None:
            trial.reasons = dict(choices)
            self._trials.open(trial)
        return trial

    def form(self, trial: Trial, name: str) -> str:
        """The form that a layer has in a candidate."""
        built = trial.built
        if name not in built.plan.nodes:
            return FLOAT
        return layers.form_of(built.plan, name, built.recipe, self._job.prepared.sources)

    # Accuracy.

    def demote(self) -> None:
        """Where the fastest model has static layers and too much error, look for one nearly as fast that has less.

        What costs no time comes first: other ranges, equalized weights. Then the layers that do most damage get a
        gentler form, or stay float; and where nothing static is inside, so do those of the model of stored weights.
        """
        trials = self._trials
        start = self._too_coarse()
        if self._bench is None or (start is None and not self._worth_sparing()):
            return
        kept = None
        if start is not None:
            kept = self._at_full_speed(start)
            if kept is None and self._nearly_as_fast(start):
                kept = self._spare_weights()
            if kept is None:
                kept = self._give_back(start)
        if kept is None and (self._worth_sparing() or self._has_grown()):
            kept = self._spare_weights()
        if kept is None:  # none is well inside; the one that is farthest inside serves
            kept = min(self._barely, key=trials.loss, default=None)
        if kept is not None:
            leaders = chooser.ranked(trials.outcomes())
            trials.time([*(trials.made[leader.name] for leader in leaders if leader.name != FLOAT), kept])

    def _give_back(self, start: Trial) -> Trial | None:
        """The start with the layers that do most damage in a gentler form, or in float; None if none is inside."""
        trials, in_vain = self._trials, self._weights_alone_miss()
        self._find_damage(STATIC, *(() if in_vain else layers.FORMS))
        least = min(self._refined(start), key=trials.loss)
        forms = {name: self.form(least, name) for name in self.layers}
        order = [layer for layer in chooser.by_damage(self.layers.values()) if forms[layer.name] == STATIC]
        as_it_is = {name: LayerChoice(form, f"as in {start.name}") for name, form in forms.items()} | start.reasons
        gentle = {layer.name: chooser.gentler(layer) for layer in order}
        # Stored weights come last, and need time of their own.
        spare = _SPARE_SHARE * trials.seconds_left if self._stored_misses() else 0.0
        plan = _Demotion(STATIC, as_it_is, least, spare)
        kept = None
        if set(gentle.values()) != {FLOAT} and not in_vain:
            kept = self._fewest(order, gentle, plan, "gentler")
        if kept is None and self._gains(order, least):
            kept = self._fewest(order, dict.fromkeys(gentle, FLOAT), plan, "float")
        return kept

    def _gains(self, order: Sequence[Layer], start: Trial) -> bool:
        """Whether the start would still be the fastest with as many layers in float as its errors ask for."""
        trials = self._trials
        reached = max((outcome.ratio for outcome in trials.outcomes() if not outcome.refused), default=1.0)
        left = noise_left(order, STATIC, {layer.name: FLOAT for layer in order})
        need = _DOUBT / max(trials.excess(start), 1.0)
        count = next((index for index, share in enumerate(left) if share <= need), len(order))
        saved = [max((layer.cost(FLOAT) or 0.0) - (layer.cost(STATIC) or 0.0), 0.0) for layer in order]
        fast = trials.made[start.name.partition(" (")[0]].timing
        if fast is None or sum(saved) <= 0:
            return True
        kept = sum(saved[count:]) / sum(saved)
        return kept / fast.ratio + (1 - kept) / reached < 1 / (reached * (1 + chooser.NOISE))

    def _weights_alone_miss(self) -> bool:
        """Whether 8-bit weights cost more than the budget by themselves: no form of activations brings that back."""
        stored = self._trials.made.get(STORED)
        return (
            stored is not None
            and self._trials.by_budget
            and BUDGET * _WEIGHTS_MISS < self._trials.loss(stored) < math.inf
        )

    def _find_damage(self, form: str, *others: str) -> None:
        """What a form of each layer alone does to the outputs, after what it, and others, do to the layer's own."""
        assert self._bench is not None
        self._bench.deadline = time.monotonic() + _LAYERS_SHARE * self._trials.seconds_left
        layers.measure_errors(self._bench, self.layers, (form, *others), self._sample, self._job.clock)
        self._bench.deadline = time.monotonic() + _DAMAGE_SHARE * self._trials.seconds_left
        layers.measure_damage(self._bench, self.layers, form, self._sample, self._job.clock)

    def _worth_sparing(self) -> bool:
        """Whether stored weights, which are outside, would make a file that is smaller by far than those inside."""
        trials = self._trials
        smallest = min((outcome.size for outcome in trials.outcomes() if not outcome.refused), default=math.inf)
        if not self._stored_misses() or trials.excess(trials.made[STORED]) > _SPARABLE:
            return False
        return trials.made[STORED].size <= chooser.SMALL * smallest

    def _has_grown(self) -> bool:
        """Whether the best that is inside is a larger file than the user's: it gives way to any that is not."""
        inside = chooser.ranked(self._trials.outcomes())
        return bool(inside) and inside[0].size > self._job.prepared.size

    def _stored_misses(self) -> bool:
        """Whether the model of stored weights runs and is outside the budget."""
        stored = self._trials.made.get(STORED)
        return stored is not None and bool(stored.refused) and stored.comparison is not None

    def _nearly_as_fast(self, start: Trial) -> bool:
        """Whether stored weights are about as fast as the static model, so that layers given back gain nothing more."""
        stored = self._trials.made.get(STORED)
        if stored is None or stored.timing is None or start.timing is None:
            return False
        return stored.timing.ratio >= _NEARLY * start.timing.ratio

    def _refined(self, start: Trial) -> list[Trial]:
        """The start, and the models that differ from it by what costs no time."""
        return [start, *(trial for trial in self._trials.made.values() if trial.name.startswith(f"{start.name} ("))]

    def _at_full_speed(self, start: Trial) -> Trial | None:
        """The same layers in the same forms with other ranges, or with equalized weights; None if none is inside."""
        recipe, trials = start.built.recipe, self._trials
        if trials.excess(start) > _OUT_OF_REACH or self._weights_alone_miss():
            return None
        tries = {f"{start.name} ({name})": recipe.override(range=name) for name in _RANGES if name != recipe.range}
        if (
            not recipe.equalize and not self._job.prepared.evened
        ):  # which is done for layers' errors, as equalizing is not
            tries[f"{start.name} (equalized)"] = recipe.override(equalize=True)
        if self._job.recipe.range != Recipe().range:  # the user chose one
            tries = {name: other for name, other in tries.items() if other.range == recipe.range}
        for name, other in tries.items():
            if trials.out_of_time("no other ranges were tried"):
                return None
            trial = trials.build(name, other)
            if trial is None:
                continue
            trial.reasons = dict(start.reasons)
            trials.open(trial)
            trials.compare([trial])
            if not trial.refused:
                return trial
        return None

    def _spare_weights(self) -> Trial | None:
        """Stored weights, but for the layers whose rounded weights do most damage; None where that is not needed."""
        trials = self._trials
        stored = trials.made.get(STORED)
        if stored is None or not self._stored_misses() or self._spared:
            return None
        self._spared = True
        self._find_damage(STORED)
        order = chooser.by_damage(self.layers.values(), STORED)
        inside = [outcome.size for outcome in trials.outcomes() if not outcome.refused]
        largest = self._job.prepared.size if self._has_grown() else _WORTH_SPARING * min(inside, default=math.inf)
        nodes = {node.name or "": node for node in self._job.prepared.model.graph}
        weights = [_weight_of(nodes[layer.name]) for layer in order]
        affordable = _affordable(order, weights, stored.size, largest)
        left = noise_left(order, STORED, {layer.name: FLOAT for layer in order})
        if not self._has_grown() and left[affordable] > _DOUBT / max(trials.excess(stored), 1.0):
            return None
        order = order[:affordable]
        as_it_is = {layer.name: LayerChoice(STORED, "as in w8") for layer in order}
        start = _Demotion(STORED, as_it_is, stored)
        return self._fewest(order, {layer.name: FLOAT for layer in order}, start, "of float weights")

    def _fewest(self, order: Sequence[Layer], forms: Mapping[str, str], start: _Demotion, how: str) -> Trial | None:
        """The model with the fewest layers in another form that keeps the accuracy budget; None where none does.

        A model picked because it is just inside is outside on other samples half of the time: it has to be well inside.
        """
        trials = self._trials
        good: dict[int, Trial] = {}

        def attempt(count: int) -> Attempt | None:
            if trials.out_of_time("no further layers were given a gentler form") or trials.seconds_left < start.spare:
                return None
            self._job.clock.report("accuracy")(count, len(order))
            trial = self._with_other(order[:count], forms, start, f"{MIXED} ({count} {how})")
            if trial is None:
                return Attempt(False)
            runs = trial.session is not None and not trial.refused
            if not runs:
                return Attempt(False, math.inf if trial.size > self._job.prepared.size else None)
            trials.compare([trial])
            if not trial.refused and trials.has_margin(trial):
                good[count] = trial
                return Attempt(True)
            if not trial.refused:
                self._barely.append(trial)
            return Attempt(False, trials.excess(trial))

        found = fewest(noise_left(order, start.base, forms), trials.excess(start.trial), attempt)
        return None if found is None else good[found]

    def _with_other(
        self, changed: Sequence[Layer], forms: Mapping[str, str], start: _Demotion, name: str
    ) -> Trial | None:
        """The start with some layers in another form; None where that is a model that there is already."""
        choices = dict(start.choices)
        for layer in changed:
            error = layer.forms[start.base].error_db
            what = "static costs" if start.base == STATIC else f"{start.base} costs"
            reason = f"{what} accuracy here ({error:.1f} dB), and the whole model missed the accuracy budget"
            choices[layer.name] = LayerChoice(forms[layer.name], reason)
        return self._build_mixed(name, start.base, choices, start.trial.built.recipe)

    def _too_coarse(self) -> Trial | None:
        """The fastest candidate with static layers that is outside the accuracy budget and faster than all inside."""
        inside = chooser.ranked(self._trials.outcomes())
        reached = max((outcome.ratio for outcome in inside), default=0.0) * (1 + chooser.NOISE)
        ratios = {
            trial.name: trial.timing.ratio
            for trial in self._trials.made.values()
            if trial.name in (STATIC, MIXED) and trial.refused and trial.comparison is not None and trial.timing
        }
        fastest = max(sorted(ratios), key=lambda name: ratios[name], default=None)
        if fastest is None or ratios[fastest] <= reached or self._job.data is None:
            return None
        return self._trials.made[fastest]


def _weight_of(node: Node) -> Hashable:
    """The name of the largest constant that a node reads."""
    sizes = {
        value.name: array.size for value in node.inputs if value and (array := walk.const_array(value)) is not None
    }
    return max(sizes, key=lambda name: sizes[name], default=node.name)


def _affordable(order: Sequence[Layer], weights: Sequence[Hashable], size: int, largest: float) -> int:
    """How many layers of a model of stored weights can have float ones before the file is too large.

    Args:
        order: the layers.
        weights: what each reads; what several read is in the file once.
        size: bytes of the model.
        largest: bytes of a file that will do.
    """
    seen: set[Hashable] = set()
    for count, (layer, weight) in enumerate(zip(order, weights, strict=True)):
        if FLOAT in layer.forms and STORED in layer.forms and weight not in seen:
            size += layer.forms[FLOAT].size - layer.forms[STORED].size
        seen.add(weight)
        if size > largest:
            return count
    return len(order)


def _of_prepared(statistics: Statistics | None, job: Job) -> Statistics | None:
    """The ranges, if they are of the model as it was prepared and no rewrite came between."""
    if statistics is None or statistics.model_hash != io.model_hash(job.prepared.model):
        return None
    return statistics
