"""Fusion of transformers by ONNX Runtime's own library, in a process of its own and checked before it is believed.

The library (`onnxruntime.transformers`) knows the models of each exporter and joins their attention, embeddings and
activations into operators of ONNX Runtime. It ends on unexpected graphs in whatever way, changes the import path of
its process and logs a lot: none of this reaches the caller.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxq.core import scratch
from onnxq.data.feeds import Feed
from onnxq.errors import MissingExtraError, ModelError, OnnxqError, RecipeError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.names import make_unique
from onnxq.graph.traits import Trait, having
from onnxq.graph.types import Model
from onnxq.runtime.session import session_of

TOLERANCE = 1e-4
"""Largest difference of an output, in units of its largest number (of 1 where that is smaller)."""

TRIED = ("bert", "gpt2", "bert_tf", "vit", "t5", "clip")
"""Model types that "auto" tries, one after the other: the first that fuses attention is taken; else, of the first two,
the one that joins more; else the first that joins anything."""

TYPES = (*TRIED, "bart", "bert_keras", "conformer", "gpt2_tf", "gpt_neox", "phi", "qwen3", "sam2", "swin", "tnlr")

NORM_OPSET = 17
"""Operator set that has LayerNormalization, which the library writes whatever the model's own is."""

_ATTENTION = having(Trait.ATTENDS) | {"GroupQueryAttention"}
_SECONDS = 600
_NEEDED = ("sympy",)


@dataclass
class Fused:
    """What came of it.

    Attributes:
        model: the fused model; None where it is not used.
        operators: how many nodes of each fused operator it has.
        note: why it is not used; empty where it is.
    """

    model: Model | None
    operators: Counter[str] = field(default_factory=Counter)
    note: str = ""


def fuse(model: Model, model_type: str, feed: Feed, *, skip_norms: bool = True, threads: int | None = None) -> Fused:
    """Fuse a float model and make sure that it computes the same.

    Args:
        model: unchanged; its constants are folded.
        model_type: a name the library knows, or "auto".
        feed: a sample on which both are compared.
        skip_norms: also join residual sums with the normalizations behind them.
        threads: threads an operator may use.

    Raises:
        RecipeError: there is no such type.
        MissingExtraError: a package that the library needs is not installed.
        ModelError: the model has more than 2 GB.
    """
    if model_type != "auto" and model_type not in TYPES:
        raise RecipeError(f"--fuse: no model type {model_type!r}; there are auto, {', '.join(TYPES)}")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"--fuse: needs {', '.join(missing)}, which is not installed; pip install 'onnxq[fuse]'"
        )
    tried = TRIED if model_type == "auto" else (model_type,)
    best, notes = Fused(None), []
    with scratch.folder() as folder:
        source = folder / "model.onnx"
        source.write_bytes(_contents(model))
        for index, name in enumerate(tried):
            if index >= 2 and best.model is not None:
                break
            result = folder / f"{name}.onnx"
            failure = _run(source, result, name, _heads(model), skip_norms, walk.opset(model))
            found = Fused(None, note=failure) if failure else _checked(model, result, feed, threads)
            if found.model is None:
                notes.append(f"{name}: {found.note}")
            elif best.model is None or found.operators.total() > best.operators.total():
                best = found
            if found.model is not None and _ATTENTION & found.operators.keys():
                return found
    if best.model is None:
        best.note = f"--fuse {model_type}: not used, the model is quantized as it is ({notes[0]})"
    return best


def _contents(model: Model) -> bytes:
    try:
        return io.to_bytes(model)
    except ModelError:
        raise ModelError(
            "--fuse: the model has more than 2 GB, which is too much to fuse on the way; run "
            "python -m onnxruntime.transformers.optimizer --opt_level 0 --use_external_data_format on it and quantize "
            "what that gives"
        ) from None


def _heads(model: Model) -> tuple[int, int]:
    """(heads, hidden size) by the commonest Reshape to (…, heads, size); zeros where there is none."""
    shapes: Counter[tuple[int, int]] = Counter()
    for node in walk.all_nodes(model.graph):
        if node.op_type != "Reshape":
            continue
        dims = walk.dims(node.outputs[0])
        if dims is not None and len(dims) == 4 and dims[2] and dims[3]:
            shapes[dims[2], dims[3]] += 1
    if not shapes:
        return 0, 0
    (heads, size), _ = shapes.most_common(1)[0]
    return heads, heads * size


def _run(source: Path, result: Path, model_type: str, heads: tuple[int, int], skip_norms: bool, opset: int) -> str:
    """Run the library; returns why it failed, or nothing."""
    command = [
        sys.executable, "-m", "onnxruntime.transformers.optimizer", "--input", str(source), "--output", str(result),
        "--model_type", model_type, "--opt_level", "0",
    ]  # fmt: skip
    if model_type not in ("bert", "bert_tf", "bert_keras"):  # these it finds by itself
        command += ["--num_heads", str(heads[0]), "--hidden_size", str(heads[1])]
    if opset < NORM_OPSET:
        command.append("--disable_layer_norm")
    if not skip_norms:
        command += ["--disable_skip_layer_norm", "--disable_bias_skip_layer_norm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the library did not run: {error}"
    if done.returncode == 0 and result.is_file():
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"the library failed: {lines[-1] if lines else f'exit status {done.returncode}'}"


def _checked(model: Model, result: Path, feed: Feed, threads: int | None) -> Fused:
    try:
        fused = io.load(result)
    except OnnxqError as error:
        return Fused(None, note=f"its result is no model: {error}")
    before = Counter(_operators(model))
    operators = +(Counter(_operators(fused)) - before)
    if not operators:
        return Fused(None, note="nothing in the model is of this type")
    for kind, ours, theirs in (
        ("inputs", model.graph.inputs, fused.graph.inputs),
        ("outputs", model.graph.outputs, fused.graph.outputs),
    ):
        if [(v.name, v.dtype) for v in ours] != [(v.name, v.dtype) for v in theirs]:
            return Fused(None, note=f"it changed the names, types or order of the {kind}")
    make_unique(fused)
    try:
        expected = session_of(model, threads=threads).run(feed)
        actual = session_of(fused, threads=threads).run(feed)
    except OnnxqError as error:
        return Fused(None, note=str(error))
    apart = farthest_apart(expected, actual)
    if not apart <= TOLERANCE:
        return Fused(None, note=f"its outputs differ by {apart:.1e}, more than {TOLERANCE:.0e}")
    fused.meta.update({key: value for key, value in model.meta.items() if key not in fused.meta})
    return Fused(fused, operators)


def _operators(model: Model) -> Iterable[str]:
    return (node.op_type for node in walk.all_nodes(model.graph) if node.domain not in ("", "ai.onnx"))


def farthest_apart(expected: Sequence[object], actual: Sequence[object]) -> float:
    """The largest difference of any output, in units of its largest number."""
    worst = 0.0
    for left, right in zip(expected, actual, strict=True):
        a, b = np.asarray(left), np.asarray(right)
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(a, b) else float("inf"))
            continue
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return float("inf")
        if finite.any():
            unit = max(1.0, float(np.abs(a[finite]).max()))
            worst = max(worst, float(np.abs(a[finite].astype(np.float64) - b[finite]).max()) / unit)
    return worst
