"""Activation-aware scales: inputs that matter get larger weights, and so smaller relative rounding errors.

References:
    Lin et al., AWQ, arXiv:2306.00978, section 3.2.
"""

from __future__ import annotations

import numpy as np

from onnxq.algorithms.awq import awq_scales
from onnxq.core.dtypes import Array
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError, ModelError
from onnxq.graph import walk
from onnxq.graph.types import Model, Node
from onnxq.passes.scales import Scaled, scale_channels
from onnxq.plan.decisions import WEIGHT, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.plan.weights.weight_only import matrix_of
from onnxq.stats.statistics import Statistics

_FLAT = 1.01
"""Scales that differ by less than this factor change nothing worth a node."""


def scale_for_weights(model: Model, plan: Plan, statistics: Statistics) -> dict[str, Scaled]:
    """Scale the inputs of layers that a plan rounds by AWQ, group by group of layers that share an input.

    Layers whose weight something else reads too (an embedding tied to the output layer) are left as they are: a copy
    would cost more memory than scales gain.

    Args:
        model: the prepared model; changed in place, what it computes in float stays.
        plan: its plan.
        statistics: second moments and magnitudes of the inputs, as `moments_of` names them and in that order.

    Returns:
        Where the scales of each input went, by its name; inputs for which no scales are better are left out.

    Raises:
        CalibrationError: statistics that do not fit a layer; the message names it.
    """
    found: dict[str, Scaled] = {}
    for name, layers in _groups(model, plan).items():
        known = statistics.of_input(name)
        moment = known.moment.matrix if known is not None else None
        mean = known.peaks.mean if known is not None and known.peaks is not None else None
        if moment is None or mean is None:
            continue
        try:
            scales = awq_scales([_weight(node) for node in layers], moment, mean, _coarsest(layers, plan))
        except CalibrationError as error:
            raise CalibrationError(f"{layers[0].op_type} {layers[0].name!r}: {error}") from None
        if scales.max() <= scales.min() * _FLAT:
            continue
        try:
            found[name] = scale_channels(model, name, [node.name or "" for node in layers], 1.0 / scales)
        except ModelError:
            continue  # scaled weights do not fit float16; as they are they do
    return found


def _groups(model: Model, plan: Plan) -> dict[str, list[Node]]:
    groups: dict[str, list[Node]] = {}
    for node in model.graph:
        planned = plan.nodes.get(node.name or "")
        read = layer_input(node)
        if planned is None or planned.action != WEIGHT or planned.algorithm != "awq" or read is None:
            continue
        weight = node.inputs[1]
        if weight is not None and walk.only_use(weight) is node:
            groups.setdefault(read[0], []).append(node)
    return groups


def _weight(node: Node) -> Array:
    matrix = matrix_of(node)
    assert not isinstance(matrix, str)
    return np.ascontiguousarray(matrix, np.float32)


def _coarsest(layers: list[Node], plan: Plan) -> TensorSpec:
    """The grid with the fewest bits of a group: its error is nearly all of the error."""
    specs = [plan.nodes[node.name or ""].weights[1] for node in layers]
    return min(specs, key=lambda spec: spec.bits)
