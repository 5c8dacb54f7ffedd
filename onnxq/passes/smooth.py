"""SmoothQuant: move the difficulty of activations with a few large channels over to the weights that read them.

References:
    Xiao et al., SmoothQuant, arXiv:2211.10438, section 4. The scales of an output projection behind grouped queries and
    of a down projection go into the columns of the value and the up projection, as in TensorRT-LLM's recipe for LLaMA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.channels.balance import search_balance, smooth_scales
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerBlock, TensorSpec
from onnxq.errors import CalibrationError, ModelError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import TENSOR, TOKEN
from onnxq.graph.reading.matrices import matrices_of
from onnxq.graph.reading.ops import KEEP_FLOAT
from onnxq.graph.types import Model, Node
from onnxq.passes.absorb import absorb
from onnxq.passes.heads import tied_channels
from onnxq.passes.scales import Scaled, scale_channels
from onnxq.plan.decisions import DYNAMIC, INTEGER, NodePlan, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.stats.statistics import Statistics

_WORTH_A_MUL = 0.8
"""A search adds a Mul only where the error on samples falls below this share of what it was."""

_ENOUGH = 0.97
"""A search changes anything at all only where the error on samples falls below this share of what it was."""


@dataclass(frozen=True)
class Smoothed:
    """What became of the input of some layers.

    Attributes:
        alpha: the exponent; None where a search found nothing better than leaving it as it is.
        scaled: where the scales went; None where there were none.
        layers: the layers that read it.
    """

    alpha: float | None
    scaled: Scaled | None
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Layers that read one value.

    Attributes:
        channels: of the value.
        layers: all MatMul and Gemm that multiply it with a constant matrix of their own.
        quantized: those of them that round it.
        alpha: the exponent, or "auto".
    """

    channels: int
    layers: tuple[str, ...]
    quantized: tuple[str, ...]
    alpha: float | str


def smoothable(model: Model, plan: Plan, alphas: Mapping[str, float | str]) -> dict[str, Group]:
    """The values that can be smoothed, by name, in graph order.

    Args:
        model: the prepared model.
        plan: its plan: only inputs of layers that round them are smoothed.
        alphas: exponent or "auto" by layer; where those of one value differ, the first counts. Layers that are not
            there are not smoothed.
    """
    groups: dict[str, list[Node]] = {}
    channels: dict[str, int] = {}
    for node in model.graph:
        read = layer_input(node)
        weight = walk.input_at(node, 1)
        # what shares its weight (a head tied to the embedding) would need a copy of it
        if read is not None and weight is not None and walk.only_use(weight) is node and walk.is_float(weight):
            groups.setdefault(read[0], []).append(node)
            channels.setdefault(*read)
    found = {}
    for name, layers in groups.items():
        rounded = [n.name or "" for n in layers if _rounds(plan.nodes.get(n.name or "")) and (n.name or "") in alphas]
        if rounded:
            names = tuple(node.name or "" for node in layers)
            found[name] = Group(channels[name], names, tuple(rounded), alphas[rounded[0]])
    return found


def _rounds(planned: NodePlan | None) -> bool:
    if planned is None:
        return False
    return planned.action == INTEGER or (planned.action == DYNAMIC and planned.form in (TENSOR, TOKEN))


def smooth(
    model: Model, plan: Plan, groups: Mapping[str, Group], statistics: Statistics, rows: Mapping[str, Array]
) -> dict[str, Smoothed]:
    """Smooth inputs of layers.

    Args:
        model: the prepared model; changed in place, what it computes in float stays.
        plan: its plan.
        groups: what `smoothable` found.
        statistics: channel magnitudes of each input.
        rows: some rows, (rows, channels), of the inputs whose α is searched.

    Returns:
        What was done, by name of the value; values of which nothing was seen are left out.

    Raises:
        CalibrationError: statistics that do not fit a layer; the message names it.
    """
    nodes = {node.name or "": node for node in model.graph}
    found: dict[str, Smoothed] = {}
    for name, group in groups.items():
        value = nodes[group.layers[0]].inputs[0]
        tied = tied_channels(value, group.channels)
        if tied is not None and (value is None or absorb(value, np.ones(group.channels)) is None):
            tied = None  # a Mul takes any scales
        try:
            choice = _choice(name, group, nodes, plan, statistics, rows, tied)
        except CalibrationError as error:
            raise CalibrationError(f"{nodes[group.layers[0]].op_type} {group.layers[0]!r}: {error}") from None
        if choice is None:
            continue
        alpha, scales, gain = choice
        if group.alpha == "auto" and not _folds(nodes, group) and gain > _WORTH_A_MUL:
            alpha = None
        if alpha is None:
            found[name] = Smoothed(None, None, group.layers)
            continue
        try:
            scaled = scale_channels(model, name, group.layers, 1.0 / scales)
        except ModelError:
            continue  # scaled weights do not fit float16; as they are they do
        found[name] = Smoothed(alpha, scaled, group.layers)
        if scaled.added is not None:
            added = next(node for node in model.graph if node.name == scaled.added)
            added.meta[KEEP_FLOAT] = "it smooths the input of the layers behind it, which are to round what it gives"
    return found


def _choice(
    name: str,
    group: Group,
    nodes: Mapping[str, Node],
    plan: Plan,
    statistics: Statistics,
    rows: Mapping[str, Array],
    tied: Array | None,
) -> tuple[float | None, Array, float] | None:
    """(α, scales, error as a share of that without them); None where nothing was seen of the value."""
    weights = {layer: _matrix(nodes[layer]) for layer in group.layers}
    peaks = statistics.peaks.get(name)
    if peaks is None or peaks.highest is None or not peaks.rows:
        return None
    if group.alpha != "auto":
        alpha = float(group.alpha)
        return alpha, smooth_scales(peaks.highest, list(weights.values()), alpha, tied), 0.0
    inputs = rows.get(name)
    if inputs is None:
        return None
    planned = [plan.nodes[layer] for layer in group.quantized]
    balance = search_balance(
        [weights[layer] for layer in group.quantized],
        [_spec(nodes[layer], plan.nodes[layer].weights[1]) for layer in group.quantized],
        inputs,
        peaks.highest,
        by_row=all(p.action == DYNAMIC and p.form == TOKEN for p in planned),
        tied=tied,
    )
    gain = balance.error / balance.plain if balance.plain > 0 else 1.0
    return (balance.alpha if gain < _ENOUGH else None), balance.scales, gain


def _folds(nodes: Mapping[str, Node], group: Group) -> bool:
    """Whether scales need no node of their own."""
    value = nodes[group.layers[0]].inputs[0]
    if value is None or value.is_graph_output():
        return False
    layers = {id(nodes[name]) for name in group.layers}
    if any(id(use.node) not in layers and use.node.op_type not in ("Shape", "Size") for use in value.uses()):
        return False
    return absorb(value, np.ones(group.channels)) is not None


def _matrix(node: Node) -> Array:
    """The weight as (out, in)."""
    weight, matrices = walk.const_array(node.inputs[1]), matrices_of(node)
    assert weight is not None and matrices is not None
    return np.asarray(matrices.split(weight)[0], np.float32)


def _spec(node: Node, spec: TensorSpec) -> TensorSpec:
    """The grid of a weight as (out, in)."""
    granularity = spec.granularity
    if isinstance(granularity, PerAxis):
        granularity = PerAxis(0)
    elif isinstance(granularity, PerBlock):
        granularity = PerBlock(1, granularity.size)
    return TensorSpec(spec.dtype, granularity, spec.symmetric, spec.narrow_range, spec.grid_bits)
