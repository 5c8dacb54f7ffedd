"""Quantize all weights that kernels read packed, in the order in which the statistics of their inputs come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.core.mapped import expect
from onnxq.core.spec import QParams
from onnxq.errors import CalibrationError
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Node
from onnxq.plan.decisions import WEIGHT, NodePlan, Plan
from onnxq.plan.expert_layers import packed_rewrite
from onnxq.plan.spread_weights import LayerTask, Spread, quantize_elsewhere
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.effort import expected
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.plan.weights.tables import BNB4, LOOKUP
from onnxq.plan.weights.weight_algorithms import corrected_weight
from onnxq.plan.weights.weight_only import matrix_of
from onnxq.recipe.rounding import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.stats.statistics import InputStatistics, Statistics

Report = Callable[[str], Callable[[int, int | None], None]]
"""Given the name of a step, the function that shows how far it is: `Clock.report`."""


class InOrder(Protocol):
    """Gives what a layer reads when its turn comes, and is told what became of its weight."""

    def known(self, node: Node) -> InputStatistics | None:
        """Statistics of the input of a layer; None where there are none."""

    def done(self, node: Node, change: WeightRewrite) -> None:
        """A layer is quantized."""


_ROWS = 512
"""Outputs whose error is computed at a time."""
_LONG = 5.0
"""Seconds from which the user is told what to expect."""
_LARGE = 1 << 23
"""Elements of a weight beyond which the error of its outputs is computed of some of them."""


def pack_weights(
    nodes: Mapping[str, Node],
    plan: Plan,
    weights: Weights,
    statistics: Statistics | None,
    notes: list[str],
    report: Report | None = None,
    way: Spread | InOrder | None = None,
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
        report: shows the progress; a long step's name says how long and how large it is expected to be.
        way: quantizes the weights elsewhere, or gives the second moments in place of ``statistics``, from a model whose
            earlier layers are quantized; None does all here, by ``statistics``.

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
    order = _by_input(nodes, plan)
    progress = report(_expected(nodes, plan)) if report is not None and order else None
    in_order = None if isinstance(way, Spread) else way
    if isinstance(way, Spread):
        quantize_elsewhere(_tasks(nodes, plan, order, statistics), weights.packed, way)
    for count, name in enumerate(order):
        if progress is not None:
            progress(count, len(order))
        _read_ahead(nodes, order[count + (1 if count else 0) : count + 2])
        node_plan, known = plan.nodes[name], None
        if node_plan.algorithm in ALGORITHMS_WITH_DATA:
            known = _known(nodes[name], statistics) if in_order is None else in_order.known(nodes[name])
            if known is None:
                node_plan = replace(node_plan, algorithm=ALGORITHM_WITHOUT_DATA)
                unseen.append(name)
            elif known.moment.channels is not None and known.moment.rows < known.moment.channels:
                scarce.append((name, known.moment.rows, known.moment.channels))
        try:
            packed[name] = packed_rewrite(nodes[name], node_plan, weights, known)
        except CalibrationError as error:
            raise CalibrationError(f"{node_plan.op_type} {name!r}: {error}") from None
        if in_order is not None:
            in_order.done(nodes[name], packed[name])
        if known is not None:
            errors[name] = _output_db(nodes[name], packed[name], known)
    if unseen:
        notes.append(
            f"layer {unseen[0]!r}{_more(unseen)}: calibration saw none of its input (is it in a subgraph of If, Loop "
            f"or Scan?), so its weight was rounded by {ALGORITHM_WITHOUT_DATA}"
        )
    if scarce:
        name, rows, channels = max(scarce, key=lambda entry: entry[2] / entry[1])
        notes.append(
            f"layer {name!r}{_more(scarce)}: calibration saw {rows} rows of its input of {channels} channels; "
            "with more samples than channels its weight can be rounded better"
        )
    return packed, errors


def _read_ahead(nodes: Mapping[str, Node], names: list[str]) -> None:
    """Have the weights of layers read from their file while another one is quantized."""
    for name in names:
        matrix = matrix_of(nodes[name])
        if not isinstance(matrix, str):
            expect(matrix)


def _tasks(
    nodes: Mapping[str, Node], plan: Plan, order: list[str], statistics: Statistics | None
) -> Iterator[LayerTask]:
    """The layers whose weights are in blocks, in order, as `pack_weights` rounds them."""
    # a weight that an embedding reads too is rounded as that is, by whoever comes first: it is left for that
    for name in order:
        node_plan, matrix = plan.nodes[name], matrix_of(nodes[name])
        if isinstance(matrix, str) or node_plan.form in (BNB4, LOOKUP):
            continue
        needs_data = node_plan.algorithm in ALGORITHMS_WITH_DATA
        if needs_data and statistics is not None and statistics.later:
            continue  # what does not fit in memory together is there once, for whoever asks first
        known = _known(nodes[name], statistics) if needs_data else None
        unseen = needs_data and known is None
        algorithm = ALGORITHM_WITHOUT_DATA if unseen else node_plan.algorithm
        (_, spec), *_ = node_plan.weights.items()
        yield LayerTask(matrix, spec, algorithm, known)


def _expected(nodes: Mapping[str, Node], plan: Plan) -> str:
    """The name of the step, with what it is expected to take where that is long."""
    matrices = [matrix_of(nodes[name]) for name, node_plan in plan.nodes.items() if node_plan.algorithm == "gptq"]
    effort = expected((m.shape[0], m.shape[1]) for m in matrices if not isinstance(m, str))
    if effort.seconds < _LONG:
        return "rewrite"
    return f"rewrite (GPTQ: about {effort.seconds:.0f} s, {effort.gigabytes:.1f} GB)"


def _output_db(node: Node, change: WeightRewrite, known: InputStatistics) -> float | None:
    """10·log₁₀ of tr(W H Wᵀ) / tr(E H Eᵀ): over the calibration samples, for the input as the float model has it."""
    matrix = matrix_of(node)
    tensor = next(iter(change.constants.values()), None)
    if isinstance(matrix, str) or tensor is None or tensor.values.shape != matrix.shape:
        return None
    hessian = known.moment.normalized
    if hessian is None:
        return None
    signal = noise = 0.0
    count = matrix.shape[0]
    taken = min(count, max(_ROWS, _LARGE // max(matrix.shape[1], 1)))
    for start in range(0, taken, _ROWS):
        # of a large layer evenly spaced outputs stand for all of them
        part = np.linspace(0, count - 1, taken).round().astype(np.int64)[start : start + _ROWS]
        real = corrected_weight(np.asarray(matrix[part], np.float32), known)
        error = real - dequantize(tensor.values[part], _of_rows(tensor.params, part))
        signal += float(np.vdot(real @ hessian, real))
        noise += float(np.vdot(error @ hessian, error))
    if signal <= 0.0 or not math.isfinite(signal):
        return None
    return decibels(signal, max(noise, 0.0))


def _of_rows(params: QParams, rows: Array) -> QParams:
    if params.scale.shape[0] == 1:
        return params
    return QParams(params.spec, params.scale[rows], params.zero_point[rows])


def _more(names: list[str] | list[tuple[str, int, int]]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _by_input(nodes: Mapping[str, Node], plan: Plan) -> list[str]:
    """Names of the nodes with packed weights: those without second moments first, then by input."""
    by_input: dict[str, list[str]] = {"": []}
    for name in [name for name in nodes if name in plan.nodes]:  # the order of the graph
        node_plan = plan.nodes[name]
        if node_plan.action == WEIGHT:
            read = layer_input(nodes[name]) if _needs_data(node_plan) else None
            by_input.setdefault(read[0] if read else "", []).append(name)
    return [name for names in by_input.values() for name in names]


def _needs_data(plan: NodePlan) -> bool:
    return plan.algorithm in ALGORITHMS_WITH_DATA


def _known(node: Node, statistics: Statistics | None) -> InputStatistics | None:
    read = layer_input(node)
    return statistics.of_input(read[0]) if statistics is not None and read is not None else None
