"""Time and error of the forms that single layers of a model can have, each tried alone on what really enters it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.readers import open_reader
from onnxq.errors import ModelError, OnnxqError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.reading.ops import STORABLE, Kind, row_of
from onnxq.graph.types import Node
from onnxq.graph.views import extract
from onnxq.graph.views.outputs import with_outputs
from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.job import Data, Job
from onnxq.pipeline.learned.compensating import Rounded
from onnxq.pipeline.planning import NothingToQuantizeError
from onnxq.plan.decisions import DYNAMIC as RUNS_DYNAMIC
from onnxq.plan.decisions import FOLDED, INTEGER, STORAGE, Plan
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.profile import KernelTime, KernelTimeCache, kernel_times
from onnxq.runtime.session import open_session, session_of
from onnxq.search.choice import DYNAMIC, FLOAT, STATIC, STORED, TOKEN, Form, Layer
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target

_MOST_BYTES = 2**29
"""Memory that errors of layers may take."""
FORMS = (STATIC, DYNAMIC, TOKEN, STORED)


def form_of(plan: Plan, name: str, recipe: Recipe, sources: Mapping[str, tuple[str, ...]]) -> str:
    """The form that a plan gives a node, by the name of the preset that stands for it."""
    action = plan.nodes[name].action
    if action in (INTEGER, FOLDED):
        return STATIC
    if action == STORAGE:
        return STORED
    if action == RUNS_DYNAMIC:
        return recipe.rule_for(sources.get(name, (name,))).preset or recipe.preset
    return FLOAT


def find_layers(prepared: Prepared, recipe: Recipe, plans: Mapping[str, tuple[Recipe, Plan]]) -> dict[str, Layer]:
    """The nodes worth a measurement: those with weights or products that some plan does not leave as they are.

    Args:
        prepared: the float model.
        recipe: the user's; nodes to which its rules give a preset are settled.
        plans: recipe and plan of each whole model, by its preset.
    """
    layers: dict[str, Layer] = {}
    static = plans[STATIC][1] if STATIC in plans else None
    for node in prepared.model.graph:
        name = node.name or ""
        row = row_of(node)
        default = {
            preset: form_of(plan, name, given, prepared.sources)
            for preset, (given, plan) in plans.items()
            if name in plan.nodes
        }
        heavy = (
            (row is not None and row.kind is Kind.WEIGHTED) or node.op_type in STORABLE or DYNAMIC in default.values()
        )
        settled = recipe.rule_for(prepared.sources.get(name, (name,))).preset is not None
        if not heavy or settled or set(default.values()) <= {FLOAT}:
            continue
        enters, leaves = _edges(node, static)
        guarded = static is not None and name in static.guarded
        clamp = static.nodes[name].folds if static is not None and name in static.nodes else None
        layers[name] = Layer(
            name, node.op_type, enters=enters, leaves=leaves, default=default, clamp=clamp, guarded=guarded
        )
    return layers


def _edges(node: Node, static: Plan | None) -> tuple[bool, bool]:
    """Whether a static form of the node stands behind float, and in front of it."""

    def integer(other: Node | None) -> bool:
        planned = static.nodes.get(other.name or "") if static is not None and other is not None else None
        return planned is not None and planned.action in (INTEGER, FOLDED)

    enters = any(
        value is not None and not walk.is_constant(value) and not integer(value.producer()) for value in node.inputs
    )
    (user,) = node.outputs[0].consumers() if len(node.outputs[0].consumers()) == 1 else (None,)
    planned = static.nodes.get(node.name or "") if static is not None else None
    last = user if planned is not None and planned.folds and user is not None and user.name == planned.folds else node
    leaves = any(
        value.is_graph_output() or any(not integer(user) for user in walk.consumers(value)) for value in last.outputs
    )
    return enters, leaves


@dataclass
class Bench:
    """What all measurements of layers share.

    Attributes:
        prepared: the float model.
        recipe: the user's.
        target: what the runtime can do.
        statistics: ranges of the model's values; None where none are known.
        threads: threads an operator may use.
        real: the feed is real, so that errors mean something.
        deadline: when to stop, on `time.monotonic`'s clock.
        engine: what times layers; None is this process.
        rounded: weights of static layers that were rounded by how they are used; None rounds to nearest.
        offsets: what the form of a layer adds to the values it makes, by (layer, form) and name of the value; filled in
            while layers are measured, as far as memory goes.
        models: files of the layers by (layer, form), float among the forms, for further samples; as far as memory goes.
    """

    prepared: Prepared
    recipe: Recipe
    target: Target
    statistics: Statistics | None
    threads: int
    real: bool
    deadline: float
    engine: ProcessEngine | None = None
    rounded: Rounded | None = None
    offsets: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict)
    models: dict[tuple[str, str], bytes] = field(default_factory=dict)
    _bytes: int = 0

    def keep(self, layer: str, form: str, offsets: dict[str, Array], models: Mapping[str, bytes]) -> None:
        """Remember what a form adds, and the layer's models, unless that is too much to hold."""
        self._bytes += sum(array.nbytes for array in offsets.values())
        if self._bytes > _MOST_BYTES:
            return
        self.offsets[layer, form] = offsets
        size = sum(map(len, models.values()))
        if self._bytes + size <= _MOST_BYTES:
            self._bytes += size
            self.models |= {(layer, name): content for name, content in models.items()}


def measure(bench: Bench, layers: Mapping[str, Layer], feed: Feed, forms: Sequence[str], clock: Clock) -> bool:
    """Fill in the forms of the layers: times, and errors of the first layer of each group of equal kernels.

    Args:
        bench: what to measure with.
        layers: changed in place.
        feed: one sample.
        forms: presets whose forms are tried.
        clock: takes the time.

    Returns:
        Whether there was time for all.
    """
    groups: dict[str, Layer] = {}

    def one(layer: Layer, node: Node, arrays: Mapping[str, Array]) -> None:
        known = f"{_group(bench, layer, node, arrays)} {layer.guarded} {sorted(layer.default.items())}"
        if known in groups:
            layer.forms = {form: replace(found, sqnr_db=None) for form, found in groups[known].forms.items()}
            return
        _measure_one(bench, layer, node, arrays, forms, memory)
        groups[known] = layer

    memory = KernelTimeCache(bench.threads, kept=bench.engine is None)
    complete = _each(bench, layers, feed, clock, one)
    memory.save()
    return complete


def measure_errors(bench: Bench, layers: Mapping[str, Layer], forms: Collection[str], feed: Feed, clock: Clock) -> None:
    """Fill in the errors that `measure` left out, until the time is over; forms that do not run are dropped.

    Args:
        bench: as `measure` left it.
        layers: changed in place.
        forms: whose errors are wanted.
        feed: the sample that `measure` ran.
        clock: takes the time.
    """
    lacking = {
        name: layer
        for name, layer in layers.items()
        if any(form in forms and found.sqnr_db is None for form, found in layer.forms.items())
    }
    if bench.real and lacking:
        _each(bench, lacking, feed, clock, lambda layer, _, arrays: _compare_one(bench, layer, forms, arrays))


def _each(
    bench: Bench,
    layers: Mapping[str, Layer],
    feed: Feed,
    clock: Clock,
    work: Callable[[Layer, Node, Mapping[str, Array]], None],
) -> bool:
    """Look at layers one by one, with what they read in one run of the model; whether there was time for all."""
    with clock.step("layers"):
        nodes = {node.name or "": node for node in bench.prepared.model.graph}
        arrays = capturing(bench, [nodes[name] for name in layers])(feed)
        report = clock.report("layers")
        for done, (name, layer) in enumerate(layers.items()):
            if time.monotonic() > bench.deadline:
                return False
            try:
                work(layer, nodes[name], arrays)
            except OnnxqError:  # such a layer keeps the form that the whole model's plan gives it
                if bench.engine is not None and not bench.engine.lives:
                    raise
            report(done + 1, len(layers))
    return True


def capturing(bench: Bench, nodes: Iterable[Node]) -> Callable[[Feed], dict[str, Array]]:
    """What gives, for a sample, what the nodes read in one run of the float model."""
    wanted = {value.name: None for node in nodes for value in node.inputs if value is not None and value.name}
    augmented = with_outputs(bench.prepared.model, wanted)
    try:
        session = session_of(augmented.model, threads=bench.threads, optimize=False, packed=False)
    except ModelError:
        return dict

    def captured(feed: Feed) -> dict[str, Array]:
        try:
            arrays = session.run(feed, augmented.outputs) if augmented.outputs else []
        except ModelError:
            return dict(feed)
        return {**feed, **dict(zip(augmented.outputs, arrays, strict=True))}

    return captured


def _measure_one(
    bench: Bench, layer: Layer, node: Node, arrays: Mapping[str, Array], forms: Sequence[str], memory: KernelTimeCache
) -> None:
    # the whole model's plan has seen where there is none
    wanted = [form for form in forms if not (layer.guarded if form == STATIC else layer.default.get(form) != form)]
    if not (found := _models(bench, layer, arrays, wanted))[0]:
        return
    models, feed = found
    group = _group(bench, layer, node, arrays)
    times = memory.get(group, models)
    if times is None:
        times = kernel_times(models, feed, threads=bench.threads, engine=bench.engine)
        memory.put(group, times)
    errors = _errors(bench, layer.name, models, feed) if bench.real else {}
    for form in models:
        if form in times and (form == FLOAT or not bench.real or form in errors):
            layer.forms[form] = _form(form, times[form], errors.get(form), len(models[form]))


def _compare_one(bench: Bench, layer: Layer, forms: Collection[str], arrays: Mapping[str, Array]) -> None:
    lacking = [form for form in forms if form in layer.forms and layer.forms[form].sqnr_db is None]
    models, feed = _models(bench, layer, arrays, lacking)
    errors = _errors(bench, layer.name, models, feed)
    layer.forms = {
        form: replace(found, sqnr_db=errors[form]) if form in errors else found
        for form, found in layer.forms.items()
        if form not in lacking or form in errors
    }


def _models(
    bench: Bench, layer: Layer, arrays: Mapping[str, Array], forms: Iterable[str]
) -> tuple[dict[str, bytes], Feed]:
    """A model of a layer in each form that it can have, float among them, and what they take."""
    names = [layer.name, *([layer.clamp] if layer.clamp is not None else [])]
    part = extract.extract(bench.prepared.model, names, arrays)
    if part is None:
        return {}, {}
    feed = {str(value.name): arrays[str(value.name)] for value in part.graph.inputs}
    content = io.to_bytes(part)
    inputs = [InputSpec(name, array.dtype, array.shape) for name, array in feed.items()]
    prepared = Prepared(part, content, len(content), {name: (name,) for name in names}, inputs)
    reader = open_reader([feed], inputs)
    data = Data(reader, reader, feed, reader)
    models = {FLOAT: content}
    for form in forms:
        with contextlib.suppress(OnnxqError):  # a form that the layer cannot have
            models[form] = _in_form(bench, prepared, form, data)
    return models, feed


def _group(bench: Bench, layer: Layer, node: Node, arrays: Mapping[str, Array]) -> str:
    """What the times of a layer's forms depend on."""
    clamp, recipe = "" if layer.clamp is None else "clamped", bench.recipe
    settings = f"{recipe.format} {recipe.symmetric} {recipe.per_channel} {bench.target.name}"
    return f"{extract.signature(node, arrays)} {clamp} {settings}"


def _form(form: str, times: KernelTime, sqnr_db: float | None, size: int) -> Form:
    if form == STATIC:
        return Form(times.compute, times.quantize, times.dequantize, sqnr_db, size=size)
    return Form(times.total, sqnr_db=sqnr_db, size=size)  # QuantizeLinear is a part of the work there


def _in_form(bench: Bench, prepared: Prepared, preset: str, data: Data) -> bytes:
    """A model of one layer, quantized as a preset would, with the ranges of the whole model."""
    kept = ("format", "range", "percentile", "per_channel", "symmetric", "target", "block_size")
    recipe = Recipe(preset=preset, include=("*",), **{key: getattr(bench.recipe, key) for key in kept})
    if bench.rounded is not None:
        recipe = recipe.override(algorithm="gptq")
    job = Job(prepared, recipe, bench.target, data, threads=bench.threads, rounded=bench.rounded)
    known = bench.statistics if preset == STATIC else None
    if known is not None:
        wanted = {str(value.name) for scope in (prepared.model.graph,) for value in walk.all_values(scope)}
        ranges = Statistics()
        for name in wanted & set(known):
            ranges.put(name, known[name])
        with contextlib.suppress(OnnxqError):  # a value without a range: the sample gives it one
            return _contents(build(replace(job, statistics=ranges)), preset)
    return _contents(build(job), preset)


def _contents(built: Candidate, preset: str) -> bytes:
    """The model of a layer; refused where the preset gives the layer another form than its own."""
    name = next(iter(built.plan.nodes))
    form = form_of(built.plan, name, built.recipe, {})
    if form != preset:
        raise NothingToQuantizeError(f"node {name!r}: has no form of its own as {preset}, it becomes {form}")
    return io.to_bytes(built.quantized)


def _errors(bench: Bench, layer: str, models: Mapping[str, bytes], feed: Feed) -> dict[str, float]:
    """SQNR of the outputs of each form against float's, in dB; a form that does not run is left out."""
    expected: list[Array] = []
    names: Sequence[str] = []
    found: dict[str, float] = {}
    for form, content in models.items():
        try:
            session = open_session(content, threads=bench.threads, label=form)
            outputs = session.run(feed)
        except ModelError:
            continue
        if form == FLOAT:
            expected, names = outputs, session.output_names
        elif expected:
            pairs = {n: (e, a) for n, e, a in zip(names, expected, outputs, strict=True) if comparable(e, a)}
            if pairs:
                found[form] = sqnr_of(pairs.values())
                offsets = {name: actual - reference for name, (reference, actual) in pairs.items()}
                bench.keep(layer, form, offsets, {FLOAT: models[FLOAT], form: content})
    return found


def comparable(expected: object, actual: object) -> bool:
    """Whether both are real numbers of one shape."""
    real = [array for array in (expected, actual) if isinstance(array, np.ndarray) and array.dtype == np.float32]
    return len(real) == 2 and real[0].shape == real[1].shape


def sqnr_of(pairs: Iterable[tuple[Array, Array]]) -> float:
    """SQNR over several arrays together, in dB; in float32, which is quick and good enough to compare forms."""
    signal = noise = 0.0
    for expected, actual in pairs:
        error = actual - expected
        signal += float(np.vdot(expected, expected))
        noise += float(np.vdot(error, error))
    return decibels(signal, noise)
