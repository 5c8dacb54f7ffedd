"""``diagnose``: rank the quantized nodes of a model by the error they cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.staging import check_folder, staged_folder
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.in_bodies import InBodies, look_into_bodies
from onnxq.diagnosis.ranking import Diagnosis, Look, ranked
from onnxq.diagnosis.ranking import diagnose as run_diagnosis
from onnxq.diagnosis.saved_tensors import TensorFolder
from onnxq.errors import RecipeError
from onnxq.graph.edit import copy_of
from onnxq.graph.files import io, saving
from onnxq.graph.types import Model
from onnxq.graph.views.apart.isolate import float_values, isolate
from onnxq.graph.views.apart.isolated_units import Isolated
from onnxq.graph.views.body_models import bodies_of
from onnxq.graph.views.counterparts import Counterparts
from onnxq.graph.views.tail import typed
from onnxq.passes.recover import recover, weight_fit
from onnxq.pipeline.build import build
from onnxq.pipeline.clock import Clock, Progress
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.float_model import Prepared, Source, load_and_prepare
from onnxq.pipeline.job import Job, find_calibration, open_data, with_tokens
from onnxq.pipeline.transformation import turned_copy
from onnxq.recipe.arguments import checked
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.report.result_tables import diagnosis_table
from onnxq.runtime.custom_ops import Libraries, registered, with_custom_ops
from onnxq.runtime.engines.places import RunsOn, start
from onnxq.runtime.fuse import TOLERANCE, farthest_apart
from onnxq.runtime.minima import channel_minima
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from onnxq.targets import target_named

__all__ = ["DiagnoseResult", "diagnose", "examine"]

SAMPLES = 32
"""Samples that are run at most: each shows tens of thousands of elements of every value."""

_FOREIGN_DB = 3.0
"""A weight that is less like its quantized form than this is another one: turned, perhaps."""


@dataclass
class DiagnoseResult:
    """Quantized nodes, the one that hurts most first.

    Attributes:
        diagnosis: what was found of each node.
        recipe: the recipe of the quantized model with rules for the worst nodes.
        recipe_path: where it was written; None where it was not asked for.
        tensors: folder with the raw values; None where they were not asked for.
        warnings: one line each.
    """

    diagnosis: Diagnosis
    recipe: Recipe
    recipe_path: Path | None
    warnings: list[str]
    tensors: Path | None = None

    @property
    def findings(self) -> list[Finding]:
        """The nodes, the worst first."""
        return self.diagnosis.findings

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **self.diagnosis.to_dict(),
            "recipe": self.recipe.to_yaml(),
            "recipe_path": str(self.recipe_path) if self.recipe_path is not None else None,
            "tensors": str(self.tensors) if self.tensors is not None else None,
            "warnings": self.warnings,
        }

    def summary(self, *, everything: bool = False) -> str:
        """The table of nodes as plain text.

        Args:
            everything: all nodes, not only the worst.
        """
        return diagnosis_table(self.to_dict(), everything=everything).text()


@checked
@with_custom_ops
def diagnose(
    float_model: Source,
    quantized_model: Source | None = None,
    *,
    data: object = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    recipe_out: str | os.PathLike[str] | None = None,
    save_tensors: str | os.PathLike[str] | None = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    custom_ops: Libraries = (),
    runs_on: RunsOn | None = None,
) -> DiagnoseResult:
    """Rank the quantized nodes of a model by the error they cause, with the reason and a recipe that helps.

    Args:
        float_model: path or ``onnx.ModelProto``.
        quantized_model: its quantized form, made by whatever tool, as QDQ, QOperator or packed weights; None quantizes
            it first.
        data: samples, as for `onnxq.quantize`.
        recipe: how the model is, or was, quantized; "w8a8" unless given.
        recipe_out: YAML file to write: the recipe, with rules for the worst nodes.
        save_tensors: folder to write, which must not exist or be empty: a file for each sample with the float value of
            each quantized node, its value where the node alone is quantized, and that of the whole quantized model.
        states: as for `onnxq.quantize`.
        threads: threads an operator may use.
        progress: called with (step, done, total).
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.
        runs_on: what runs the quantized model and its nodes, so that errors are those of its kernels; None runs them
            here. The float model runs here in any case.

    Raises:
        EngineError: the engine is not there, or does not run the model.
        ModelError: a model cannot be used, or the two are no pair.
        CalibrationError: data that does not fit.
        RecipeError: no data was given and none was found.
    """
    clock = Clock(progress)
    given = Recipe.given(recipe)
    if given.preset == "auto":
        given = given.override(preset="w8a8")
    place = Path(recipe_out) if recipe_out is not None else None
    found = data if data is not None else find_calibration(float_model)
    if place is not None:
        read = (float_model, quantized_model, found, None if isinstance(recipe, Recipe) else recipe, *registered())
        saving.check_destination(place, read)
    folder = Path(save_tensors) if save_tensors is not None else None
    if folder is not None:
        check_folder(folder, None, otherwise="another one with --save-tensors")
    target = target_named(given.target)
    prepared = load_and_prepare(float_model, target, clock)
    if found is None:
        raise RecipeError("--calibration: no data was given and no calibration_data/<model stem>.npz was found")
    with prepared.watched(), ExitStack() as stack:
        engine = None
        if runs_on is not None and runs_on != RunsOn():
            engine = start(runs_on, threads, target.provider if target.provider.endswith("ExecutionProvider") else "")
            stack.callback(engine.close)
        samples = open_data(with_tokens(found, float_model), prepared, states=states, threads=threads)
        confirm(prepared, samples.first, clock, threads)
        if quantized_model is None:
            quantized = build(Job(prepared, given, target, samples, clock=clock, threads=threads)).quantized
        else:
            quantized = io.load(quantized_model)
        measured = samples.held_out if quantized_model is None else samples.every
        keep = None if folder is None else TensorFolder(stack.enter_context(staged_folder(folder))).add
        look = Look(keep, engine)
        result = examine(prepared, io.load(float_model), quantized, measured, samples.first, threads, clock, look)
    better = _with_rules(given, result.worst)
    if place is not None:
        saving.write_text(place, better.to_yaml())
    notes = [*prepared.notes, *samples.every.notes, *result.warnings]
    return DiagnoseResult(result, better, place, notes, folder)


def examine(
    prepared: Prepared,
    original: Model,
    quantized: Model,
    samples: Reader,
    first: Feed,
    threads: int | None,
    clock: Clock,
    look: Look | None = None,
) -> Diagnosis:
    """Rank the quantized nodes of a model that is in memory.

    Args:
        prepared: the float model, cleaned up.
        original: the float model as it was given.
        quantized: its quantized form.
        samples: at most `SAMPLES` of them are run.
        first: one sample.
        threads: threads an operator may use.
        clock: takes the time.
        look: what runs all but the float model, and what is kept of it; None runs it here.

    Raises:
        EngineError: the engine does not run it.
        ModelError: a model cannot be loaded or run, or nothing in it is quantized.
    """
    with clock.step("diagnose"):
        look, report = look or Look(), clock.report("diagnose")
        report(0, None)
        reference, apart = take_apart(prepared.model, original, quantized, first, threads, look.engine is not None)
        return everywhere(reference, apart, samples, threads, report, look)[0]


def everywhere(
    reference: Model,
    apart: Isolated,
    samples: Reader,
    threads: int | None,
    report: Callable[[int, int | None], None],
    look: Look | None = None,
) -> tuple[Diagnosis, dict[str, int]]:
    """The diagnosis of the main graph and of subgraphs.

    Args:
        reference: the float model.
        apart: its quantized form, taken apart.
        samples: as for `examine`.
        threads: threads an operator may use.
        report: called with samples done and their number.
        look: as for `examine`; an engine runs no subgraphs alone.

    Returns:
        The diagnosis, and by value the place in the main graph of what computes it: of a value in a subgraph that of
        the node which holds the subgraph.

    Raises:
        ModelError: as for `examine`.
    """
    places = {value.name or "": place for place, node in enumerate(reference.graph) for value in node.outputs}
    within = InBodies()
    if bodies_of(reference) and (look is None or look.engine is None):
        within = look_into_bodies(reference, apart.quantized, list(spread(samples)), threads, take_apart)
        places |= {finding.value: place for place, finding in within.findings}
    if apart.units or not within.findings:
        found = run_diagnosis(reference, apart, spread(samples), threads=threads, progress=report, look=look)
    else:
        found = Diagnosis([], {}, sum(1 for _ in spread(samples)))
    if within.findings:
        findings = ranked([*found.findings, *(finding for _, finding in within.findings)])
        found = replace(found, findings=findings)
    found.warnings += [f"not looked into: {note}" for note in within.notes]
    return found, places


def take_apart(
    prepared: Model,
    original: Model,
    quantized: Model,
    first: Feed,
    threads: int | None,
    as_engine: bool = False,
) -> tuple[Model, Isolated]:
    """The form of the float model that a quantized one was made from, and the quantized one node by node.

    Where channels were scaled or turned before weights were rounded, so are they in the float model that comes back: it
    computes the same, and its values and weights are those that the quantized model rounds.

    Args:
        prepared: the float model, cleaned up.
        original: the float model as it was given.
        quantized: its quantized form; its constants become initializers.
        first: one sample, which tells the values that hold real numbers.
        threads: threads an operator may use.
        as_engine: nodes are to be computed by an engine's own kernels, on integers.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    reference = _rewritten(_closest(quantized, prepared, original), quantized, first, threads)
    seen = probe(reference, first, threads=threads)
    real = {name: info.dtype.kind == "f" for name, info in seen.items()}
    reference = typed(reference, {name: info.dtype for name, info in seen.items()})
    shapes = {name: info.shape for name, info in seen.items()} if as_engine else None
    weights = (reference, prepared, original)
    return reference, isolate(reference, quantized, real, weights=weights, shapes=shapes)


def spread(samples: Reader) -> Iterator[Feed]:
    """At most `SAMPLES` of the samples, evenly spaced."""
    total = samples.count_feeds()
    chosen = {index * total // min(total, SAMPLES) for index in range(min(total, SAMPLES))}
    return (feed for index, feed in enumerate(samples) if index in chosen)


def _closest(quantized: Model, *candidates: Model) -> Model:
    """The form of the float model that has most of the quantized model's values."""
    names = set(float_values(quantized))
    return max(candidates, key=lambda model: len(names & set(float_values(model))))


def _rewritten(model: Model, quantized: Model, first: Feed, threads: int | None) -> Model:
    """A copy of a float model with the rewrites that its quantized form shows; the model itself where it shows none."""
    found = Counterparts(quantized)
    plain = copy_of(model)
    recover(plain, found, lambda axes: channel_minima(plain, axes, [first], threads=threads))
    fit = weight_fit(plain, found)
    if not any(ratio < _FOREIGN_DB for ratio in fit.values()):
        return plain
    turned, done, _ = turned_copy(model, first, threads)
    if not (done.streams or done.heads):
        return plain
    recover(turned, found)
    apart = farthest_apart(
        session_of(model, threads=threads).run(first), session_of(turned, threads=threads).run(first)
    )
    better = _mean(weight_fit(turned, found)) > _mean(fit) and apart <= TOLERANCE
    return turned if better else plain


def _mean(fit: Mapping[str, float]) -> float:
    return float(np.mean(np.clip(list(fit.values()), _FOREIGN_DB - 20.0, _FOREIGN_DB + 20.0))) if fit else 0.0


def _with_rules(recipe: Recipe, worst: list[Finding]) -> Recipe:
    rules = tuple(Rule(match=finding.node, **finding.remedy) for finding in worst if finding.remedy)
    return recipe.override(rules=(*recipe.rules, *rules))
