"""``--preset auto``: build the forms that a model can have, measure them, and take the best that keeps the budget."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from onnxq.errors import ModelError, RecipeError
from onnxq.graph.walk import all_nodes
from onnxq.pipeline import gate
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import Verdict
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.compensating import QUICK
from onnxq.plan.decisions import Plan
from onnxq.recipe.presets import PRESETS
from onnxq.search import choice as chooser
from onnxq.search.choice import DYNAMIC, FLOAT, ROUNDED_AT_INFERENCE, STATIC, STORED, TOKEN
from onnxq.search.demotion.demoting import Demoting
from onnxq.search.demotion.nearly_free import without_the_nearly_free
from onnxq.search.frontier import shown
from onnxq.search.mixing import Mixing
from onnxq.search.trials import Trials
from onnxq.search.within.history import Step, StepOutcome
from onnxq.search.within.learned_candidates import (
    LEAST_SECONDS,
    can_learn,
    lacks_torch,
    learned,
    learns_until,
    unlearned,
)
from onnxq.verify.benchmark import Timing

_WORTH_LEARNING = 0.1
"""Share by which static integers have to be faster than what was chosen for a line to say what PyTorch would try."""

_NAMED = 5
"""Candidates that the reason for giving float back names."""


def choose(job: Job) -> Candidate:
    """Try what a model can become and choose by what was measured.

    The first candidate is finished whatever the time budget; what comes after it stops when the time is over.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    return _AutoSearch(replace(job, recipe=unlearned(job.recipe), rounding=QUICK)).run()


class _AutoSearch:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._trials = Trials(job)
        self._mixing = Mixing(job, self._trials)
        self._unlearned: Candidate | None = None
        self._trail: list[dict[str, Any]] = []

    def run(self) -> Candidate:
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
        self._mixing.measure()
        trials.time(trials.made.values())
        trials.compare(list(trials.made.values()))
        self._clean()
        without_the_nearly_free(trials, self._mixing)
        self._learn()
        Demoting(self._job, trials, self._mixing).run()
        self._coarsen()
        trials.time_finalists()
        return self._finish()

    # Candidates.

    def _try_presets(self) -> None:
        job, trials = self._job, self._trials
        names = [STATIC] if job.data is not None or job.statistics is not None else []
        dynamic = (
            (DYNAMIC, TOKEN)
            if any(node.op_type in ROUNDED_AT_INFERENCE for node in all_nodes(job.prepared.model.graph))
            else ()
        )
        names += [name for name in (STORED, *dynamic) if name in PRESETS]
        for done, name in enumerate(names):
            job.clock.report("candidates")(done, len(names))
            if trials.made and trials.out_of_time(f"{name} was not tried"):
                break
            trials.build(name, job.recipe.override(preset=name))

    def _clean(self) -> None:
        """Where nothing quantized is inside the budget, the float model as it was cleaned up may still be faster.

        It comes before any search: what is looked for then has to be faster than that.
        """
        trials = self._trials
        if chooser.insisted(self._job.recipe) or any(o.name != FLOAT for o in chooser.ranked(trials.outcomes())):
            return
        if trials.out_of_time("the float model as it was cleaned up was not timed"):
            return
        trial = trials.add_cleaned()
        if trial is not None:
            trials.open(trial)
            trials.compare([trial])
            trials.time([trial])
            if trial.timing is None or trial.timing.ratio < 1 + chooser.SMALL_GAIN:
                trial.refused = trial.refused or "the float model, cleaned up, is no faster"

    def _learn(self) -> None:
        """Before layers go back to float for accuracy: blocks learn where static integers are outside the budget."""
        trials, base = self._trials, self._trials.made.get(STATIC)
        if base is None or base.comparison is None or not trials.outside(base.comparison) or self._is_fast_enough(base):
            return
        if not can_learn(self._job):
            self._unlearned = base if lacks_torch(self._job) else None
            return
        started, left = time.monotonic(), trials.seconds_left
        recipe = learned(base.recipe, left)
        if recipe is None:
            short = f"not tried: {left:.0f} s of --budget were left, and it needs {LEAST_SECONDS:.0f}"
            self._trail.append(self._step(None, 0.0, short))
            return
        name, until = f"{base.name} (learned)", learns_until(recipe, left)
        trial = trials.build(name, recipe, until or started)
        if trial is not None:
            trials.open(trial)
            trials.time([trial])
            trials.compare([trial])
        why = next((reason for dropped, reason in trials.dropped if dropped == name), "") if trial is None else ""
        self._trail.append(self._step(trial, time.monotonic() - started, why))

    def _is_fast_enough(self, base: Candidate) -> bool:
        """Whether a candidate that is inside the budget is about as fast as one that is not."""
        best = next(iter(chooser.ranked(self._trials.outcomes())), None)
        return best is not None and base.timing is not None and best.ratio >= (1 - chooser.NOISE) * base.timing.ratio

    def _step(self, trial: Candidate | None, seconds: float, why: str) -> dict[str, Any]:
        """A line of the trail on blocks that learned, or why they did not."""
        base, found = self._trials.made[STATIC], None if trial is None else trial.comparison
        inside = trial is not None and not trial.refused
        verdict = why or ("inside the budget" if inside else f"outside the budget: {trial.refused}" if trial else "")
        note = "" if trial is None or trial.reconstructed is None else trial.reconstructed.words()
        outcome = StepOutcome(
            sqnr_db=None if found is None else found.sqnr_db, size=0 if trial is None else trial.size,
            loss=None if found is None else found.loss, note=note,
        )  # fmt: skip
        return Step(f"reconstruction of {base.name}", outcome, seconds, inside, verdict, base.recipe).to_dict()

    def _coarsen(self) -> None:
        """Where the best model has kernels that take longer with a scale for each channel, try it with one for all."""
        trials = self._trials
        for outcome in chooser.ranked(trials.outcomes()):
            base = trials.made.get(outcome.name)
            recipe = chooser.by_tensor(base.recipe, base.plan) if base is not None else None
            if base is None or recipe is None:
                continue
            if trials.out_of_time("one scale for a whole weight was not tried"):
                return
            until = learns_until(recipe, trials.seconds_left)
            trial = None if until is None else trials.build(f"{base.name} (per tensor)", recipe, until)
            if trial is None:
                return
            trials.reasons[trial.name] = dict(trials.reasons.get(base.name, {}))
            trials.open(trial)
            trials.time([base, trial])
            trials.compare([trial])
            if trial.timing is None or base.timing is None or trial.refused:
                return
            if trial.timing.ratio <= base.timing.ratio * (1 + chooser.NOISE):
                took = f"{trial.timing.ratio:.2f}x against {base.timing.ratio:.2f}x in one alternation"
                trial.refused = f"no faster than {base.name}, which is more exact ({took})"
            return

    # The choice.

    def _finish(self) -> Candidate:
        trials = self._trials
        while order := chooser.ranked(trials.contenders()):
            if order[0].name == FLOAT:
                return self._float()
            trial = trials.made[order[0].name]
            if not trials.settle(trial):
                continue
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

    def _verify(self, trial: Candidate) -> Verdict:
        """The whole verification of the model that is about to be chosen."""
        job, timing, own = self._job, trial.beside, shown(trial.beside, trial.timing)
        verdict = gate.verify(trial.content, job, timed=False, compared=self._trials.compared(trial))
        if verdict.failures:
            trial.refused = "; ".join(verdict.failures)
        elif verdict.comparison is not None:
            trial.verdict.comparison = verdict.comparison
            trial.refused = self._trials.outside(verdict.comparison)
        if own is not None and timing is not None:
            verdict.timings = [timing, replace(own, name="quantized")]
            if own.ratio < 1 - chooser.NOISE:
                verdict.warnings.append(gate.slower_than_float(verdict.timings, job.measured_on))
        return verdict

    def _quantized(self, trial: Candidate, verdict: Verdict) -> Candidate:
        job, reasons = self._job, self._trials.reasons.get(trial.name, {})
        warnings = [*self._trials.warnings, *self._what_torch_would_try(trial.timing), *trial.warnings]
        if job.data is None and job.statistics is None:
            warnings.insert(0, _what_data_would_buy(trial.preset))
        plan = trial.plan
        for layer, choice in reasons.items():
            if plan.nodes[layer].reason and choice.form != STATIC and choice.form == self._mixing.form(trial, layer):
                plan = plan.with_node(replace(plan.nodes[layer], reason=choice.reason))
        nodes = [(name, node.op_type, self._mixing.form(trial, name), node.reason) for name, node in plan.nodes.items()]
        choices = chooser.choices_table(nodes, self._mixing.layers, reasons)
        made = replace(trial, name=trial.preset, plan=plan, verdict=verdict, choices=choices, session=None)
        made.candidates, made.warnings, made.trail = self._trials.table(trial.name), warnings, self._trail
        for row in self._trail if trial.recipe.reconstructs else ():
            row["verdict"] += ", chosen"
        made.statistics = self._trials.statistics
        return made

    def _what_torch_would_try(self, chosen: Timing | None) -> list[str]:
        """A line where static integers are faster by far than what was chosen, and could learn if PyTorch were here."""
        base = self._unlearned
        if base is None or base.timing is None:
            return []
        reached = 1.0 if chosen is None else chosen.ratio
        if base.timing.ratio < (1 + _WORTH_LEARNING) * reached:
            return []
        return [
            f"{base.name} runs at {base.timing.ratio:.1f}x the speed of float, outside the budget; with PyTorch "
            "(pip install 'onnxq[torch]') auto lets its blocks learn, which may bring it inside"
        ]

    def _float(self) -> Candidate:
        """Give the float model back, with the reason."""
        why = []
        for name, trial in self._trials.made.items():
            if trial.refused:
                why.append(f"{name}: {trial.refused}")
            elif trial.timing is not None:
                why.append(f"{name}: {trial.timing.ratio:.2f}x the speed, {trial.size} bytes")
        more = f"; and {len(why) - _NAMED} more" if len(why) > _NAMED else ""
        return self._given_back(f"no quantized candidate was better ({'; '.join(why[:_NAMED])}{more})")

    def _nothing(self) -> Candidate:
        """No preset quantizes anything: float is given back, unless that is what the user's own choice led to."""
        recipe, trials = self._job.recipe, self._trials
        if trials.empty and (recipe.include or recipe.exclude or recipe.op_types or recipe.rules):
            raise trials.empty[0]
        if len(trials.empty) < len(trials.dropped):
            dropped = "; ".join(f"{name}: {reason}" for name, reason in trials.dropped)
            raise RecipeError(f"--preset auto: no form could be built ({dropped}); name a preset to see more")
        reason = str(trials.empty[0]).partition("(")[2].rpartition(")")[0]
        return self._given_back(f"nothing in it can be quantized ({reason})")

    def _given_back(self, reason: str) -> Candidate:
        job, trials = self._job, self._trials
        base = next((trial.plan.nodes for trial in trials.made.values()), {})
        nodes = {
            name: replace(node, action=FLOAT, reason="float is the best form of this model", weights={}, folds=None)
            for name, node in base.items()
        }
        verdict = Verdict()
        if trials.float_timing is not None:
            verdict.timings = [trials.float_timing, replace(trials.float_timing, name="quantized")]
        rows = [(name, node.op_type, FLOAT, node.reason) for name, node in nodes.items()]
        choices = chooser.choices_table(rows, self._mixing.layers, {})
        warnings = [
            f"returning the float model unchanged: {reason}",
            *trials.warnings,
            *self._what_torch_would_try(None),
        ]
        made = Candidate(FLOAT, None, job.recipe, "qdq", Plan(nodes, {}), trials.statistics, warnings=warnings)
        made.content, made.verdict = job.prepared.original, verdict
        made.candidates, made.choices, made.trail = trials.table(FLOAT), choices, self._trail
        return made

    def _unmeasured(self, error: ModelError) -> Candidate:
        """No feed runs on the float model, so that nothing can be measured: what the target's table says."""
        trials = self._trials
        first = STATIC if STATIC in trials.made else STORED
        trial = trials.made.get(first) or next(iter(trials.made.values()))
        trials.warnings.append(f"nothing was measured, so the choice rests on the target's table: {error}")
        return self._quantized(trial, self._verify(trial))


def _what_data_would_buy(name: str) -> str:
    how = {
        STORED: "weights are stored in 8 bits and computed with as float32, at float speed",
        DYNAMIC: "activations are quantized at inference, with a range found anew each time",
        TOKEN: "activations are quantized at inference, with a range found anew for each row",
    }.get(name, "each layer has the fastest form that needs none")
    return (
        f"no calibration data: {how}, and accuracy was compared on one synthetic sample only; with samples "
        "(--calibration, or calibration_data/<model stem>.npz) it is measured, and integer kernels with "
        "fixed ranges are tried too"
    )
