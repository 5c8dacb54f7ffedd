"""Models whose layers have several forms: which are the fastest, and what each costs in accuracy."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.graph.files import io
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.compensating import compensates
from onnxq.recipe.recipe import Recipe
from onnxq.search import choice as chooser
from onnxq.search import layers
from onnxq.search.choice import DYNAMIC, FLOAT, MIXED, STATIC, STORED, Layer, LayerChoice
from onnxq.search.damage import measure_damage
from onnxq.search.trials import Trials
from onnxq.stats.statistics import Statistics

_LAYERS_SHARE = 0.5
"""Share of the time that is left which measuring layers may take."""

_DAMAGE_SHARE = 0.03
"""Share of the time that is left which finding the layers that cost accuracy may take."""

_WIDE_SHARE = 0.08
"""The same where the damage is that of several samples."""

_DAMAGE_FEEDS = 8
"""Samples besides the first on which the damage of layers is measured then."""

_SLOW_DAMAGE = 2.0
"""Seconds that finding the damage of layers takes one by one, from which that of their other forms may stand for it."""


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
        self._spread: dict[tuple[str, str], float] = {}

    @property
    def _sample(self) -> Feed:
        """What layers are measured on: of a workload the pass that it has most of."""
        used = self._job.workload
        return self._trials.feed if used is None else used.heaviest

    def _samples(self) -> Iterator[Feed]:
        """That sample, and further ones, evenly spaced."""
        yield self._sample
        data = self._job.data
        if data is None or self._job.workload is not None:
            return
        count = data.calibration.count_feeds()
        chosen = set(np.linspace(0, count - 1, min(count, _DAMAGE_FEEDS + 1)).astype(int)[1:].tolist())
        for index, feed in enumerate(data.calibration):
            if index in chosen:
                yield feed

    def measure(self) -> None:
        """Measure layers and, where some are faster in another form than a whole model gives them, build that."""
        job, trials = self._job, self._trials
        running = {name: trial for name, trial in trials.made.items() if not trial.refused}
        plans = {name: (trial.recipe, trial.plan) for name, trial in running.items()}
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
            self.build(MIXED, base, chooser.fastest_forms(found.values(), base))

    def build(
        self, name: str, base: str, choices: Mapping[str, LayerChoice], like: Recipe | None = None
    ) -> Candidate | None:
        """Build and open a model whose layers have the forms that were chosen; None where there is no such model.

        Args:
            name: of the candidate.
            base: preset of all that has no form of its own.
            choices: by name of the layer.
            like: a recipe whose ranges, rewrites and rounding it has; None takes the user's.
        """
        given = self._job.recipe
        if like is not None:  # without the rules that it has
            given = replace(given, range=like.range, equalize=like.equalize, algorithm=like.algorithm)
        forms = {layer: choice.form for layer, choice in choices.items()}
        recipe = chooser.as_recipe(given, base, self.layers.values(), forms)
        if recipe.rules == given.rules:
            return None
        trial = self._trials.build(name, recipe)
        if trial is not None:
            self._trials.reasons[name] = dict(choices)
            self._trials.open(trial)
        return trial

    @property
    def measured(self) -> bool:
        """Whether there are layers whose errors can be found."""
        return self._bench is not None

    def find_damage(
        self, like: Recipe, form: str, *others: str, only: Collection[str] | None = None, widely: bool = False
    ) -> None:
        """What a form of each layer alone does to the outputs, after what it, and others, do to the layer's own.

        Args:
            like: a recipe; where it rounds weights by how they are used, layers have such weights.
            form: whose damage is wanted.
            others: forms whose errors at the layer itself are wanted.
            only: names of layers; None takes all.
            widely: on several samples, if there is time.
        """
        assert self._bench is not None
        bench, left = self._bench, self._trials.seconds_left
        rounded = self._trials.rounded if compensates(like) else None
        if rounded is not bench.rounded:  # what was measured is of other weights
            bench.rounded = rounded
            for layer in self.layers.values():
                known = layer.forms.items()
                self._spread.update(
                    {(layer.name, name): gain for name, found in known if (gain := found.spread) is not None}
                )
                layer.forms = {name: replace(found, sqnr_db=None, model_db=None) for name, found in known}
        chosen = {name: layer for name, layer in self.layers.items() if only is None or name in only}
        bench.deadline = time.monotonic() + _LAYERS_SHARE * left
        layers.measure_errors(bench, chosen, (form, *others), self._sample, self._job.clock)
        timing = self._trials.float_timing
        slow = timing is not None and len(chosen) * timing.round_ms / 1e3 > _SLOW_DAMAGE
        for layer in chosen.values():
            self._as_it_spread(layer, form, *(layers.FORMS if slow else ()))
        bench.deadline = time.monotonic() + (_WIDE_SHARE if widely else _DAMAGE_SHARE) * left
        feeds = self._samples() if widely else [self._sample]
        measure_damage(bench, chosen, form, feeds, self._job.clock)

    def _as_it_spread(self, layer: Layer, form: str, *others: str) -> None:
        """Take it that noise spreads from a layer to the outputs as other noise was seen to.

        Args:
            layer: changed in place.
            form: whose own error is known, and whose damage is not.
            others: forms whose noise may stand for its own; how noise spreads is a matter of what comes behind.
        """
        found = layer.forms.get(form)
        known = [self._spread.get((layer.name, other)) for other in (form, *others)]
        known += [layer.forms[other].spread for other in others if other in layer.forms]
        spread = next((gain for gain in known if gain is not None), None)
        if found is not None and found.sqnr_db is not None and found.model_db is None and spread is not None:
            layer.forms[form] = replace(found, model_db=found.sqnr_db + spread)

    def form(self, trial: Candidate, name: str) -> str:
        """The form that a layer has in a candidate."""
        if name not in trial.plan.nodes:
            return FLOAT
        return layers.form_of(trial.plan, name, trial.recipe, self._job.prepared.sources)


def _of_prepared(statistics: Statistics | None, job: Job) -> Statistics | None:
    """The ranges, if they are of the model as it was prepared and no rewrite came between."""
    if statistics is None or statistics.model_hash != io.model_hash(job.prepared.model):
        return None
    return statistics
