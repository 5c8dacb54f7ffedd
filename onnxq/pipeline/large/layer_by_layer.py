"""Verification of a model that does not fit in memory: every layer beside its float one, then the whole model once."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import sqnr_db
from onnxq.core.in_order import each
from onnxq.core.processors import free_processors
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.files.io import expect_weights, forget_weights
from onnxq.graph.files.structure import check_structure
from onnxq.graph.files.whole_file import write_beside
from onnxq.graph.types import Model, Node
from onnxq.graph.views.single_layer import Layers, layer_ends
from onnxq.graph.walk import all_nodes
from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import Verdict
from onnxq.pipeline.job import Job
from onnxq.pipeline.large.pieces import Pieces, in_pieces
from onnxq.plan.decisions import DYNAMIC, STORAGE, WEIGHT
from onnxq.runtime.session import Session, open_mapped, session_of
from onnxq.runtime.synthetic import described, dummy_feed, runnable_feed

_APART_DB = 10.0
"""A layer's outputs may be farther off than its weights by what rounding its input adds, not by this much."""

_AUDIBLE_DB = 30.0
"""Above this no difference counts."""


_AT_ONCE = 2
"""Layers that are run at a time: each has one thread for most of it, while the runtime lays out its weights."""

_SHORT = (1, 8)
"""Lengths of the free axes of a synthetic sample that are tried first."""


@dataclass
class _Found:
    """Figures of layers that were run alone: signal to noise of their outputs, in dB."""

    decibels: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def build_large(job: Job) -> Candidate:
    """Build and verify the model of a named preset, with no more than one layer in memory.

    Args:
        job: of a recipe that `onnxq.pipeline.large.too_large.is_large` says yes to; with a place for the weights.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        OnnxqError: the disk is full.
    """
    built = build(job)
    with job.clock.step("verify"):
        built.verdict = _verdict(built, job)
    return built


def _verdict(built: Candidate, job: Job) -> Verdict:
    verdict = Verdict()
    try:
        check_structure(built.quantized)
    except ModelError as error:
        verdict.failures.append(f"quantized model: the ONNX checker refuses it: {error}")
        verdict.refused = True
        return verdict
    try:
        _judge_layers(built, job, verdict)
        _run_whole(built, job, verdict)
    except ModelError as error:
        verdict.failures.append(str(error))
        verdict.refused = True
    return verdict


def _judge_layers(built: Candidate, job: Job, verdict: Verdict) -> None:
    """Run every layer whose weight was quantized beside its float one, on normal numbers.

    Raises:
        ModelError: the runtime refuses one.
    """
    before, after = Layers(job.prepared.model), Layers(built.quantized)
    nodes = {node.name or "": node for node in all_nodes(job.prepared.model.graph)}
    wanted = [name for name, plan in built.plan.nodes.items() if plan.action in (WEIGHT, DYNAMIC, STORAGE)]
    found = _Found()
    progress = job.clock.report("verify")
    for count in range(0, len(wanted), _AT_ONCE):
        progress(count, len(wanted))
        for ahead in wanted[count + (_AT_ONCE if count else 0) : count + 2 * _AT_ONCE]:  # read while these run
            if ahead in nodes:
                expect_weights(nodes[ahead])
        layers = [_taken(nodes[name], before, after) for name in wanted[count : count + _AT_ONCE] if name in nodes]
        for layer, figure in each(_decibels, [layer for layer in layers if layer is not None]):
            if figure is not None:
                found.decibels[layer] = figure
                if figure <= 0.0:
                    found.broken.append(layer)
    if found.broken:
        verdict.failures.append(
            f"layer {found.broken[0]!r}{_more(found.broken)}: its outputs are NaN or infinite, or nothing but noise, "
            "on normal numbers; exclude it, or use more --bits"
        )
    if not found.decibels:
        return
    weakest = min(found.decibels, key=lambda name: found.decibels[name])
    verdict.warnings.append(
        f"the float model does not fit in --max-memory, so {len(found.decibels)} of {len(wanted)} layers were compared "
        f"with it one by one on normal numbers: at least {found.decibels[weakest]:.1f} dB SQNR, in {weakest!r}"
    )
    weights = {layer.node: layer.error_db for layer in built.weights if layer.error_db is not None}
    odd = [
        name
        for name, figure in found.decibels.items()
        if figure < min(weights.get(name, -math.inf) - _APART_DB, _AUDIBLE_DB)
    ]
    if odd:
        verdict.warnings.append(
            f"layer {odd[0]!r}{_more(odd)}: onnxruntime computes something else than its weights say "
            f"({found.decibels[odd[0]]:.1f} dB, its weight {weights[odd[0]]:.1f} dB); exclude it"
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@dataclass(frozen=True)
class _Layer:
    """One layer as two models, and what they are run on."""

    name: str
    read: str
    written: str
    array: Array
    before: Model
    after: Model


def _taken(node: Node, before: Layers, after: Layers) -> _Layer | None:
    """A layer by itself; None where it cannot be run so."""
    ends = layer_ends(node)
    if ends is None:
        return None
    read, written, shape, dtype, most = ends
    array = _numbers(shape, dtype, most)
    real, rounded = (layers.part(read, written, array) for layers in (before, after))
    if real is None or rounded is None:
        return None
    return _Layer(node.name or "", read, written, array, real, rounded)


def _decibels(layer: _Layer) -> tuple[str, float | None]:
    """Its name, and the signal to noise of its outputs; None where they are 0 or not finite in float.

    Raises:
        ModelError: the runtime refuses it.
    """
    results: list[Array] = []
    for part in (layer.before, layer.after):
        # kernels that unpack few bits are many times slower on weights that they have not laid out
        threads, packed = max(1, free_processors() // _AT_ONCE), part is layer.after
        session = session_of(part, optimize=False, packed=packed, threads=threads, label=layer.name)
        results.append(session.run({layer.read: layer.array}, [layer.written])[0])
        forget_weights(part)
    real, rounded = (np.asarray(result, np.float32) for result in results)
    if not np.isfinite(real).all() or not real.any():
        return layer.name, None  # what is not finite in float is no fault of rounding
    return layer.name, sqnr_db(real, rounded) if np.isfinite(rounded).all() else -math.inf


def _numbers(shape: tuple[int, ...], dtype: str, most: int) -> Array:
    random = np.random.default_rng(0)
    if most:
        return np.asarray(random.integers(most, size=shape), dtype)
    return random.standard_normal(shape, np.float32).astype(dtype)


def _run_whole(built: Candidate, job: Job, verdict: Verdict) -> None:
    """Run the finished model once.

    Raises:
        ModelError: the runtime refuses the finished model.
    """
    folds = built.plan.counts(STORAGE) > 0  # with its optimizations on, the runtime would unfold these into floats
    assert job.spill is not None
    file = write_beside(built.quantized, job.spill)
    session = open_mapped(file, optimize=not folds, threads=job.threads, label="quantized model")
    pieces = in_pieces(built.quantized, optimize=not folds, threads=job.threads)
    try:
        feed, results = _first_run(session, pieces)
    except ModelError as error:
        verdict.warnings.append(f"loaded, but not run: no synthetic input fits the model ({error})")
        return
    bad = [name for name, result in zip(session.output_names, results, strict=True) if _broken(result)]
    if bad:
        verdict.failures.append(f"output {bad[0]!r} is NaN or infinite on a synthetic sample")
    verdict.warnings.append(
        f"the finished model was run once, on a synthetic sample, {described(feed)}{_apart(pieces)}; raise "
        "--max-memory to compare and to time it beside float"
    )


def _apart(pieces: Pieces | None) -> str:
    return f", in {pieces.count} parts one after the other" if pieces is not None and pieces.count > 1 else ""


def _first_run(session: Session, pieces: Pieces | None) -> tuple[Feed, list[object]]:
    """A synthetic sample, as short as the model takes, and what it gives; a large model is given the time it needs.

    Raises:
        ModelError: it runs on none.
    """
    run = session.run if pieces is None else pieces.run
    for size in _SHORT:
        feed = dummy_feed(session.input_specs, size)
        with suppress(ModelError):
            return feed, run(feed)
    feed = runnable_feed(session)
    return feed, session.run(feed)


def _broken(result: object) -> bool:
    array = np.asarray(result) if isinstance(result, np.ndarray) else None
    return array is not None and array.dtype.kind == "f" and not bool(np.isfinite(array).all())
