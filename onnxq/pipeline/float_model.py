"""The float model of one quantization: loaded, cleaned up, and cleaned up anew where a step did harm."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeGuard

from onnxq.core.dtypes import Array
from onnxq.errors import ModelError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_sizes, check_weights
from onnxq.graph.files.external import READ_UP_TO
from onnxq.graph.files.saved_by_runtime import note_of_fused
from onnxq.graph.files.watch import Watch
from onnxq.graph.prepare import PrepareReport, prepare
from onnxq.graph.prepare.whole import lower_opset, shapes, widen
from onnxq.graph.prepare.whole.drop_tail import drop_tail
from onnxq.graph.prepare.whole.fix_dims import fix_dims
from onnxq.graph.reading import origin
from onnxq.graph.types import ElementType, Model, Proto
from onnxq.graph.walk import constants_to_quantize, opset
from onnxq.pipeline.clock import Clock
from onnxq.plan.given import Training
from onnxq.runtime.session import InputSpec, Session, open_mapped, session_of
from onnxq.targets import WHOLE, Target

Source: TypeAlias = str | os.PathLike[str] | bytes | Proto


@dataclass(frozen=True)
class Wishes:
    """What a user wants of the float model before anything else is done to it.

    Attributes:
        min_opset: operator set that is needed beyond what the target needs; a model that cannot be raised to it keeps
            its own, and a note says so.
        keep_halves: a float16 model stays one; else it computes in float32 inside, and so does a float64 model.
        sizes: sizes of symbolic dimensions, by name.
        opset: the operator set that the model must have in the end; None where any will do.
        drop_tail: post-processing is taken off.
    """

    min_opset: int = 0
    keep_halves: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    opset: int | None = None
    drop_tail: bool = False


@dataclass
class Prepared:
    """A float model, loaded and cleaned up.

    Attributes:
        model: the prepared model.
        original: the float model as the runtime is given it: its path, or its contents.
        size: bytes of the float model.
        sources: for each node, the names it had in the user's model.
        inputs: what the model takes.
        notes: what preparing could not do.
        has_qdq: the model holds quantized tensors already.
        folded_weights: float weights behind a QuantizeLinear (from quantization-aware training) that became integers.
        op_types: operator of each node of the user's model.
        label: what messages call the model.
        changes: what preparing did, and how often.
        session: the user's model, opened as it is until `onnxq.pipeline.confirm` has run it.
        source: what the model was read from.
        min_opset: what the operator set was to be raised to.
        versions: (operator set, IR version) of the user's model and of the prepared one.
        widened: the element types that became float32 inside.
        watch: the files of the model; None for one in memory.
        widened_at_load: they did so already in ``original``, since the runtime has no kernels for them.
        outputs: what the model gives; without outputs that are no tensors.
        head_sizes: numbers that a head of keys holds, by attention, where caches are to have another form.
        wishes: what it was to be like.
        needed: operator set that the target and the form of weights need.
        max_opset: the newest operator set that the target reads.
        not_run: operators that the target's engine has nothing for.
        integers: that engine computes on integers alone.
        training: what it was trained with, taken out of its graph; None where it brought nothing along.
        evened: channels of its activations were evened out.
        depthwise: what `onnxq.pipeline.channels.finer_sums` found of its layers, for all that is built of it.
    """

    model: Model
    original: Path | bytes
    size: int
    sources: dict[str, tuple[str, ...]]
    inputs: list[InputSpec]
    notes: list[str] = field(default_factory=list)
    has_qdq: bool = False
    folded_weights: int = 0
    op_types: dict[str, str] = field(default_factory=dict)
    label: str = "model"
    changes: Counter[str] = field(default_factory=Counter)
    session: Session | None = None
    source: Source | None = None
    min_opset: int = 0
    versions: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    widened: Collection[ElementType] = ()
    widened_at_load: bool = False
    watch: Watch | None = None
    outputs: list[InputSpec] = field(default_factory=list)
    head_sizes: dict[str, int] = field(default_factory=dict)
    wishes: Wishes = Wishes()
    needed: int = 0
    max_opset: int = 99
    not_run: frozenset[str] = frozenset()
    integers: bool = False
    training: Training | None = None
    evened: bool = False
    depthwise: dict[str, Array | None] = field(default_factory=dict)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Work that writes nothing; at its end the model's files have to be what they were when they were read.

        Raises:
            ModelError: they are not, and whatever else went wrong came of that.
        """
        try:
            yield
        except Exception:
            self.check_unchanged()
            raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise ModelError if the model's files are not what they were when they were read."""
        if self.watch is not None:
            self.watch.check()


_NO_WISHES = Wishes()


def load_and_prepare(source: Source, target: Target, clock: Clock, wishes: Wishes = _NO_WISHES) -> Prepared:
    """Load a model, check it and clean it up.

    Args:
        source: the model.
        target: what will run it.
        clock: takes the time.
        wishes: what it is to be like.

    Raises:
        ModelError: the file or the graph cannot be used, or the runtime cannot load it.
        RecipeError: it cannot be what is wished for.
    """
    with clock.step("load"):
        watch = Watch.of(source) if is_path(source) else None
        model = io.load(source)
        check_weights(model)
        original: Path | bytes
        if is_path(source):
            original = Path(source)
            size = io.size_bytes(original)
            if io.mapped_files(model) and size <= READ_UP_TO:
                original = io.to_bytes(model)  # the runtime would map the weights, and die if they are cut
        else:
            original = io.to_bytes(model)
            size = len(original)
        fixed = bool(wishes.sizes) and fix_dims(model, wishes.sizes) > 0
        cut = [drop_tail(model, _not_run(target))] if wishes.drop_tail else []
        fixed = fixed or bool(cut)
        mapped = is_path(source) and not fixed and size > READ_UP_TO and bool(io.mapped_files(model))
        session, changed = _opened(model, _name(source), Path(source) if mapped and is_path(source) else None)
        if changed == "types" or fixed or (changed and not is_path(source)):
            original = io.to_bytes(model)
        inputs = session.input_specs
    with clock.step("prepare"):
        prepared = Prepared(
            model,
            original,
            size,
            {},
            inputs,
            label=_name(source),
            session=session,
            source=source,
            min_opset=max(target.min_opset, wishes.min_opset, wishes.opset or 0),
            widened=() if wishes.keep_halves else widen.EVERY,
            widened_at_load=changed == "types",
            watch=watch,
            outputs=session.output_specs,
            wishes=wishes,
            not_run=_not_run(target),
            integers=target.coverage == WHOLE,
            needed=max(target.min_opset, wishes.min_opset),
            max_opset=target.max_opset,
        )
        _prepare(prepared, ())
        prepared.notes[:0] = cut
        check_sizes(prepared.model)
    return prepared


def _not_run(target: Target) -> frozenset[str]:
    return target.runs.names if target.coverage == WHOLE else frozenset()


def _settle_opset(model: Model, wished: int, needed: int, report: PrepareReport) -> None:
    """Give a model the operator set that the user wants.

    Raises:
        RecipeError: it cannot have it.
    """
    if wished < needed:
        raise RecipeError(
            f"--opset {wished}: this target, or this form of weights, needs {needed}; leave it out, or take {needed}"
        )
    if opset(model) > wished:
        lower_opset.run(model, wished)
    if opset(model) != wished:
        why = next((note for note in report.notes if "operator set" in note), "")
        why = why or "operators of it mean something else there; export the model at that operator set"
        raise RecipeError(f"--opset {wished}: the model cannot be brought from {opset(model)} to it: {why}")
    report.opset = report.opset[0], wished


def _opened(model: Model, label: str, mapped: Path | None) -> tuple[Session, str]:
    """The user's model in the runtime; one whose types it has no kernels for computes in float32 from here on.

    Args:
        model: changed in place where it needs that.
        label: what messages call it.
        mapped: its file, if that is to be opened rather than a copy of the weights.

    Returns:
        The session, and what of the model was changed: "shapes" that it declares, "types", or nothing.

    Raises:
        ModelError: the runtime cannot load it, or an input or output is bfloat16, which numpy does not know.
    """
    edge = widen.edge_of(model, widen.BFLOAT16)
    if edge is not None:
        raise ModelError(
            f"{label}: '{edge}' is bfloat16, which onnxruntime neither takes from Python nor gives; export the model "
            "with float32 or float16 inputs and outputs"
        )
    try:
        if mapped is not None:
            return open_mapped(mapped, optimize=False, label=label), ""
        return session_of(model, optimize=False, packed=False, label=label), ""
    except ModelError as error:
        if shapes.forget(model):  # the runtime may believe one of these where its weights are elsewhere
            with suppress(ModelError):
                return session_of(model, optimize=False, packed=False, label=label), "shapes"
        if not widen.run(model, widen.EVERY):
            raise error
    return session_of(model, optimize=False, packed=False, label=label), "types"


def _prepare(prepared: Prepared, without: Collection[str]) -> None:
    before = origin.remember(prepared.model)
    prepared.op_types = before.op_types
    prepared.folded_weights = constants_to_quantize(prepared.model)
    ir_version = prepared.model.ir_version
    report = prepare(
        prepared.model,
        min_opset=prepared.min_opset,
        without=without,
        widened=prepared.widened,
        integers=prepared.integers,
        lacking=prepared.not_run,
    )
    if prepared.wishes.opset is not None:
        _settle_opset(prepared.model, prepared.wishes.opset, prepared.needed, report)
    elif (version := opset(prepared.model)) > prepared.max_opset:
        if lower_opset.run(prepared.model, prepared.max_opset):
            report.opset = report.opset[0], prepared.max_opset
        else:
            report.notes.append(
                f"the target reads operator sets up to {prepared.max_opset}, and operators of this model mean "
                f"something else in {version}; export it at {prepared.max_opset} or below"
            )
    fused = note_of_fused(prepared.model)
    prepared.sources = origin.sources(before, prepared.model)
    prepared.notes = [*report.notes, *([fused] if fused else [])]
    opset_before, opset_after = report.opset
    prepared.versions = (opset_before, ir_version), (opset_after, prepared.model.ir_version)
    prepared.has_qdq, prepared.changes = report.has_qdq, report.changes


def reload(prepared: Prepared) -> Model:
    """The user's model, read once more."""
    assert prepared.source is not None
    model = io.load(prepared.source)
    if prepared.wishes.sizes:
        fix_dims(model, prepared.wishes.sizes)
    if prepared.wishes.drop_tail:
        drop_tail(model, prepared.not_run)
    if prepared.widened_at_load:
        widen.run(model, widen.EVERY)
    return model


def prepare_again(prepared: Prepared, without: Collection[str]) -> None:
    """Clean the user's model up anew, some steps left out (see `onnxq.graph.prepare.STEPS`)."""
    prepared.model = reload(prepared)
    _prepare(prepared, without)


def is_path(source: Source) -> TypeGuard[str | os.PathLike[str]]:
    """Whether the model was given as a file, not in memory."""
    return isinstance(source, str | os.PathLike)


def _name(source: Source) -> str:
    return os.fspath(source) if is_path(source) else "model"
