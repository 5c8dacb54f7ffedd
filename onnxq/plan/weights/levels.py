"""Accuracy levels of MatMulNBits by layer: where rounding activations inside the kernel costs too much, it is left out.

At level 4 the kernel rounds each row of its input to int8, in the blocks of the weight, each with a scale of its own.
That is exact enough for nearly every layer. Where a block holds a few channels that are hundreds of times larger than
the others (massive activations, Sun et al., arXiv:2402.17762), nothing is left of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.core.spec import PerBlock, TensorSpec
from onnxq.graph.types import Model
from onnxq.plan.decisions import WEIGHT, NodePlan, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.plan.weights.weight_only import BLOCKED, FAST_LEVEL, NBITS, matrix_of
from onnxq.recipe.recipe import Recipe, Rule

_ENOUGH_DB = 30.0
"""Signal to noise of a layer's output from which rounding its input is good enough, whatever the weights cost."""

_SHARE = 0.5
"""Share of the noise of the weights up to which that of the input does not show."""

_OUTPUTS = 256
"""Outputs of a layer on which it is measured."""

_LARGEST_BLOCK = 256


def rounded_inputs(model: Model, plan: Plan, recipe: Recipe) -> dict[str, list[str]]:
    """The layers whose kernel would round their input, and of which the user did not say whether it may: by value."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        planned = plan.nodes.get(node.name or "")
        if planned is None or planned.action != WEIGHT or planned.form not in (NBITS, BLOCKED):
            continue
        read = layer_input(node)
        said = recipe.rule_for([planned.name]).accuracy_level is not None
        if read is not None and planned.accuracy_level == FAST_LEVEL and not said:
            found.setdefault(read[0], []).append(planned.name)
    return found if recipe.accuracy_level is None else {}


def choose_levels(
    model: Model, plan: Plan, recipe: Recipe, layers: Mapping[str, list[str]], rows: Mapping[str, Array]
) -> tuple[Recipe, list[str]]:
    """Let layers compute in float32 where rounding their input costs more than it may.

    Args:
        model: the prepared model.
        plan: its plan.
        recipe: what the user asked for.
        layers: what `rounded_inputs` found.
        rows: some rows of each input, (rows, channels).

    Returns:
        The recipe with a rule of level 0 for each such layer, over which the user's own win; and what to say of it.
    """
    nodes = {node.name or "": node for node in model.graph}
    exact: list[tuple[float, str]] = []
    stuck: list[tuple[float, str]] = []
    for value, names in layers.items():
        if value not in rows:
            continue
        for name in names:
            matrix = matrix_of(nodes[name])
            assert not isinstance(matrix, str)
            found = rounding_db(matrix, plan.nodes[name], rows[value])
            if found is not None:
                (stuck if plan.nodes[name].form == BLOCKED else exact).append((found, name))
    rules = [Rule(name, accuracy_level=0) for _, name in exact]
    notes = []
    if exact:
        notes.append(
            f"{_those(exact)}: accuracy level 0 (float32); rounding the input inside the kernel, as level 4 does, "
            f"would leave an SQNR of {min(exact)[0]:.1f} dB of the layer's output"
        )
    if stuck:
        notes.append(
            f"{_those(stuck)}: the kernel rounds the input to int8, which leaves an SQNR of {min(stuck)[0]:.1f} dB of "
            "the layer's output; --format qoperator computes such layers in float32"
        )
    return (replace(recipe, rules=(*rules, *recipe.rules)) if rules else recipe), notes


def rounding_db(matrix: Array, planned: NodePlan, rows: Array) -> float | None:
    """Signal to noise of a layer's output, in dB, where rounding its input makes more noise than it may; else None.

    Args:
        matrix: (out, in).
        planned: of the layer.
        rows: (rows, in).
    """
    (spec,) = planned.weights.values()
    places = np.linspace(0, len(matrix) - 1, min(len(matrix), _OUTPUTS)).round().astype(np.int64)
    weight = np.ascontiguousarray(matrix[places], np.float32)
    signal = _power(rows @ weight.T)
    noise = _power((_rounded(rows, spec) - rows) @ weight.T)
    if signal <= 0.0 or not math.isfinite(signal) or noise <= signal * 10 ** (-_ENOUGH_DB / 10):
        return None
    tensor = rtn(weight, spec)
    if noise <= _SHARE * _power(rows @ (dequantize(tensor.values, tensor.params) - weight).T):
        return None
    return decibels(signal, noise)


def _power(array: Array) -> float:
    return float(np.vdot(array, array))


def _rounded(rows: Array, spec: TensorSpec) -> Array:
    """Rows as the kernel takes them: int8 in blocks, symmetric, a scale for each block of each row."""
    granularity, width = spec.granularity, rows.shape[1]
    size = granularity.size if isinstance(granularity, PerBlock) else min(width, _LARGEST_BLOCK)
    padded = np.pad(rows, ((0, 0), (0, -width % size))).reshape(len(rows), -1, size)
    step = np.abs(padded).max(axis=2, keepdims=True) / np.float32(127)
    step[step == 0] = 1
    return np.asarray((np.rint(padded / step) * step).reshape(len(rows), -1)[:, :width], np.float32)


def _those(layers: list[tuple[float, str]]) -> str:
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"layer {min(layers)[1]!r}{more}"
