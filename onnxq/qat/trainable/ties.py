"""Where each parameter of a module has gone in the graph that was made of it.

The module is exported and prepared twice, the second time with random parameters, no two numbers alike: a constant of
that graph is a parameter where it holds the same numbers, whatever their order. What is found is checked on the real
ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph.views.exported_module import BatchNorm
from onnxq.graph.views.plain_graph import PlainGraph

Place = tuple[str, int]
"""A node of the prepared graph and the position of an input."""

PARAMETER, WEIGHT, BIAS, SCALE, SHIFT = "parameter", "weight", "bias", "scale", "shift"
"""What a constant comes from: a parameter itself; the weight or bias of a layer into which a norm was folded; factor or
summand of a norm that stands alone."""

_CLOSE = 2e-4
_MOST_AXES = 5


@dataclass(frozen=True)
class Tie:
    """Where a constant comes from.

    Attributes:
        kind: one of the five above.
        name: of the parameter, or of the norm's module.
        norm: the norm; None for a parameter.
        order: axes of the source in the order that the constant has them.
        shape: of the constant.
        factor: what the constant was multiplied by since; None where nothing was.
        constant: float32, what it holds.
    """

    kind: str
    name: str
    norm: BatchNorm | None
    order: tuple[int, ...]
    shape: tuple[int, ...]
    constant: Array
    factor: Array | None = None


def sources(constants: Mapping[str, Array], norms: Sequence[BatchNorm]) -> dict[tuple[str, str], Array]:
    """Everything that a constant may come from, by kind and name."""
    found = {(PARAMETER, name): array for name, array in constants.items() if array.dtype == np.float32}
    for norm in norms:
        parts = [constants.get(f"{norm.module}.{part}" if norm.module else part) for part in _PARTS]
        if parts[2] is None or parts[3] is None:
            continue
        one, none = np.ones_like(parts[3]), np.zeros_like(parts[2])
        gain, offset = one if parts[0] is None else parts[0], none if parts[1] is None else parts[1]
        scale = gain / np.sqrt(parts[3] + np.float32(norm.epsilon))
        found[SCALE, norm.module], found[SHIFT, norm.module] = scale, offset - parts[2] * scale
        if norm.weight:
            weight = constants[norm.weight]
            shape = [-1 if axis == norm.axis else 1 for axis in range(weight.ndim)]
            found[WEIGHT, norm.module] = weight * scale.reshape(shape)
            before = constants[norm.bias] if norm.bias else none
            found[BIAS, norm.module] = (before - parts[2]) * scale + offset
    return found


_PARTS = ("weight", "bias", "running_mean", "running_var")


def find_ties(
    graph: PlainGraph, random: PlainGraph, constants: tuple[Mapping[str, Array], Mapping[str, Array]],
    norms: Sequence[BatchNorm],
) -> dict[Place, Tie]:  # fmt: skip
    """The constants of a prepared graph that come from one parameter or norm.

    Args:
        graph: the prepared graph.
        random: the same, made with random parameters.
        constants: the module's parameters and buffers, and the random ones.
        norms: its BatchNormalizations.
    """
    real, drawn = (sources(each, norms) for each in constants)
    by_size: dict[int, list[tuple[tuple[str, str], Array, float]]] = {}
    for key, array in drawn.items():
        by_size.setdefault(array.size, []).append((key, array, float(array.sum(dtype=np.float64))))
    known = {norm.module: norm for norm in norms}
    found: dict[Place, Tie] = {}
    ours = {node.name: node for node in graph.nodes}
    for node in random.nodes:
        other = ours.get(node.name)
        if other is None or not node.name or other.op_type != node.op_type:
            continue
        for position, name in enumerate(node.inputs):
            drawn_array = random.constants.get(name)
            held = graph.constants.get(other.inputs[position]) if position < len(other.inputs) else None
            if drawn_array is None or held is None or held.dtype != np.float32 or held.shape != drawn_array.shape:
                continue
            match = _source_of(drawn_array, by_size.get(held.size, []))
            if match is None:
                continue
            (kind, source), order = match
            expected = real[kind, source].transpose(order).reshape(held.shape)
            if np.allclose(expected, held, rtol=1e-3, atol=1e-5 * max(float(np.abs(held).max(initial=0)), 1e-3)):
                norm = None if kind == PARAMETER else known[source]
                found[node.name, position] = Tie(kind, source, norm, order, held.shape, held)
    return found


def _source_of(
    array: Array, candidates: list[tuple[tuple[str, str], Array, float]]
) -> tuple[tuple[str, str], tuple[int, ...]] | None:
    total, size = float(array.sum(dtype=np.float64)), float(np.abs(array).sum(dtype=np.float64))
    for key, source, known in candidates:
        if abs(total - known) > _CLOSE * max(size, 1e-6):
            continue
        axes = range(source.ndim)
        orders = itertools.permutations(axes) if source.ndim <= _MOST_AXES else [tuple(axes)]
        for order in orders:
            moved = source.transpose(order)
            if np.allclose(moved.reshape(array.shape), array, rtol=1e-3, atol=1e-6):
                return key, order
    return None


def with_factors(ties: Mapping[Place, Tie], graph: PlainGraph) -> dict[Place, Tie]:
    """The same ties for a graph whose constants were multiplied since, channel by channel; others are left out."""
    nodes = {node.name: node for node in graph.nodes}
    found: dict[Place, Tie] = {}
    for (name, position), tie in ties.items():
        node = nodes.get(name)
        array = graph.constants.get(node.inputs[position]) if node is not None and position < len(node.inputs) else None
        if array is None or array.shape != tie.shape:
            continue
        factor = None if np.array_equal(array, tie.constant) else _factor(tie.constant, array)
        if factor is not None or np.array_equal(array, tie.constant):
            found[name, position] = Tie(tie.kind, tie.name, tie.norm, tie.order, tie.shape, array, factor)
    return found


def _factor(before: Array, after: Array) -> Array | None:
    """What channels along the first two axes were multiplied by; None where that is not all that happened."""
    there = (before != 0) & (after != 0) & (np.sign(before) == np.sign(after))
    if ((before != 0) & ~there).any() or ((before == 0) & (after != 0)).any() or not there.any():
        return None
    logs = np.zeros(before.shape, np.float64)
    logs[there] = np.log(after[there].astype(np.float64) / before[there])
    if before.ndim == 1:
        return np.exp(logs).astype(np.float32)
    flat, mask = logs.reshape(*before.shape[:2], -1), there.reshape(*before.shape[:2], -1)
    rows, columns = np.zeros(flat.shape[0]), np.zeros(flat.shape[1])
    for _ in range(4):  # least squares where some weights are zero
        rows = _mean(flat - columns[None, :, None], mask, (1, 2))
        columns = _mean(flat - rows[:, None, None], mask, (0, 2))
    fitted = np.broadcast_to(rows[:, None, None] + columns[None, :, None], flat.shape)
    if float(np.abs(np.where(mask, flat - fitted, 0.0)).max()) > 1e-3:
        return None
    return np.exp(fitted.reshape(before.shape)).astype(np.float32)


def _mean(values: Array, mask: Array, axes: tuple[int, ...]) -> Array:
    counted = np.asarray(mask.sum(axis=axes), np.float64)
    return np.asarray(np.where(mask, values, 0.0).sum(axis=axes) / np.maximum(counted, 1.0))
