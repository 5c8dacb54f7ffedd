"""``dequantize``: a float model from a quantized one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from onnxq.errors import ModelError, OnnxqError, VerificationError
from onnxq.graph.files import io, saving
from onnxq.graph.reading.optimized import has_float8
from onnxq.graph.undo.grids import input_ranges
from onnxq.graph.undo.undoing import undo
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import contents
from onnxq.recipe.arguments import checked
from onnxq.report.results import DequantizeResult
from onnxq.runtime.custom_ops import Libraries, with_custom_ops
from onnxq.runtime.session import Session, open_session
from onnxq.runtime.synthetic import runnable_feed, within
from onnxq.verify.compare import compare

LOW_DB = 10.0
"""On synthetic inputs ranges clip more than on real ones; below this a warning is due all the same."""


_NOT_HERE = "not compared with the quantized model, which does not run here"


@checked
@with_custom_ops
def dequantize(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    custom_ops: Libraries = (),
) -> DequantizeResult:
    """Give a quantized model its floats back, so that it can be quantized anew.

    Weights become the real numbers that their integers stand for, activations are not rounded any more. Inputs and
    outputs keep names and types. The result is run beside the model on a synthetic sample before it is written.

    Args:
        model: path or ``onnx.ModelProto``, quantized by whatever tool; never changed.
        output: file to write; None writes ``<stem>.float.onnx`` beside a file, and nothing for a ModelProto, whose
            float form is then in ``result.model``.
        threads: threads an operator may use.
        custom_ops: libraries of custom operators that onnxruntime needs to run the model.

    Raises:
        ModelError: the model cannot be used, or nothing in it is quantized.
        VerificationError: the result does not run; nothing was written.
    """
    destination = None
    if output is not None or is_path(model):
        destination = Path(str(model)).with_suffix(".float.onnx") if output is None else Path(output)
        saving.check_destination(destination, [model])
    where = str(model) if is_path(model) else "the model"
    quantized, made = io.load(model), io.load(model)
    found = undo(made, where)
    warnings = list(found.notes)
    if found.left:
        listed = ", ".join(f"{count} {name}" for name, count in found.left.items())
        warnings.append(f"still quantized, in forms that are not known: {listed}")
    with ExitStack() as stack:
        ranges = input_ranges(quantized)
        ratio = _compared(
            _session(contents(quantized, stack), not has_float8(quantized), threads, warnings),
            contents(made, stack),
            ranges,
            threads,
            warnings,
        )
    if destination is not None:
        saving.save(made, destination, source=model if is_path(model) else None)
    return DequantizeResult(
        output=destination,
        rewritten=found.rewritten,
        left=found.left,
        sqnr_db=ratio,
        warnings=warnings,
        model=None if is_path(model) else io.to_proto(made),
    )


def _session(model: bytes | Path, optimize: bool, threads: int | None, warnings: list[str]) -> Session | None:
    """The quantized model, if it runs here; optimizations are off for float8, which they take for integers."""
    try:
        return open_session(model, optimize=optimize, threads=threads, label="quantized model")
    except ModelError as error:
        warnings.append(f"{_NOT_HERE}: {error}")
        return None


def _compared(
    original: Session | None,
    after: bytes | Path,
    ranges: Mapping[str, list[float]],
    threads: int | None,
    warnings: list[str],
) -> float | None:
    """SQNR of the quantized model against the float one on a synthetic sample; None where none runs.

    Args:
        original: the quantized model, or None where it does not load.
        after: the float one.
        ranges: what inputs hold at most, by name: beyond, the quantized model clips.
        threads: threads an operator may use.
        warnings: gets a line where they are far apart.

    Raises:
        VerificationError: the float model does not load, or does not run where the quantized one does.
    """
    if original is None:
        return None
    try:
        feed = within(runnable_feed(original), ranges)
    except ModelError as error:
        warnings.append(f"{_NOT_HERE}: {error}")
        return None
    try:
        comparison = compare(open_session(after, threads=threads, label="float model"), original, [feed])
    except OnnxqError as error:
        raise VerificationError(f"dequantize: the float model does not run, nothing was written: {error}") from None
    if comparison.sqnr_db is not None and comparison.sqnr_db < LOW_DB:
        warnings.append(
            f"on a synthetic sample the quantized model has {comparison.sqnr_db:.1f} dB against the float one; compare "
            "them on real samples with onnxq compare"
        )
    return comparison.sqnr_db
