"""The float models that candidates are made from, with the ranges of their values: measured once, used many times."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace

from onnxq.errors import CalibrationError, RecipeError
from onnxq.graph.edit import copy_of
from onnxq.graph.files import io
from onnxq.graph.prepare.whole.widen import narrow
from onnxq.pipeline.build import build, finish
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned.compensating import Rounded
from onnxq.pipeline.planning import complete
from onnxq.pipeline.transformation import transform, uses_awq
from onnxq.plan.decisions import NodePlan, Plan
from onnxq.recipe.recipe import Recipe
from onnxq.search.choice import CLEANED, FLOAT, STORED
from onnxq.stats.statistics import Statistics


class Base:
    """One float model.

    Attributes:
        statistics: ranges that were calibrated or given; None before.
        rounded: weights that were rounded by how they are used; None before.
    """

    def __init__(self, job: Job) -> None:
        """Start with what the job knows."""
        self._job = job
        self.statistics: Statistics | None = job.statistics
        self.rounded: Rounded | None = None
        self._complete = False

    def build(self, recipe: Recipe, learns_until: float = math.inf) -> Candidate:
        """Quantize a copy of it; ranges that earlier builds needed are not measured again.

        Args:
            recipe: how.
            learns_until: `time.monotonic` at which learning has to be over.

        Raises:
            RecipeError: options that make no sense for the model, or that quantize nothing.
            CalibrationError: data or statistics that do not fit it.
        """
        job = replace(self._job, learns_until=learns_until)
        if job.statistics is None and self.statistics is not None and job.data is not None:
            try:
                return self._build_with(job, recipe, self.statistics)
            except CalibrationError:  # this one needs a value that the earlier ones did not; the next may need others
                if not self._complete:
                    self._complete = True
                    complete(self.statistics, job)
                    with contextlib.suppress(CalibrationError):
                        return self._build_with(job, recipe, self.statistics)
        built = self._build_with(job, recipe, job.statistics)
        if self.statistics is None:
            self.statistics = built.statistics
        return built

    def _build_with(self, job: Job, recipe: Recipe, statistics: Statistics | None) -> Candidate:
        built = build(replace(job, recipe=recipe, statistics=statistics, rounded=self.rounded))
        if built.compensated is not None:
            self.rounded = built.compensated
        return built


class Bases:
    """The prepared model, and what equalizing makes of it."""

    def __init__(self, job: Job) -> None:
        """Start with the prepared model."""
        self._job = job
        self.plain = Base(job)
        self._equalized: Base | None = None
        self._unchanged = ""

    def build(self, recipe: Recipe, learns_until: float = math.inf) -> Candidate:
        """Quantize the model that a recipe starts from.

        Args:
            recipe: how.
            learns_until: `time.monotonic` at which learning has to be over.

        Raises:
            RecipeError: as of `Base.build`; or the recipe equalizes and there is nothing to equalize.
            CalibrationError: as of `Base.build`.
        """
        alone = not (recipe.fuse is not None or recipe.smooths or uses_awq(recipe))
        if not recipe.equalize or not alone or self._job.data is None or self._job.statistics is not None:
            return self.plain.build(recipe, learns_until)
        if self._equalized is None:
            prepared = self._job.prepared
            model = copy_of(prepared.model)
            job = replace(self._job, prepared=replace(prepared, model=model), recipe=recipe)
            notes = transform(job).notes
            self._equalized = Base(job)
            same = io.model_hash(model) == io.model_hash(prepared.model)
            self._unchanged = "; ".join(notes) or "--equalize: nothing was equalized" if same else ""
        if self._unchanged:
            raise RecipeError(self._unchanged)
        built = self._equalized.build(replace(recipe, equalize=False), learns_until)
        built.recipe = replace(built.recipe, equalize=True)
        return built


def cleaned(job: Job, nodes: Mapping[str, NodePlan]) -> Candidate:
    """The prepared float model itself, in the user's element types.

    Args:
        job: whose model it is.
        nodes: of a plan, which all stay float.
    """
    model = copy_of(job.prepared.model)
    narrow(model)
    finish(model)
    kept = "no quantized candidate was inside the accuracy budget"
    left = {name: replace(node, action=FLOAT, reason=kept, weights={}, folds=None) for name, node in nodes.items()}
    built = Candidate(CLEANED, model, job.recipe.override(preset=STORED), "qdq", Plan(left, {}))
    built.warnings.append(f"nothing was quantized: {kept}; the float model was only rewritten to run faster")
    return built
