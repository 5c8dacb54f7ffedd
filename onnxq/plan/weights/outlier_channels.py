"""Split layers by the magnitude of their input channels, once calibration has seen it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxq.algorithms.outliers import outlier_channels, without_rows
from onnxq.algorithms.rtn import rtn
from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import SPLIT, TOKEN, DynamicRewrite
from onnxq.graph.types import Model, Node
from onnxq.plan.decisions import DYNAMIC, FLOAT, NodePlan, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.recipe.presets import Preset
from onnxq.recipe.recipe import Recipe
from onnxq.stats.statistics import Statistics

LARGEST_SHARE = 0.05
"""Share of outlier channels above which a layer stays float: they are no exceptions then, and a split does not pay."""


def check_outliers(recipe: Recipe) -> None:
    """A threshold for outliers needs a preset that can split layers.

    Raises:
        RecipeError: there is none.
    """
    if recipe.outliers is not None and not any(preset.activations == TOKEN for preset in recipe.presets):
        raise RecipeError(
            f"--outliers {recipe.outliers:g}: preset {recipe.preset} does not split layers; use llm-int8, "
            "w8a8-token or zeroquant"
        )


def threshold(node: Node, preset: Preset, recipe: Recipe) -> float | None:
    """The magnitude from which input channels of a node are computed in float; None where none are."""
    if preset.activations != TOKEN or layer_input(node) is None:
        return None
    return recipe.outliers if recipe.outliers is not None else preset.outliers


def split_inputs(model: Model, plan: Plan) -> tuple[str, ...]:
    """The values whose channel magnitudes a plan needs."""
    found: dict[str, None] = {}
    for node in model.graph:
        planned, read = plan.nodes.get(node.name or ""), layer_input(node)
        if planned is not None and planned.outliers is not None and read is not None:
            found[read[0]] = None
    return tuple(found)


def split_outliers(model: Model, plan: Plan, statistics: Statistics | None) -> Plan:
    """Decide for each layer which channels are computed in float.

    Args:
        model: the prepared model; not changed.
        plan: its plan, in which layers to be looked at have a threshold.
        statistics: magnitudes of the channels that `split_inputs` names.

    Returns:
        The plan. Layers without outliers, and those whose input calibration does not see, stay as they are.
    """
    if statistics is None:
        return plan
    for node in model.graph:
        planned, read = plan.nodes.get(node.name or ""), layer_input(node)
        if planned is None or planned.outliers is None or read is None:
            continue
        peaks = statistics.peaks.get(read[0])
        if peaks is None or peaks.highest is None or peaks.highest.size != read[1]:
            continue
        channels = outlier_channels(peaks.highest, planned.outliers)
        if channels.size and planned.action == DYNAMIC:
            plan = plan.with_node(_split(planned, channels, read[1]))
        elif channels.size:
            plan = plan.with_node(_float(planned, f"{_few(channels, read[1])}, whose weights int8 would round away"))
    return plan


def _split(planned: NodePlan, channels: Array, width: int) -> NodePlan:
    if channels.size > LARGEST_SHARE * width:
        return _float(planned, f"{_few(channels, width)}; above {LARGEST_SHARE:.0%} splitting them off would be slower")
    return replace(planned, form=SPLIT, channels=tuple(channels.tolist()), width=width)


def _few(channels: Array, width: int) -> str:
    return f"{channels.size} of its {width} input channels ({channels.size / width:.1%}) are outliers"


def _float(planned: NodePlan, reason: str) -> NodePlan:
    return replace(planned, action=FLOAT, reason=reason, weights={}, form="", outliers=None)


def split_rewrite(node: Node, planned: NodePlan) -> DynamicRewrite:
    """Quantize the weight of a layer without the rows of its outliers, which stay float."""
    weight = walk.const_array(node.inputs[1])
    assert weight is not None
    transposed = walk.outputs_first(node)
    channels = np.array(planned.channels, np.int64)
    rows = weight[:, channels].T if transposed else weight[channels]
    rest = without_rows(weight, channels, transposed=transposed)
    return DynamicRewrite(SPLIT, {1: rtn(rest, planned.weights[1])}, channels, np.ascontiguousarray(rows, np.float32))
