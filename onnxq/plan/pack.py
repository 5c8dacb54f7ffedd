"""Quantize all weights that kernels read packed, in the order in which the statistics of their inputs come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq.algorithms.groups import rows_of
from onnxq.core.affine import dequantize
from onnxq.errors import CalibrationError
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Node
from onnxq.plan.constants import Weights
from onnxq.plan.decisions import WEIGHT, NodePlan, Plan
from onnxq.plan.moments import layer_input
from onnxq.plan.weight_only import matrix_of, weight_rewrite
from onnxq.recipe import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.stats.base import InputStatistics, Statistics

_ROWS = 512
"""Outputs whose error is computed at a time."""


def pack_weights(
    nodes: Mapping[str, Node], plan: Plan, weights: Weights, statistics: Statistics | None, notes: list[str]
) -> tuple[dict[str, WeightRewrite], dict[str, float | None]]:
    """Quantize the weights of every node with a `WEIGHT` plan.

    Layers with a common input are taken together, in the order of the first: statistics that do not fit in memory all
    at once come group by group (`Statistics.of_input`), each group once.

    Args:
        nodes: the nodes of the prepared model.
        plan: the decisions.
        weights: what is quantized already.
        statistics: with second moments, where the plan needs them.
        notes: lines for the user are appended.

    Returns:
        What becomes of each node, and the signal to quantization noise of the output of each layer whose input is
        known, in dB (None where there is no signal).

    Raises:
        CalibrationError: statistics that do not fit a weight; the message names the layer.
    """
    packed: dict[str, WeightRewrite] = {}
    errors: dict[str, float | None] = {}
    unseen: list[str] = []
    scarce: list[tuple[str, int, int]] = []
    for name in _by_input(nodes, plan):
        node_plan, known = plan.nodes[name], None
        if node_plan.algorithm in ALGORITHMS_WITH_DATA:
            known = _known(nodes[name], statistics)
            if known is None:
                node_plan = replace(node_plan, algorithm=ALGORITHM_WITHOUT_DATA)
                unseen.append(name)
            elif known.moment.channels is not None and known.moment.rows < known.moment.channels:
                scarce.append((name, known.moment.rows, known.moment.channels))
        try:
            packed[name] = weight_rewrite(nodes[name], node_plan, weights, known)
        except CalibrationError as error:
            raise CalibrationError(f"{node_plan.op_type} {name!r}: {error}") from None
        if known is not None:
            errors[name] = _output_db(nodes[name], packed[name], known)
    if unseen:
        notes.append(
            f"layer {unseen[0]!r}{_more(unseen)}: calibration saw none of its input (is it in a body of If, Loop or "
            f"Scan?), so its weight was rounded by {ALGORITHM_WITHOUT_DATA}"
        )
    if scarce:
        name, rows, channels = max(scarce, key=lambda entry: entry[2] / entry[1])
        notes.append(
            f"layer {name!r}{_more(scarce)}: calibration saw {rows} rows of its input of {channels} channels; "
            "with more samples than channels its weight can be rounded better"
        )
    return packed, errors


def _output_db(node: Node, change: WeightRewrite, known: InputStatistics) -> float | None:
    """10·log₁₀ of tr(W H Wᵀ) / tr(E H Eᵀ): over the calibration samples, for the input as the float model has it."""
    matrix, moment = matrix_of(node), known.moment.matrix
    tensor = next(iter(change.constants.values()), None)
    if isinstance(matrix, str) or moment is None or tensor is None or tensor.values.shape != matrix.shape:
        return None
    peak = float(np.diagonal(moment).max(initial=0.0))
    hessian = (moment / (peak or 1.0)).astype(np.float32)
    signal = noise = 0.0
    for start in range(0, matrix.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        real = np.asarray(matrix[part], np.float32)
        error = real - dequantize(tensor.values[part], rows_of(tensor.params, part))
        signal += float(np.vdot(real @ hessian, real))
        noise += float(np.vdot(error @ hessian, error))
    if signal <= 0.0 or not math.isfinite(signal):
        return None
    return 10.0 * math.log10(signal / noise) if noise > 0.0 else math.inf


def _more(names: list[str] | list[tuple[str, int, int]]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _by_input(nodes: Mapping[str, Node], plan: Plan) -> list[str]:
    """Names of the nodes with packed weights: those without second moments first, then by input."""
    by_input: dict[str, list[str]] = {"": []}
    for name, node_plan in plan.nodes.items():
        if node_plan.action == WEIGHT:
            read = layer_input(nodes[name]) if _needs_data(node_plan) else None
            by_input.setdefault(read[0] if read else "", []).append(name)
    return [name for names in by_input.values() for name in names]


def _needs_data(plan: NodePlan) -> bool:
    return plan.algorithm in ALGORITHMS_WITH_DATA


def _known(node: Node, statistics: Statistics | None) -> InputStatistics | None:
    read = layer_input(node)
    return statistics.of_input(read[0]) if statistics is not None and read is not None else None
