"""What is quantized differently between two models, node by node, whoever made them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.error_measures import sqnr_db
from onnxq.graph import walk
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.reading.inspection import inspect_model
from onnxq.graph.reading.weight_facts import Weight, granularity_of, reals_of, weight_of
from onnxq.graph.undo.grids import ends_of
from onnxq.graph.views.counterparts import bare_name

_FIELDS = ("op_type", "state", "how", "weight", "output")
_RESULTS = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7, "QLinearAdd": 6, "QLinearMul": 6}
"""Where integer operators have the scale of their result; the zero point comes next."""

_SAME_RANGE = 1e-6


@dataclass
class _Side:
    """What one model says of one node."""

    name: str
    facts: dict[str, Any]
    weight: Weight | None = None
    names: set[str] = field(default_factory=set)


def differences(first: ir.Model, second: ir.Model) -> dict[str, Any]:
    """Compare two models node by node.

    Nodes are matched by name, else by the values they write, the endings that quantizers add left out.

    Args:
        first: as loaded; changed as `onnxq.graph.reading.inspection.inspect_model` changes it.
        second: likewise.

    Returns:
        ``nodes``: those that differ, each with ``node``, ``differs`` (names of what does), ``first`` and ``second``
        (``op_type``, ``state``, ``how``, ``weight``, ``output``: the range of its result) and ``weight_sqnr_db``, the
        second model's weight against the first's where both are known; ``only_first`` and ``only_second``; ``same``.
    """
    left, right = _sides(first), _sides(second)
    index: dict[str, _Side] = {}
    for side in right:
        for name in side.names:
            index.setdefault(name, side)
    rows: list[dict[str, Any]] = []
    matched: set[int] = set()
    only_first, same = [], 0
    for side in left:
        names = sorted(side.names, key=lambda name: (name != bare_name(side.name), name))
        other = next((index[n] for n in names if n in index and id(index[n]) not in matched), None)
        if other is None:
            only_first.append({"node": side.name, **side.facts})
            continue
        matched.add(id(other))
        row = _row(side, other)
        if row["differs"]:
            rows.append(row)
        else:
            same += 1
    only_second = [{"node": side.name, **side.facts} for side in right if id(side) not in matched]
    return {"nodes": rows, "only_first": only_first, "only_second": only_second, "same": same}


def _row(left: _Side, right: _Side) -> dict[str, Any]:
    differs = [name for name in _FIELDS if not _alike(left.facts[name], right.facts[name])]
    ratio = _apart(left.weight, right.weight)
    if ratio is not None and ratio != float("inf") and "weight" not in differs:
        differs.append("weight values")
    return {
        "node": left.name,
        "differs": differs,
        "first": left.facts,
        "second": right.facts,
        "weight_sqnr_db": ratio,
    }


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        size = max(*(abs(end) for end in left), *(abs(end) for end in right), 1e-30)
        return all(abs(a - b) <= _SAME_RANGE * size for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _apart(left: Weight | None, right: Weight | None) -> float | None:
    """SQNR of the second weight against the first, as real numbers; None where one is not known."""
    if left is None or right is None:
        return None
    before, after = reals_of(left), reals_of(right)
    if before is None or after is None:
        return None
    if before.shape != after.shape and before.ndim == 2 and before.T.shape == after.shape:
        after = after.T
    if before.shape != after.shape or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    return float(sqnr_db(before, after)) if before.size else None


def _sides(model: ir.Model) -> list[_Side]:
    found = inspect_model(model, 0)
    lift_constants.lift(model)
    states = {entry["name"]: entry for entry in found.nodes}
    sides = []
    for path, node in walk.nodes_with_path(model.graph):
        name = "/".join((*path, node.name or ""))
        entry = states.get(name)
        if entry is None or (not node.name and not node.outputs):
            continue
        weight = weight_of(node)
        facts = {
            "op_type": entry["op_type"],
            "state": entry["state"],
            "how": entry["how"],
            "weight": None if weight is None else _words(weight),
            "output": _range_of(node),
        }
        names = {bare_name(name)} if node.name else set()
        names |= {bare_name(value.name) for value in node.outputs if value.name}
        sides.append(_Side((node.name and name) or (node.outputs[0].name or name), facts, weight, names))
    return sides


def _words(weight: Weight) -> str:
    dtype = weight.value.dtype.name.lower() if weight.value.dtype is not None else "unknown"
    return f"{'float32' if dtype == 'float' else dtype} {granularity_of(weight)}".strip()


def _range_of(node: ir.Node) -> list[float] | None:
    """Low and high end of the grid that a node's result is put on; None where it stays float or has many scales."""
    position = _RESULTS.get(node.op_type)
    if position is not None:
        scale, zero = walk.input_at(node, position), walk.input_at(node, position + 1)
    else:
        quantize = next(
            (user for value in node.outputs for user in value.consumers() if user.op_type == "QuantizeLinear"), None
        )
        if quantize is None:
            return None
        scale, zero = walk.input_at(quantize, 1), walk.input_at(quantize, 2)
    return ends_of(scale, zero)
