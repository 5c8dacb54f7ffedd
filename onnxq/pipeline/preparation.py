"""The way from a float model to a verified quantized one, step by step; `onnxq.api` is thin on top of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeGuard

from onnxq.graph.files import io
from onnxq.graph.files.checker import check_weights
from onnxq.graph.prepare import prepare
from onnxq.graph.reading import origin
from onnxq.graph.types import Model, Proto
from onnxq.graph.walk import constants_to_quantize
from onnxq.pipeline.clock import Clock
from onnxq.runtime.session import InputSpec, Session, session_of
from onnxq.targets import Target

Source: TypeAlias = str | os.PathLike[str] | Proto


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


def load_and_prepare(source: Source, target: Target, clock: Clock, min_opset: int = 0) -> Prepared:
    """Load a model, check it and clean it up.

    Args:
        source: the model.
        target: what will run it.
        clock: takes the time.
        min_opset: operator set that is needed beyond what the target needs; a model that cannot be raised to it keeps
            its own, and a note says so.

    Raises:
        ModelError: the file or the graph cannot be used, or the runtime cannot load it.
    """
    with clock.step("load"):
        model = io.load(source)
        check_weights(model)
        original: Path | bytes
        if is_path(source):
            original = Path(source)
            size = io.size_bytes(original)
        else:
            original = io.to_bytes(model)
            size = len(original)
        session = session_of(model, optimize=False, packed=False, label=_name(source))
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
            min_opset=max(target.min_opset, min_opset),
        )
        _prepare(prepared, ())
    return prepared


def _prepare(prepared: Prepared, without: Collection[str]) -> None:
    before = origin.remember(prepared.model)
    prepared.op_types = before.op_types
    prepared.folded_weights = constants_to_quantize(prepared.model)
    report = prepare(prepared.model, min_opset=prepared.min_opset, without=without)
    prepared.sources = origin.sources(before, prepared.model)
    prepared.notes, prepared.has_qdq, prepared.changes = list(report.notes), report.has_qdq, report.changes


def reload(prepared: Prepared) -> Model:
    """The user's model, read once more."""
    assert prepared.source is not None
    return io.load(prepared.source)


def prepare_again(prepared: Prepared, without: Collection[str]) -> None:
    """Clean the user's model up anew, some steps left out (see `onnxq.graph.prepare.STEPS`)."""
    prepared.model = reload(prepared)
    _prepare(prepared, without)


def is_path(source: Source) -> TypeGuard[str | os.PathLike[str]]:
    """Whether the model was given as a file, not in memory."""
    return isinstance(source, str | os.PathLike)


def _name(source: Source) -> str:
    return os.fspath(source) if is_path(source) else "model"


def find_calibration(source: Source) -> Path | None:
    """``calibration_data/<stem>.npz``, or a folder ``<stem>``, beside the model's folder or in the working folder."""
    if not is_path(source):
        return None
    path = Path(source)
    places = [path.resolve().parent.parent, path.resolve().parent, Path.cwd()]
    for place in places:
        for candidate in (place / "calibration_data" / f"{path.stem}.npz", place / "calibration_data" / path.stem):
            if candidate.is_file() or (candidate.is_dir() and any(candidate.glob("*.np[zy]"))):
                return candidate
    return None
