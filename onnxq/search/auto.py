"""``--preset auto``: build the forms that a model can have, measure them, and take the best that keeps the budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxq.errors import ModelError, RecipeError
from onnxq.graph.files import io
from onnxq.pipeline import gate
from onnxq.pipeline.candidate import Chosen
from onnxq.pipeline.gate import Verdict
from onnxq.pipeline.job import Job
from onnxq.plan.decisions import Plan
from onnxq.recipe.presets import PRESETS
from onnxq.search import choice as chooser
from onnxq.search import layers
from onnxq.search.choice import DYNAMIC, FLOAT, MIXED, STATIC, STORED, TOKEN, Layer, LayerChoice
from onnxq.search.trials import Trial, Trials
from onnxq.stats.statistics import Statistics

_LAYERS_SHARE = 0.5
"""Share of the time that is left which measuring layers may take."""

_DAMAGE_SHARE = 0.3
"""Share of the time that is left which finding the layers that cost accuracy may take."""

_NAMED = 5
"""Candidates that the reason for giving float back names."""


def choose(job: Job) -> Chosen:
    """Try what a model can become and choose by what was measured.

    The first candidate is finished whatever the time budget; what comes after it stops when the time is over.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    return _Search(job).run()


class _Search:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._trials = Trials(job)
        self._layers: dict[str, Layer] = {}
        self._bench: layers.Bench | None = None

    def run(self) -> Chosen:
        """All steps, in the order in which they pay: whole models, layers, a mixed one, accuracy, the choice."""
        trials = self._trials
        self._try_presets()
        if not trials.made:
            return self._nothing()
        try:
            trials.open_float()
        except ModelError as error:
            return self._unmeasured(error)
        for trial in trials.made.values():
            trials.open(trial)
        self._mix()
        trials.time(trials.made.values())
        trials.compare(list(trials.made.values()))
        self._demote()
        self._coarsen()
        trials.time_finalists()
        return self._finish()

    # Candidates.

    def _try_presets(self) -> None:
        job, trials = self._job, self._trials
        names = [STATIC] if job.data is not None or job.statistics is not None else []
        names += [name for name in (STORED, DYNAMIC, TOKEN) if name in PRESETS]
        for done, name in enumerate(names):
            job.clock.report("candidates")(done, len(names))
            if trials.made and trials.out_of_time(f"{name} was not tried"):
                break
            trials.build(name, job.recipe.override(preset=name))

    def _mix(self) -> None:
        """Measure layers and, where some are faster in another form than a whole model gives them, build that."""
        job, trials = self._job, self._trials
        running = {name: trial.built for name, trial in trials.made.items() if not trial.refused}
        plans = {name: (built.recipe, built.plan) for name, built in running.items()}
        found = layers.find_layers(job.prepared, job.recipe, plans)
        if not found or trials.out_of_time("layers were not measured"):
            return
        self._layers = found
        bench = self._bench = layers.Bench(
            job.prepared,
            job.recipe,
            job.target,
            _of_prepared(trials.statistics, job),
            job.timed_threads,
            real=job.data is not None,
            deadline=time.monotonic() + _LAYERS_SHARE * trials.seconds_left,
        )
        forms = [form for form in layers.FORMS if form in plans]
        if not layers.measure(bench, found, trials.feed, forms, job.clock):
            trials.cut_short("some layers were not measured")
        base = next((name for name in (STATIC, DYNAMIC, STORED) if name in plans), None)
        if base is not None:
            self._build_mixed(MIXED, base, chooser.fastest_forms(found.values(), base))

    def _build_mixed(self, name: str, base: str, choices: Mapping[str, LayerChoice]) -> Trial | None:
        job = self._job
        forms = {layer: choice.form for layer, choice in choices.items()}
        recipe = chooser.as_recipe(job.recipe, base, self._layers.values(), forms)
        if recipe.rules == job.recipe.rules:
            return None
        trial = self._trials.build(name, recipe)
        if trial is not None:
            trial.reasons = dict(choices)
            self._trials.open(trial)
        return trial

    def _form(self, trial: Trial, name: str) -> str:
        built = trial.built
        if name not in built.plan.nodes:
            return FLOAT
        return layers.form_of(built.plan, name, built.recipe, self._job.prepared.sources)

    # Accuracy.

    def _demote(self) -> None:
        """Where the fastest model has static layers and too much error, give the worst layers a gentler form."""
        trials = self._trials
        start = self._too_coarse()
        if start is None or self._bench is None:
            return
        self._bench.deadline = time.monotonic() + _DAMAGE_SHARE * trials.seconds_left
        layers.measure_damage(self._bench, self._layers, trials.feed, self._job.clock)
        forms = {name: self._form(start, name) for name in self._layers}
        order = [layer for layer in chooser.by_damage(self._layers.values()) if forms[layer.name] == STATIC]
        as_it_is = {name: LayerChoice(form, f"as in {start.name}") for name, form in forms.items()} | start.reasons
        gentle = {layer.name: chooser.gentler(layer) for layer in order}
        kept = self._fewest(order, gentle, as_it_is, "gentler")
        if kept is None:
            kept = self._fewest(order, dict.fromkeys(gentle, FLOAT), as_it_is, "float")
        if kept is not None:
            leaders = chooser.ranked(trials.outcomes())
            trials.time([*(trials.made[leader.name] for leader in leaders if leader.name != FLOAT), kept])

    def _fewest(
        self, order: Sequence[Layer], forms: Mapping[str, str], as_it_is: Mapping[str, LayerChoice], how: str
    ) -> Trial | None:
        """The model with the fewest layers in another form that keeps the accuracy budget; None where none does.

        First 1, 2, 4 … layers are changed until that is enough, then the fewest that are enough found by bisection.
        """
        trials = self._trials
        enough: tuple[int, Trial] | None = None
        too_few, count = 0, min(1, len(order))
        while count > too_few and not trials.out_of_time("no further layers were given a gentler form"):
            self._job.clock.report("accuracy")(count, len(order))
            choices = dict(as_it_is)
            for layer in order[:count]:
                error = layer.forms[STATIC].error_db
                reason = f"static costs accuracy here ({error:.1f} dB), and the whole model missed the accuracy budget"
                choices[layer.name] = LayerChoice(forms[layer.name], reason)
            trial = self._build_mixed(f"{MIXED} ({count} {how})", STATIC, choices)
            if trial is not None:
                trials.compare([trial])
            if trial is not None and not trial.refused:
                enough = count, trial
            else:
                too_few = count
            count = min(2 * count, len(order)) if enough is None else (too_few + enough[0]) // 2
        return None if enough is None else enough[1]

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

    def _coarsen(self) -> None:
        """Where the best model has kernels that take longer with a scale for each channel, try it with one for all."""
        trials = self._trials
        for outcome in chooser.ranked(trials.outcomes()):
            base = trials.made.get(outcome.name)
            recipe = chooser.by_tensor(base.built.recipe, base.built.plan) if base is not None else None
            if base is None or recipe is None:
                continue
            if trials.out_of_time("one scale for a whole weight was not tried"):
                return
            trial = trials.build(f"{base.name} (per tensor)", recipe)
            if trial is None:
                return
            trial.reasons = dict(base.reasons)
            trials.open(trial)
            trials.time([base, trial])
            trials.compare([trial])
            if trial.timing is None or base.timing is None or trial.refused:
                return
            if trial.timing.ratio <= base.timing.ratio * (1 + chooser.NOISE):
                trial.refused = f"no faster than {base.name}, which is more exact"
            return

    # The choice.

    def _finish(self) -> Chosen:
        trials = self._trials
        while order := chooser.ranked(trials.contenders()):
            if order[0].name == FLOAT:
                return self._float()
            trial = trials.made[order[0].name]
            verdict = self._verify(trial)
            if not trial.refused:
                return self._quantized(trial, verdict)
        if not chooser.insisted(self._job.recipe):
            return self._float()
        # Float is no choice here: the first candidate, with what verification says of it.
        trial = next(iter(trials.made.values()))
        reason, trial.refused = trial.refused, ""
        verdict = self._verify(trial)
        if not verdict.failures:
            verdict.failures.append(f"no form of the nodes that were named keeps the accuracy budget ({reason})")
        return self._quantized(trial, verdict)

    def _verify(self, trial: Trial) -> Verdict:
        """The whole verification of the model that is about to be chosen."""
        job, timing = self._job, self._trials.float_timing
        verdict = gate.verify(trial.content, job, timed=False)
        if verdict.failures:
            trial.refused = "; ".join(verdict.failures)
        elif verdict.comparison is not None:
            trial.comparison = verdict.comparison
            trial.refused = self._trials.outside(verdict.comparison)
        if trial.timing is not None and timing is not None:
            verdict.timings = [timing, replace(trial.timing, name="quantized")]
            if trial.timing.ratio < 1 - chooser.NOISE:
                verdict.warnings.append(gate.slower_than_float(verdict.timings))
        return verdict

    def _quantized(self, trial: Trial, verdict: Verdict) -> Chosen:
        job, built = self._job, trial.built
        name = trial.name.partition(" ")[0]
        warnings = [*self._trials.warnings, *built.warnings]
        if job.data is None and job.statistics is None:
            warnings.insert(0, _what_data_would_buy(name))
        plan = built.plan
        for layer, choice in trial.reasons.items():
            if plan.nodes[layer].reason and choice.form != STATIC and choice.form == self._form(trial, layer):
                plan = plan.with_node(replace(plan.nodes[layer], reason=choice.reason))
        nodes = [(name, node.op_type, self._form(trial, name), node.reason) for name, node in plan.nodes.items()]
        choices = chooser.choices_table(nodes, self._layers, trial.reasons)
        candidates = self._trials.table(trial.name)
        return Chosen(name, built, plan, verdict, trial.content, candidates, choices, warnings)

    def _float(self) -> Chosen:
        """Give the float model back, with the reason."""
        why = []
        for name, trial in self._trials.made.items():
            if trial.refused:
                why.append(f"{name}: {trial.refused}")
            elif trial.timing is not None:
                why.append(f"{name}: {trial.timing.ratio:.2f}x the speed, {trial.size} bytes")
        more = f"; and {len(why) - _NAMED} more" if len(why) > _NAMED else ""
        return self._given_back(f"no form beats it ({'; '.join(why[:_NAMED])}{more})")

    def _nothing(self) -> Chosen:
        """No preset quantizes anything: float is given back, unless that is what the user's own choice led to."""
        recipe, trials = self._job.recipe, self._trials
        if trials.empty and (recipe.include or recipe.exclude or recipe.op_types or recipe.rules):
            raise trials.empty[0]
        if len(trials.empty) < len(trials.dropped):
            dropped = "; ".join(f"{name}: {reason}" for name, reason in trials.dropped)
            raise RecipeError(f"--preset auto: no form could be built ({dropped}); name a preset to see more")
        reason = str(trials.empty[0]).partition("(")[2].rpartition(")")[0]
        return self._given_back(f"nothing in it can be quantized ({reason})")

    def _given_back(self, reason: str) -> Chosen:
        job, trials = self._job, self._trials
        base = next((trial.built.plan.nodes for trial in trials.made.values()), {})
        nodes = {
            name: replace(node, action=FLOAT, reason="float is the best form of this model", weights={}, folds=None)
            for name, node in base.items()
        }
        verdict = Verdict()
        if trials.float_timing is not None:
            verdict.timings = [trials.float_timing, replace(trials.float_timing, name="quantized")]
        table = [(name, node.op_type, FLOAT, node.reason) for name, node in nodes.items()]
        choices = chooser.choices_table(table, self._layers, {})
        warnings = [f"the float model is given back as it is: {reason}", *trials.warnings]
        original = job.prepared.original
        return Chosen(FLOAT, None, Plan(nodes, {}), verdict, original, trials.table(FLOAT), choices, warnings)

    def _unmeasured(self, error: ModelError) -> Chosen:
        """No feed runs on the float model, so that nothing can be measured: what the target's table says."""
        trials = self._trials
        first = STATIC if STATIC in trials.made else STORED
        trial = trials.made.get(first) or next(iter(trials.made.values()))
        trials.warnings.append(f"nothing was measured, so the choice rests on the target's table: {error}")
        return self._quantized(trial, self._verify(trial))


def _of_prepared(statistics: Statistics | None, job: Job) -> Statistics | None:
    """The ranges, if they are of the model as it was prepared and no rewrite came between."""
    if statistics is None or statistics.model_hash != io.model_hash(job.prepared.model):
        return None
    return statistics


def _what_data_would_buy(name: str) -> str:
    how = {
        STORED: "weights are stored in 8 bits and computed with as float32, at float speed",
        DYNAMIC: "activations are quantized at inference, with a range found anew each time",
        TOKEN: "activations are quantized at inference, with a range found anew for each row",
    }.get(name, "each layer has the fastest form that needs none")
    return (
        f"no calibration data: {how}, and accuracy was seen on one made-up sample only; with samples (--calibration, "
        "or calibration_data/<model stem>.npz) it is measured, and integer kernels with fixed ranges are tried too"
    )
