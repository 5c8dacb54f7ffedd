"""What a quantized model is judged by in a search: the metric and SQNR against the limits, and its estimated time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from onnxq.core.dtypes import QType
from onnxq.errors import RecipeError
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.job import Data, Job
from onnxq.pipeline.planning import seen_by
from onnxq.plan.make_plan import make_plan
from onnxq.plan.placement.estimate import estimated_us
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.runtime.session import Session, open_session
from onnxq.search.within.deadline import watched
from onnxq.search.within.history import StepOutcome
from onnxq.search.within.score import TaskMetric
from onnxq.targets import WHOLE, Target
from onnxq.verify.budget import Limits, fall
from onnxq.verify.compare import Comparison, compare
from onnxq.verify.loss import share

_PRICED = 64
"""Nodes, the worst, for which it is worked out what leaving them float costs."""


def wider_than(recipe: Recipe, target: Target) -> str | None:
    """The preset of the nodes that hurt, on an engine of integers alone that has activations of 16 bits; else None."""
    if target.coverage != WHOLE or QType.UINT16 not in target.activations:
        return None
    static = PRESETS[recipe.preset]
    if static.activations != "static" or static.activation_bits >= QType.UINT16.bits:
        return None
    return next((name for name in target.presets if PRESETS[name].activation_bits == QType.UINT16.bits), None)


class LimitsJudge:
    """Measures models against the limits; the float model's score is taken once.

    Attributes:
        limits: what has to be kept.
        data: the samples; those held out are compared on.
        before: score of the float model by the user's metric; None with the default one.
    """

    def __init__(self, job: Job, data: Data, metric: TaskMetric, limits: Limits) -> None:
        """Open the float model and score it.

        Args:
            job: what is to be quantized.
            data: its samples.
            metric: what the limit on the drop is about.
            limits: what has to be kept.

        Raises:
            RecipeError: the user's metric failed.
        """
        self.job, self.data, self.limits, self.metric = job, data, limits, metric
        self.float = open_session(job.prepared.original, threads=job.threads, label="float model")
        self.before = self._score(self.float) if self.metric.function is not None else None
        self._seen = seen_by(job)

    def _score(self, session: Session) -> float:
        with self.job.clock.step("metric"):
            return self.metric.of(session)

    def judge(self, chosen: Candidate) -> StepOutcome:
        """The outcome of a model that was verified."""
        if chosen.verdict.comparison is None:
            return StepOutcome(failure="; ".join(chosen.verdict.failures) or "it was not compared")
        session = open_session(chosen.content, threads=self.job.threads) if self.before is not None else None
        return self.outcome(chosen, chosen.verdict.comparison, session)

    def measure(self, built: Candidate, clock: Clock) -> StepOutcome:
        """The outcome of a model.

        Raises:
            LateError: the clock has a deadline, and it is over.
        """
        session = open_session(built.content, threads=self.job.threads, label="quantized model")
        held_out = self.data.held_out
        with self.job.clock.step("compare"):
            feeds = watched(held_out, clock, "compare")
            comparison = compare(self.float, session, feeds, labels=held_out.labels, facts=self.job.output_facts())
        return self.outcome(built, comparison, session)

    def outcome(self, built: Candidate, comparison: Comparison, session: Session | None) -> StepOutcome:
        """Figures of a model by which it is judged."""
        drop: float | None = None
        if self.before is not None and session is not None:
            drop = self.before - self._score(session)
        elif not self.metric.is_default:
            drop = self.metric.fall(comparison)
        elif self.limits.max_drop is not None:
            found = fall(comparison)
            drop = found[1] if found is not None else None
        failure = "" if comparison.finite else "an output is NaN or infinite where float is finite"
        cost = estimated_us(self.job.prepared.model, built.plan, self.job.target, self._seen.shapes)
        return StepOutcome(drop, comparison.sqnr_db, cost, built.size, failure, loss=comparison.loss)

    def prices(self, recipe: Recipe, nodes: Sequence[str], clock: Clock) -> dict[str, float]:
        """By node, the estimated microseconds that an inference takes longer where it alone is left float, or wider.

        Conversions around it, and what they do to the kernels beside it, can be most of that.

        Raises:
            LateError: the clock has a deadline, and it is over.
        """
        base = self._planned_us(recipe)
        found = {}
        for node in watched(nodes[:_PRICED], clock, "diagnose"):
            with contextlib.suppress(RecipeError):
                wider = wider_than(recipe, self.job.target)
                left = Rule(node, quantize=False) if wider is None else Rule(node, preset=wider)
                without = replace(recipe, rules=(*recipe.rules, left))
                found[node] = self._planned_us(without) - base
        return found

    def _planned_us(self, recipe: Recipe) -> float:
        job, seen = self.job, self._seen
        prepared = job.prepared
        plan = make_plan(prepared.model, recipe, job.target, seen)
        return estimated_us(prepared.model, plan, job.target, seen.shapes)

    def can_tell(self, outcome: StepOutcome) -> bool:
        """Whether the limits are on figures that this kind of model has."""
        missing_drop = self.limits.max_drop is not None and outcome.drop is None
        missing_sqnr = self.limits.min_sqnr is not None and outcome.sqnr_db is None
        missing_loss = self.limits.max_loss is not None and outcome.loss is None
        return bool(outcome.failure) or not (missing_drop or missing_sqnr or missing_loss)

    @property
    def asked(self) -> str:
        """The limits in words."""
        return str(self.limits)

    def figures(self, outcome: StepOutcome) -> str:
        """An outcome in words."""
        if outcome.failure:
            return outcome.failure
        said = []
        if outcome.drop is not None:
            what = self.metric.change(outcome.drop)
            if self.before is not None:
                what += f", from {self.before:.4g} to {self.before - outcome.drop:.4g}"
            said.append(what)
        if outcome.sqnr_db is not None:
            said.append(f"SQNR is {outcome.sqnr_db:.1f} dB")
        if self.limits.max_loss is not None and outcome.loss is not None:
            said.append(f"the loss is {share(outcome.loss)} of decisions")
        return "; ".join(said) or "nothing could be measured"
