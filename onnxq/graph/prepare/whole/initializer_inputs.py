"""Initializers that are also graph inputs stop being inputs, and become inputs again where nothing took them up.

Before IR version 4 every initializer had to be an input, and ONNX Runtime lets nobody override it; from then on it is a
default that a caller may override.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk

OVERRIDABLE_FROM = 4
"""The IR version from which on a caller may override an initializer that is an input."""

_KEPT = "onnxq.overridable"
"""Key of ``ir.Model.meta``: what `restore` needs."""


@dataclass(frozen=True)
class _Overridable:
    """How an initializer was before the model was prepared."""

    name: str
    tensor: ir.TensorProtocol
    uses: int


@dataclass(frozen=True)
class _Before:
    order: tuple[str, ...]
    values: tuple[_Overridable, ...]


def remove_initializers(model: ir.Model) -> int:
    """Take every initializer out of the graph's inputs, so that it is constant and can be folded or quantized.

    Returns:
        How many there were.
    """
    graph = model.graph
    shared = [value for value in graph.inputs if value.is_initializer()]
    if not shared:
        return 0
    if model.ir_version >= OVERRIDABLE_FROM:
        order = tuple(value.name or "" for value in graph.inputs)
        defaults = tuple(
            _Overridable(value.name, value.const_value, len(value.uses()))
            for value in shared
            if value.name and value.const_value is not None
        )
        model.meta[_KEPT] = _Before(order, defaults)
    kept = [value for value in graph.inputs if not value.is_initializer()]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for value in shared:
        if value.name not in graph.initializers:
            graph.initializers.add(value)
    return len(shared)


def restore(model: ir.Model) -> list[str]:
    """Make inputs again of those that are as they were: same name, contents and number of readers.

    Args:
        model: quantized; changed in place.

    Returns:
        The names of the others, which are constants now: folded, quantized, or changed to make up for something.
    """
    before: _Before | None = model.meta.get(_KEPT)
    if before is None:
        return []
    graph = model.graph
    alive = {known.name: graph.initializers[known.name] for known in before.values if _is_as_it_was(graph, known)}
    inputs = {value.name: value for value in graph.inputs} | alive
    order = {name: index for index, name in enumerate(before.order)}
    ordered = sorted(inputs.values(), key=lambda value: order.get(value.name or "", len(order)))
    graph.inputs.clear()
    graph.inputs.extend(ordered)
    return [known.name for known in before.values if known.name not in alive]


def said_of_constants(names: list[str]) -> list[str]:
    """The warning that a caller cannot override them any more."""
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"initializer {names[0]!r}{more}: became constant, so that a caller can no longer override it as an input"]


def _is_as_it_was(graph: ir.Graph, known: _Overridable) -> bool:
    value = graph.initializers.get(known.name)
    if value is None or value.const_value is None or value.is_graph_input():
        return False
    tensor = value.const_value
    if tensor.dtype != known.tensor.dtype or tensor.shape.numpy() != known.tensor.shape.numpy():
        return False
    if _readers(value) != known.uses:
        return False
    if not tensor.size:  # nothing else can be given for it; where it says that something is missing, it is constant
        return False
    if tensor is known.tensor:
        return True
    old, new = known.tensor.numpy(), tensor.numpy()
    return bool(np.array_equal(old, new, equal_nan=old.dtype.kind == "f"))


def _readers(value: ir.Value) -> int:
    """How many read it, also through the Cast of a weight that is stored in a narrower type."""
    reader = walk.only_use(value)
    if reader is not None and reader.op_type == "Cast" and reader.outputs[0].name == f"{value.name}_float32":
        return len(reader.outputs[0].uses())
    return len(value.uses())
