"""The errors of every scheme for every float weight of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.prepare.whole import initializer_inputs
from onnxq.graph.reading.ops import channel_axis
from onnxq.graph.reading.weight_facts import weight_of
from onnxq.graph.types import Model, Node
from onnxq.plan.weights.schemes import SCHEMES, scheme_errors

ELEMENTS = 1 << 18
"""Elements of a weight that are rounded; of larger ones evenly spaced output channels."""

_BINS = 24
_SMALLEST = 16
"""Fewer elements are no weight to speak of."""


def scheme_tables(source: io.Source, *, elements: int = ELEMENTS, most: int | None = None) -> dict[str, Any]:
    """Round every float weight of a model by every scheme.

    Args:
        source: path or ``onnx.ModelProto``.
        elements: of a weight that are rounded, at most (one output channel at least).
        most: weights, the largest ones; None takes all.

    Returns:
        ``weights``: ``name``, ``node``, ``op_type``, ``shape``, ``rounded`` (elements that were), ``histogram`` (its
        ends and counts) and ``errors``, one entry a scheme; ``totals``: the same over all elements; ``left_out``: how
        many weights there were no floats of.

    Raises:
        ModelError: the model cannot be used.
    """
    model = io.load(source)
    initializer_inputs.remove_initializers(model)
    lift_constants.lift(model)
    found, left_out = list(_matrices(model)), _not_float(model)
    if most is not None:
        keep = {id(entry[1]) for entry in sorted(found, key=lambda entry: -entry[1].size)[:most]}
        left_out += len(found) - len(keep)
        found = [entry for entry in found if id(entry[1]) in keep]
    weights = [_table(node, name, array, axis, elements) for node, array, name, axis in found]
    return {"weights": weights, "totals": _totals(weights), "left_out": left_out}


def _matrices(model: Model) -> Iterator[tuple[Node, Array, str, int]]:
    """(node, weight, its name, axis of the output channels) of each float weight, once."""
    seen: set[int] = set()
    for node in walk.all_nodes(model.graph):
        value, axis = _weight(node)
        if value is None or id(value) in seen or value.dtype not in walk.FLOATS:
            continue
        array = walk.const_array(value)
        if array is None or array.ndim < 2 or array.size < _SMALLEST or not np.isfinite(array).all():
            continue
        seen.add(id(value))
        if axis is None:
            axis = channel_axis(node, array.ndim)
        yield node, array, value.name or "", (array.ndim - 1 if axis is None else axis)


def _weight(node: Node) -> tuple[Any, int | None]:
    """The constant that a layer multiplies with, or that a Gather looks up; and its channels where they are rows."""
    if node.op_type == "Gather" and node.domain == "" and walk.is_constant(walk.input_at(node, 0)):
        return node.inputs[0], 0
    if node.op_type == "ConvTranspose" and walk.is_constant(walk.input_at(node, 1)):
        return node.inputs[1], 1
    weight = weight_of(node)
    return (None if weight is None else weight.value), None


def _not_float(model: Model) -> int:
    weights = (weight_of(node) for node in walk.all_nodes(model.graph))
    return len({id(w.value) for w in weights if w is not None and w.value.dtype not in walk.FLOATS})


def _table(node: Node, name: str, array: Array, axis: int, elements: int) -> dict[str, Any]:
    matrix = np.moveaxis(np.asarray(array, np.float32), axis, 0).reshape(array.shape[axis], -1)
    ends = float(matrix.min()), float(matrix.max())
    step = -(-matrix.size // elements)
    rows = matrix[::step] if step > 1 else matrix
    counts, edges = np.histogram(rows, _BINS, ends if ends[0] < ends[1] else (ends[0], ends[0] + 1.0))
    return {
        "name": name,
        "node": node.name or "",
        "op_type": node.op_type,
        "shape": list(array.shape),
        "rounded": int(rows.size),
        "histogram": {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()},
        "errors": [_row(*_of(error)) for error in scheme_errors(rows, ends=ends)],
    }


def _of(error: Any) -> tuple[Any, float, float, float, float]:
    return error.scheme, error.mean_abs, error.mean_sq, error.mean_rel, error.bits_per_weight


def _row(scheme: Any, mean_abs: float, mean_sq: float, mean_rel: float, bits: float) -> dict[str, Any]:
    return {
        "scheme": scheme.name,
        "mode": scheme.mode,
        "bits": scheme.bits,
        "granularity": scheme.granularity,
        "mean_abs": mean_abs,
        "mean_sq": mean_sq,
        "mean_rel": mean_rel,
        "bits_per_weight": bits,
    }


def _totals(weights: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over all elements of the weights that have an entry for the scheme."""
    totals = []
    for scheme in SCHEMES:
        rows = [
            (float(np.prod(weight["shape"])), error)
            for weight in weights
            for error in weight["errors"]
            if error["scheme"] == scheme.name
        ]
        whole = sum(share for share, _ in rows)
        if not rows:
            continue
        means = [
            sum(share * row[key] for share, row in rows) / whole
            for key in ("mean_abs", "mean_sq", "mean_rel", "bits_per_weight")
        ]
        totals.append(_row(scheme, *means))
    return totals
