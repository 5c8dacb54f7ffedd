"""The search for the fastest model inside ``--max-drop`` and ``--min-sqnr``, with real models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.diagnosis.examine import examine
from onnxq.errors import CalibrationError, ModelError, OnnxqError, RecipeError
from onnxq.graph.files import io
from onnxq.pipeline import gate
from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.making import make
from onnxq.pipeline.rescue import rescue
from onnxq.plan.decisions import INTEGER
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import open_session
from onnxq.search.within.deadline import Deadline, LateError
from onnxq.search.within.history import StepOutcome, Suspect
from onnxq.search.within.learned_candidates import can_learn, learned, noted, unlearned
from onnxq.search.within.limits import LimitsJudge, wider_than
from onnxq.search.within.pace import FirstModel, Stopwatch
from onnxq.search.within.range_changes import Change
from onnxq.search.within.score import TaskMetric
from onnxq.search.within.state import SearchState
from onnxq.search.within.strategy import Means, SearchResult, search
from onnxq.search.within.suspects import suspects_of
from onnxq.stats.statistics import Statistics
from onnxq.verify.benchmark import Timing
from onnxq.verify.budget import Limits
from onnxq.verify.language.workload import measure

_TIMED_FEEDS = 4

_FINALISTS = 3
"""Models inside the limits that are timed in one alternation at the end."""

_FASTER = 1.05
"""A finalist has to be this much faster, measured, to win over the one that is expected to be fastest."""

_VERIFIED = 5
"""Models inside the limits that are verified in full, one after the other, until one passes."""

_HELD = 4
"""Models that are kept in memory, so that they need not be built again."""


@dataclass(frozen=True)
class SearchOptions:
    """What the user said of the search.

    Attributes:
        metric: what --max-drop is about.
        state: file that holds what was measured so far; None for none.
        resume: go on from that file.
        cache: take what an earlier run with the same model, samples and machine has chosen.
    """

    metric: TaskMetric
    state: Path | None = None
    resume: bool = False
    cache: bool = False


def _hold(chosen: Candidate, limits: Limits) -> None:
    """Verification knows the user's limits; where the default budget stands for them, it is held here."""
    comparison = chosen.verdict.comparison
    if limits.max_loss is not None and comparison is not None and (missed := limits.outside(comparison)):
        chosen.verdict.failures.append(missed)


def with_limits(
    job: Job, options: SearchOptions, limits: Limits, *, timed: bool, known: Statistics | None = None
) -> Candidate:
    """Make the model of a named preset, and search from it where it is outside the limits.

    Args:
        job: what is to be quantized, and how.
        options: of the search.
        limits: that the model has to keep.
        timed: measure latency.
        known: ranges of the job's model from the same samples.
    """
    own, watch = not options.metric.is_default, Stopwatch(job.clock)
    # What gate judges is the default metric; that of the user's function is judged here.
    gated = replace(job, recipe=replace(job.recipe, max_drop=None)) if own else job
    first = _first(gated, known, timed=timed)
    if limits == Limits():
        return first
    if job.data is None:
        return _judged_alone(gated, options.metric, limits, first) if own else first
    work = LimitsJudge(gated, job.data, options.metric, limits)
    outcome = work.judge(first)
    if not work.can_tell(outcome):
        return first
    _hold(first, limits)
    if outcome.shortfall(limits) <= 0.0 and not first.verdict.failures:
        return first
    if PRESETS[job.recipe.preset].activations is None:
        if own and outcome.shortfall(limits) > 0.0:
            first.verdict.failures.append(f"{work.figures(outcome)}, and that is outside {work.asked}")
        return first
    if job.recipe.reconstructs:  # which one of the search's models will do, not each
        gated = replace(gated, recipe=unlearned(gated.recipe))
        first = make(gated, timed=timed)
        outcome = work.judge(first)
    return _LimitSearch(gated, options, work, first, outcome, watch.first_model()).run(timed=timed)


def _first(job: Job, known: Statistics | None, *, timed: bool) -> Candidate:
    if known is not None and job.statistics is None:
        with contextlib.suppress(CalibrationError):  # a value that nobody needed so far: the samples are run
            return make(replace(job, statistics=known), timed=timed)
    return make(job, timed=timed)


def _judged_alone(job: Job, metric: TaskMetric, limits: Limits, first: Candidate) -> Candidate:
    """Without samples nothing can be searched; a metric that brings its own can be held to its limit."""
    if limits.max_drop is None or metric.function is None:
        raise RecipeError(f"--metric {metric.name}: needs samples; pass --calibration")
    models = (job.prepared.original, first.content)
    before, after = (metric.of(open_session(model, threads=job.threads)) for model in models)
    if before - after > limits.max_drop:
        first.verdict.failures.append(
            f"{metric.name} falls from {before:.4g} to {after:.4g} and --max-drop allows {limits.max_drop:g}; "
            "with samples (--calibration) a better model is searched for"
        )
    return first


class _LimitSearch:
    """One search, and the models that it builds."""

    def __init__(
        self,
        job: Job,
        options: SearchOptions,
        work: LimitsJudge,
        first: Candidate,
        outcome: StepOutcome,
        spent: FirstModel,
    ) -> None:
        self._job, self._options, self._work, self._spent = job, options, work, spent
        self._start = job.recipe
        self._first = first
        self._state = SearchState(options.state, _key(job, work, options), resume=options.resume, spent=spent.seconds)
        self._held: dict[Recipe, tuple[Candidate, ExitStack]] = {self._start: (first, ExitStack())}
        self._statistics: dict[tuple[Any, ...], Statistics | None] = {_rewrites(self._start): first.statistics}
        self._refused: dict[Recipe, str] = {}
        """What the runtime said of recipes whose model it does not take as it is."""
        self._count = 0
        if self._state.outcome(self._start, math.inf) is None:
            self._state.put_outcome(self._start, outcome, math.inf)

    def run(self, *, timed: bool) -> Candidate:
        """Search, time the finalists, verify the best in full."""
        found = search(
            self._start,
            self._work.limits,
            self._attempt,
            self._diagnose,
            self._state.clock,
            self._spent.left_of(self._job.budget, self._job.seconds if timed else 0.0),
            Means(
                self._extras(),
                learned if can_learn(self._job) else None,
                wider_than(self._start, self._job.target),
                [node.name for node in self._first.plan.nodes.values() if node.action == INTEGER],
                self._spent.attempt,
            ),
        )
        return self._finish(found, timed=timed)

    # What the search asks for.

    def _attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
        self._count += 1
        self._job.clock.report("search")(self._count, None)
        known = self._state.outcome(recipe, seconds)
        if known is not None:
            return known
        try:
            again = 0.0 if _rewrites(recipe) in self._statistics else self._state.paid(_rewrites(recipe))
            outcome = self._measured(recipe, Deadline(self._job.clock, seconds + again))
        except LateError:
            outcome = StepOutcome(failure="given up: it takes longer than there is time", gave_up=True)
        except OnnxqError as error:
            outcome = StepOutcome(failure=str(error))
        except Exception as error:  # one recipe that fails must not take the others with it
            outcome = StepOutcome(failure=f"internal error, {type(error).__name__}: {error}")
        self._state.put_outcome(recipe, outcome, seconds)
        return outcome

    def _measured(self, recipe: Recipe, clock: Clock) -> StepOutcome:
        """The outcome of a recipe; where the runtime refuses its model, of the one with the nodes float that it needs.

        Raises:
            OnnxqError: the model cannot be built, or nothing helps.
        """
        held = self._model(recipe, clock)
        try:
            return noted(self._work.measure(held, clock), held)
        except ModelError as error:
            if recipe in self._refused:  # a second refusal, of what already was made to run, is an answer
                raise
            self._refused[recipe] = str(error)
            self._held.pop(recipe)[1].close()
            held = self._model(recipe, clock)
            return noted(self._work.measure(held, clock), held)

    def _diagnose(self, recipe: Recipe, seconds: float) -> list[Suspect] | None:
        # Values of the rewritten model are not those of the float model; the nodes that hurt are the same.
        plain = replace(recipe, equalize=False, smooth=None, adaround=False, reconstruct=False)
        known = self._state.suspects(plain)
        if known is not None:
            return known
        job, clock = self._job, Deadline(self._job.clock, seconds)
        try:
            held = self._model(plain, clock)
            given = job.prepared.original
            original = io.load(given) if isinstance(given, Path) else job.prepared.model
            data = self._work.data
            result = examine(job.prepared, original, held.quantized, data.held_out, data.first, job.threads, clock)
            prices = self._work.prices(plain, [finding.node for finding in result.findings], clock)
            suspects = suspects_of(result, prices)
        except LateError:
            return None
        except OnnxqError:  # a model that cannot be taken apart leaves only what changes all of it
            suspects = []
        self._state.put_suspects(plain, suspects)
        return suspects

    def _extras(self) -> list[Change]:
        """Rewrites of the float model that cost nothing at inference, where the recipe has not asked for them."""
        changes: list[Change] = []
        if not (self._start.equalize or self._job.prepared.evened):
            changes.append(("equalization", lambda recipe: replace(recipe, equalize=True)))
        if self._start.smooth is None:
            changes.append(("SmoothQuant", lambda recipe: replace(recipe, smooth="auto")))
        return changes

    # Models.

    def _model(self, recipe: Recipe, clock: Clock) -> Candidate:
        """The model of a recipe, from memory or built."""
        built, stack = self._held.pop(recipe, (None, ExitStack()))
        if built is None:
            built = self._build(recipe, clock)
            if recipe in self._refused:
                job = replace(self._job, recipe=recipe, clock=clock)
                built = rescue(job, built, self._refused[recipe], self._work.data.first) or built
            built.content = contents(built.quantized, stack)
            self._job.stack.push(stack)
        self._held[recipe] = built, stack  # the latest last
        while len(self._held) > _HELD:
            oldest = next(held for held in self._held if not held.reconstructs)  # what learned is not made again
            self._held.pop(oldest)[1].close()
        return built

    def _build(self, recipe: Recipe, clock: Clock) -> Candidate:
        """Build with the statistics of earlier models that were rewritten alike; run the samples where some lack."""
        job, key = self._job, _rewrites(recipe)
        if recipe.reconstructs:  # its minutes are of computing, and the time of a search is on the clock
            job = replace(job, learns_until=min(clock.ends, time.monotonic() + 60.0 * recipe.minutes))
        # What smoothing leaves is another model, whose samples have to be run.
        known = self._statistics.get(key) if recipe.smooth is None else None
        if known is not None:
            try:
                return build(replace(job, recipe=recipe, statistics=known, clock=clock))
            except CalibrationError:  # a value that no model needed so far
                pass
        before = clock.seconds.get("calibrate", 0.0)
        built = build(replace(job, recipe=recipe, statistics=None, clock=clock))
        if recipe.smooth is None and key not in self._statistics:
            self._state.pay(key, clock.seconds.get("calibrate", 0.0) - before)
        if known is not None and built.statistics is not None:
            known.add(built.statistics)
        else:
            self._statistics[key] = built.statistics
        return built

    # The end.

    def _finish(self, found: SearchResult, *, timed: bool) -> Candidate:
        job = self._job
        order = [recipe for recipe, _ in found.inside]
        each = job.seconds + self._spent.attempt
        if timed and job.budget - self._state.clock() > (_FINALISTS + 1) * each:
            order = self._by_time(order)
        failed: list[str] = []
        for recipe in order[:_VERIFIED]:
            chosen = self._verified(recipe, timed=timed)
            if not chosen.verdict.failures:
                return self._told(chosen, found, recipe)
            failed += chosen.verdict.failures
            if self._state.clock() + each > job.budget:
                break
        chosen = self._verified(found.best, timed=timed)
        told = self._told(chosen, found, found.best)
        best = next(step.tried for step in found.history if step.recipe == found.best)
        tried = sum(not step.outcome.gave_up for step in found.history)
        said = f"no recipe of {tried} that were tried keeps {self._work.asked}"
        if failed:
            said = f"what keeps {self._work.asked} fails verification ({failed[0]})"
        said += f"; the best ({best}): {self._work.figures(found.outcome)}"
        if found.late:
            more = "--resume goes on" if self._options.state is not None else "search again"
            said += f"; --budget: time limit of {job.budget:g} s reached, {more} with a larger one"
        else:
            self._state.remove()
        told.verdict.failures = [said]
        return told

    def _by_time(self, order: list[Recipe]) -> list[Recipe]:
        """The first few by measured time, if that tells them apart; the order stays where it does not."""
        finalists = order[:_FINALISTS]
        if len(finalists) < 2:
            return order
        job = self._job
        models = {str(i): self._model(recipe, job.clock).content for i, recipe in enumerate(finalists)}
        feeds = islice(self._work.data.held_out, _TIMED_FEEDS)
        with job.clock.step("benchmark"):
            timings = measure(
                models, feeds, job.workload, seconds=job.seconds, threads=job.timed_threads, engine=job.engine
            )
        fastest = max(range(len(timings)), key=lambda i: _ratio(timings[i]))
        if _ratio(timings[fastest]) < _FASTER:
            return order
        return [finalists[fastest], *(recipe for recipe in order if recipe != finalists[fastest])]

    def _verified(self, recipe: Recipe, *, timed: bool) -> Candidate:
        """The whole verification of a model, with the metric once more on the very bytes that are written."""
        if recipe == self._start:
            return self._first
        job = self._job
        held = self._model(recipe, job.clock)
        verdict = gate.verify(held.content, job, timed=timed)
        if verdict.refused and recipe not in self._refused:  # its outcome is from an earlier process
            self._refused[recipe] = verdict.failures[-1]
            self._held.pop(recipe)[1].close()
            held = self._model(recipe, job.clock)
            verdict = gate.verify(held.content, job, timed=timed)
        chosen = replace(held, verdict=verdict, warnings=list(held.warnings))
        _hold(chosen, self._work.limits)
        if not self._options.metric.is_default and not verdict.failures:
            outcome = self._work.judge(chosen)
            if outcome.shortfall(self._work.limits) > 0.0:
                verdict.failures.append(self._work.figures(outcome))
        return chosen

    def _told(self, chosen: Candidate, found: SearchResult, recipe: Recipe) -> Candidate:
        """The choice with the trail that led to it."""
        trail = [step.to_dict() for step in found.history]
        for step, row in zip(found.history, trail, strict=True):
            if step.recipe == recipe:
                row["verdict"], row["kept"] = f"{row['verdict']}, chosen", True
        warnings = [*chosen.warnings]
        if self._state.note:
            warnings.append(self._state.note)
        if found.late:
            warnings.append(
                f"--budget: {self._job.budget:g} s were not enough to try all; the best that was measured is given"
            )
        return replace(chosen, trail=trail, warnings=warnings)


def _ratio(timing: Timing) -> float:
    return timing.ratio if timing.steady_ratio is None else timing.steady_ratio


def _rewrites(recipe: Recipe) -> tuple[Any, ...]:
    """What a recipe does to the float model before it is planned: statistics are of the model after it."""
    return (recipe.equalize, recipe.smooth, recipe.outliers, tuple(rule.smooth for rule in recipe.rules if rule.smooth))


def _key(job: Job, work: LimitsJudge, options: SearchOptions) -> str:
    """What a state belongs to: the model, the samples and everything that was asked for."""
    parts = [
        __version__,
        io.model_hash(job.prepared.model),
        work.data.every.hash,
        job.recipe.to_yaml(),
        options.metric.name,
        repr(work.limits),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
