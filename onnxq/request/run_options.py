"""What a user can say of one run: by keyword, and as the record that the run is handed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from onnxq.errors import RecipeError, there_are
from onnxq.pipeline.clock import Progress
from onnxq.pipeline.float_model import Source
from onnxq.recipe.recipe import RECIPE_OPTIONS, Recipe
from onnxq.recipe.recipe_options import RecipeOptions
from onnxq.request.used_as import UsedAs
from onnxq.runtime.custom_ops import Libraries, registered
from onnxq.runtime.engines.places import RunsOn
from onnxq.search.within.score import Function
from onnxq.stats.statistics import Statistics


@dataclass(frozen=True)
class Options:
    """What a user can say of one run, beside the recipe; each is documented at `onnxq.quantize`."""

    calibration: object = None
    statistics: Statistics | str | os.PathLike[str] | None = None
    force: bool = False
    threads: int | None = None
    benchmark: bool = True
    seconds: float = 0.4
    budget: float = 120.0
    metric: str | Function | None = None
    search_state: str | os.PathLike[str] | None = None
    resume: bool = False
    cache: bool = True
    progress: Progress | None = None
    recipe_file: str | os.PathLike[str] | None = None
    states: Mapping[str, str] | None = None
    engine_python: str | os.PathLike[str] | None = None
    runs_on: RunsOn | None = None
    tokenizer: str | os.PathLike[str] | None = None
    generate: int | None = None
    workload: str | None = None
    used: UsedAs | None = None
    report: str | os.PathLike[str] | None = None
    external_data: bool = False
    kept_as: str | os.PathLike[str] | None = None  # names what an interrupted run goes on from; else as the output

    def inputs(self, model: Source, calibration: object) -> list[object]:
        """What the run reads, for `onnxq.graph.files.saving.check_destination`."""
        given = (self.calibration, self.statistics, self.recipe_file, self.metric, self.tokenizer)
        return [model, calibration, *given, *registered()]


class RunOptions(TypedDict, total=False):
    """Options of `onnxq.quantize` that are of one run: how models are measured and where, and how the file is written.

    None stands for the default.

    Attributes:
        tokenizer: the ``tokenizer.json`` that a text is read with; None takes the one beside the model.
        generate: texts that a language model writes itself as its samples, instead of ``calibration``.
        states: outputs and the inputs that they go back into at the next sample, ``{"hn": "h"}``, if names do not say.
        engine_python: the Python that has the engine of the target, such as one with onnxruntime-openvino.
        runs_on: the provider, the device behind a shell, or onnxruntime-web in Node that runs and times models;
            "fastest" then means there. With target "web" this is Node where ``ONNXQ_NODE_MODULES`` names it. Engine
            "ray" spreads the work instead.
        benchmark: measure latency.
        seconds: time to spend on measuring each model.
        workload: what the latency of a language model with a cache is of: "prefill", "decode", or "chat" by default.
        budget: seconds that the preset "auto", and a search for ``max_drop`` or ``min_sqnr``, may take.
        search_state: file that keeps what a search has measured; None takes ``<output>.search.json``.
        resume: go on from that file where an earlier search was interrupted.
        cache: "auto" takes again what it chose for the same model, samples, options, versions and machine.
        external_data: weights go into a file beside the model whatever its size, not only above 2 GB.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.
    """

    tokenizer: str | os.PathLike[str] | None
    generate: int | None
    states: Mapping[str, str] | None
    engine_python: str | os.PathLike[str] | None
    runs_on: RunsOn | None
    benchmark: bool
    seconds: float
    workload: str | None
    budget: float
    search_state: str | os.PathLike[str] | None
    resume: bool
    cache: bool
    external_data: bool
    custom_ops: Libraries


class QuantizeOptions(RecipeOptions, RunOptions, total=False):
    """What `onnxq.quantize` takes by keyword beside its named arguments: options of a recipe, and of one run."""


def split_options(function: str, named: Mapping[str, Any]) -> tuple[Recipe, Options]:
    """Options by where they go: into the recipe, or into the run.

    Args:
        function: the public function that takes them, for messages.
        named: them by name, with ``recipe`` among them, as `onnxq.recipe.arguments.checked` lets them pass.

    Raises:
        RecipeError: there is no such option, or the recipe takes no such value.
    """
    known = {field.name for field in fields(Options)} - _MADE_HERE
    given = {name: value for name, value in named.items() if name != "custom_ops"}
    recipe = given.pop("recipe", None)
    unknown = next((name for name in given if name not in known and name not in RECIPE_OPTIONS), None)
    if unknown is not None:
        raise RecipeError(f"{function}: no option {unknown!r}; {there_are(unknown, sorted([*RECIPE_OPTIONS, *known]))}")
    made = Recipe.given(recipe).override(**{name: given[name] for name in RECIPE_OPTIONS if name in given})
    run = {name: value for name, value in given.items() if name in known and value is not None}
    return made, Options(**run, recipe_file=None if isinstance(recipe, Recipe) else recipe)


_MADE_HERE = frozenset(("recipe_file", "used", "kept_as"))
"""Attributes of `Options` that no caller of a public function gives."""
