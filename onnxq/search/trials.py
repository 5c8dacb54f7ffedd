"""Whole models that ``auto`` tries: built once each, timed in one alternation, compared with float in one run."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxq.data.feeds import Feed
from onnxq.errors import CalibrationError, ModelError, OnnxqError, RecipeError
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import Compared
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.learned.compensating import Rounded
from onnxq.pipeline.planning import NothingToQuantizeError
from onnxq.pipeline.rescue import rescue
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import Session, open_session
from onnxq.runtime.synthetic import runnable_feed
from onnxq.search.bases import Bases, cleaned
from onnxq.search.choice import CLEANED, FLOAT, NOISE, SAME_SIZE, SMALL_GAIN, LayerChoice, Outcome, insisted
from onnxq.search.comparing import Judge
from onnxq.search.frontier import candidate_row, how_to_get, mark_frontier, shown
from onnxq.stats.statistics import Statistics
from onnxq.verify.benchmark import Timing
from onnxq.verify.budget import Limits
from onnxq.verify.compare import Comparison
from onnxq.verify.language.workload import measure

_TIMED_FEEDS = 4

_CLOSE = 0.85
"""Candidates that reach this share of the fastest's speed are timed with it once more before the choice is made."""

_FIRST_SHARE = 0.5  # of the usual time for the first alternation, which only tells who is far behind

_ROUNDS, _TIME_SHARE = 6, 0.2
"""Rounds of float that a second alternation should last, and the share of the time left that it may take."""

_COMPARE_SHARE = 0.25
"""Share of the time that is left which comparing each candidate may take."""

_SANE_SQNR_DB = 10.0
"""On a synthetic sample a form with less than this is left out; more than that such a sample does not tell."""


class Trials:
    """All candidates of a job.

    Attributes:
        made: those that were built, by name.
        reasons: of these, why layers have their forms, where that was a matter of measurement.
        dropped: (name, reason) of those that were not.
        empty: what was said by those that would quantize nothing.
        warnings: one line each.
        feed: the sample on which a model is first run; there once float is open.
        float_timing: of the float model in the last alternation.
    """

    def __init__(self, job: Job) -> None:
        """Start without a candidate; the time runs from here."""
        self.job = job
        self.made: dict[str, Candidate] = {}
        self.reasons: dict[str, dict[str, LayerChoice]] = {}
        self.dropped: list[tuple[str, str]] = []
        self.empty: list[NothingToQuantizeError] = []
        self.warnings: list[str] = []
        self._bases = Bases(job)
        self.feed: Feed = {}
        self.float_timing: Timing | None = None
        self._float: Session | None = None
        self._judge: Judge | None = None
        self._signatures: dict[tuple[object, ...], str] = {}
        self._deadline = time.monotonic() + job.budget
        self._finalists: set[str] = set()
        self._timed_last: set[str] = set()
        self._late = False

    # Building.

    def build(self, name: str, recipe: Recipe, learns_until: float = math.inf) -> Candidate | None:
        """Build a candidate; None where it quantizes nothing, cannot be built, or is one that there is already.

        Args:
            name: of the candidate.
            recipe: what it is made by.
            learns_until: `time.monotonic` at which learning has to be over.

        Raises:
            RecipeError: of the first candidate: what the user gave is at fault, whatever the candidate.
            CalibrationError: likewise.
        """
        try:
            built = self._bases.build(recipe, learns_until)
        except NothingToQuantizeError as error:
            self.empty.append(error)
            self._drop(name, "quantizes nothing here")
            return None
        except OnnxqError as error:
            if not self.made and not self.dropped and isinstance(error, RecipeError | CalibrationError):
                raise
            self._drop(name, f"cannot be built: {error}")
            return None
        except Exception as error:  # one form that fails must not take the others with it
            self.warnings.append(f"candidate {name!r} was left out after an internal error, {type(error).__name__}")
            self._drop(name, f"failed: {type(error).__name__}: {error}")
            return None
        signature = built.signature
        if signature in self._signatures:
            self._drop(name, f"the same model as {self._signatures[signature]}")
            return None
        self._signatures[signature] = name
        trial = self.made[name] = built
        trial.name, trial.content = name, contents(built.quantized, self.job.stack)
        if trial.size > self.job.prepared.size and not insisted(self.job.recipe):
            trial.refused = f"larger than float ({trial.size} bytes against {self.job.prepared.size})"
        return trial

    def add_cleaned(self) -> Candidate | None:
        """The prepared float model itself as a candidate; None where it would be larger than the user's."""
        job = self.job
        trial = cleaned(job, next((trial.plan.nodes for trial in self.made.values()), {}))
        trial.content = contents(trial.quantized, job.stack)
        if trial.size > job.prepared.size * (1 + SAME_SIZE):
            return None
        self.made[CLEANED] = trial
        return trial

    @property
    def by_budget(self) -> bool:
        """Whether the default budget stands for limits that the user did not set."""
        return self.job.recipe.min_sqnr is None and self.job.recipe.max_drop is None

    @staticmethod
    def loss(trial: Candidate) -> float:
        """What a trial loses against float; infinity where nobody knows."""
        return math.inf if trial.comparison is None or trial.comparison.loss is None else trial.comparison.loss

    def _drop(self, name: str, reason: str) -> None:
        self.dropped.append((name, reason))

    @property
    def statistics(self) -> Statistics | None:
        """Ranges of the prepared model's values that were calibrated or given; None before."""
        return self._bases.plain.statistics

    @property
    def rounded(self) -> Rounded | None:
        """Weights of the prepared model that were rounded by how they are used; None before."""
        return self._bases.plain.rounded

    # Running.

    def open_float(self) -> None:
        """Open the float model and find a sample that it runs on.

        Raises:
            ModelError: there is none.
        """
        job = self.job
        self._float = open_session(job.prepared.original, threads=job.timed_threads, label="float model", timed=True)
        used = job.workload
        made_up = used.first if used is not None else None
        self.feed = job.data.first if job.data is not None else made_up or runnable_feed(self._float)
        self._float.run(self.feed)

    def open(self, trial: Candidate) -> None:
        """Load and run a candidate once; one that fails is built again with some nodes float, or refused."""
        with self.job.clock.step("candidates"):
            try:
                self._start(trial)
            except ModelError as error:
                trial.session = None
                late = time.monotonic() >= self._deadline
                other = None if late else rescue(self.job, trial, str(error), self.feed)
                if other is None:
                    trial.refused = f"does not run: {error}"
                    return
                other.content = contents(other.quantized, self.job.stack)
                trial.take(other)
                self._start(trial)

    def _start(self, trial: Candidate) -> None:
        trial.session = open_session(trial.content, threads=self.job.timed_threads, label=trial.name, timed=True)
        trial.session.run(self.feed)

    def time(self, trials: Iterable[Candidate]) -> None:
        """Time candidates that are not refused and the float model in one alternation.

        Their ratios are those of the fastest runs: on a busy machine medians of a few runs would decide by chance.
        """
        job = self.job
        running = {trial.name: trial for trial in trials if trial.session is not None and not trial.refused}
        sessions: dict[str, bytes | Path | Session] = {FLOAT: self._opened_float()}
        sessions |= {name: trial.session for name, trial in running.items() if trial.session is not None}
        feeds = [self.feed] if job.data is None else list(itertools.islice(job.data.held_out, _TIMED_FEEDS))
        seconds = _FIRST_SHARE * job.seconds
        if self.float_timing is not None:  # a slow model needs longer for as many rounds, if there is the time
            wanted = _ROUNDS * self.float_timing.round_ms / 1e3
            seconds = max(job.seconds, min(wanted, _TIME_SHARE * self.seconds_left / len(sessions)))
            self._timed_last = set(running)
        with job.clock.step("benchmark"):
            timings = measure(
                sessions, feeds, job.workload, seconds=seconds, threads=job.timed_threads, engine=job.engine
            )
        self.float_timing = timings[0]
        for timing in timings[1:]:
            steady = timing.ratio if timing.steady_ratio is None else timing.steady_ratio
            running[timing.name].verdict.timings = [timings[0], replace(timing, ratio=steady)]

    def time_finalists(self) -> None:
        """Time those again, and longer, between which the choice is close, if there are several."""
        ratios = {outcome.name: outcome.ratio for outcome in self.outcomes() if not outcome.refused}
        fastest = max(ratios.values(), default=0.0)
        close = sorted((name for name in ratios if ratios[name] >= _CLOSE * fastest), key=lambda name: -ratios[name])
        finalists = [self.made[name] for name in close if name != FLOAT]
        self._finalists = {trial.name for trial in finalists}
        again = len(close) > 1 and not self._finalists <= self._timed_last
        if again and finalists and not self.out_of_time("the best were not timed a second time"):
            self.time(finalists)

    def _opened_float(self) -> Session:
        assert self._float is not None, "open_float comes first"
        return self._float

    def compare(self, trials: Iterable[Candidate]) -> None:
        """Compare candidates with float, the fastest first; those outside the accuracy budget are refused.

        What is clearly slower than one that is inside is compared on a few samples only, what is refused not at all.
        """
        chosen = [trial for trial in trials if trial.session is not None and not trial.refused]
        for trial in sorted(chosen, key=lambda trial: -_ratio(trial)):
            if not self._compare(trial, briefly=self._beaten(trial)):
                return

    def settle(self, trial: Candidate) -> bool:
        """Compare a candidate in full that was compared briefly; whether it is inside the budget."""
        if trial.briefly and trial.session is not None:
            self._compare(trial, briefly=False)
        return not trial.refused

    def _beaten(self, trial: Candidate) -> bool:
        """Whether a candidate that is inside the budget is faster by more than a choice weighs against a small file."""
        inside = [other for other in self.made.values() if other.comparison and not (other.refused or other.briefly)]
        fastest = max(map(_ratio, inside), default=0.0)
        return trial.timing is not None and _ratio(trial) < fastest * (1 - SMALL_GAIN - NOISE)

    def _compare(self, trial: Candidate, *, briefly: bool) -> bool:
        assert trial.session is not None
        left = max(self.seconds_left, 1.0) * _COMPARE_SHARE
        with self.job.clock.step("compare"):
            try:
                (comparison,) = self.judge.compare([trial.session], left, briefly=briefly)
            except CalibrationError:
                raise  # the data is at fault
            except OnnxqError as error:
                self.warnings.append(f"the candidates could not be compared with float: {error}")
                return False
        trial.verdict.comparison = comparison
        trial.briefly = briefly and self.judge.is_long
        trial.refused = self.outside(comparison)
        if trial.refused:
            trial.session = None  # its arena and its threads are given back
        return True

    @property
    def judge(self) -> Judge:
        """What candidates are compared by."""
        if self._judge is None:
            self._judge = Judge(self.job, self._opened_float(), self.feed, widely=self.by_budget)
        return self._judge

    def compared(self, trial: Candidate) -> Compared | None:
        """What a candidate's verification need not find out again; None where it was not compared in full."""
        if trial.comparison is None or trial.briefly or self._judge is None or not self.by_budget:
            return None
        return Compared(trial.comparison, self._judge.reference)

    def outside(self, comparison: Comparison) -> str:
        """Why figures are outside the accuracy budget; a synthetic sample only shows what is broken."""
        recipe = self.job.recipe
        if not comparison.finite:
            return "an output is NaN or infinite where float is finite"
        if self.job.data is None and self.by_budget:
            low = comparison.sqnr_db is not None and comparison.sqnr_db < _SANE_SQNR_DB
            return f"only {comparison.sqnr_db:.1f} dB on a synthetic sample" if low else ""
        return Limits.or_budget(recipe.max_drop, recipe.min_sqnr).outside(comparison)

    def outcomes(self) -> list[Outcome]:
        """The figures of all candidates that were timed, and of float unless the user insists on integers."""
        found = [
            Outcome(trial.name, trial.timing.ratio, trial.size, _sqnr(trial.comparison), trial.refused)
            for trial in self.made.values()
            if trial.timing is not None
        ]
        if not insisted(self.job.recipe):
            found.append(Outcome(FLOAT, 1.0, self.job.prepared.size, math.inf))
        return found

    def contenders(self) -> list[Outcome]:
        """The outcomes that decide: those of the last alternation, or all where none of them is left."""
        found = self.outcomes()
        close = [outcome for outcome in found if outcome.name in self._finalists and not outcome.refused]
        return [*close, *(outcome for outcome in found if outcome.name == FLOAT)] if close else found

    def table(self, chosen: str) -> list[dict[str, Any]]:
        """A row for each candidate, the fastest first, then those that were not built; figures unknown are None."""
        real = self.job.data is not None
        rows = [
            candidate_row(
                trial.name,
                shown(trial.beside, trial.timing),
                trial.comparison if real else None,
                trial.size,
                "chosen" if trial.name == chosen else trial.refused or "not the best",
                how_to_get(trial, self.job.recipe),
            )
            for trial in self.made.values()
        ]
        verdict = "chosen" if chosen == FLOAT else "not the best"
        beside = self.made[chosen].beside if chosen in self.made else self.float_timing
        same = candidate_row(FLOAT, beside, None, self.job.prepared.size, verdict)
        rows.append(same | ({"sqnr_db": math.inf, "loss": 0.0} if real else {}))
        rows.sort(key=lambda row: row["name"])
        rows.sort(key=lambda row: row["latency_ratio"] or 0.0, reverse=True)
        mark_frontier([row for row in rows if not str(row["verdict"]).startswith("does not run")])
        return rows + [candidate_row(name, None, None, None, reason) for name, reason in self.dropped]

    # Time.

    @property
    def seconds_left(self) -> float:
        """Until the budget is spent; 0 afterwards."""
        return max(self._deadline - time.monotonic(), 0.0)

    def out_of_time(self, what: str) -> bool:
        """Whether the budget is spent; if so, a warning says what was left out for it."""
        if self.seconds_left > 0:
            return False
        self.cut_short(what)
        return True

    def cut_short(self, what: str) -> None:
        """Note that something was left out for lack of time; said once."""
        if not self._late:
            self._late = True
            self.warnings.append(
                f"--budget: time limit of {self.job.budget:g} s reached, {what}; returning the best candidate so far"
            )


def _ratio(trial: Candidate) -> float:
    return 0.0 if trial.timing is None else trial.timing.ratio


def _sqnr(comparison: Comparison | None) -> float | None:
    return None if comparison is None else comparison.sqnr_db
