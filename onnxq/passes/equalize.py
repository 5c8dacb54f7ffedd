"""Cross-layer equalization: let the channels between two layers share the spread of both weights.

Where f(s·x) = s·f(x) for what stands between two layers, W₂·f(W₁x + b₁) = (W₂S)·f(S⁻¹W₁x + S⁻¹b₁) for any positive
diagonal S. With s = √(r₁/r₂), channel by channel, where r₁ and r₂ are the largest weights that write and read a
channel, both weights have the range √(r₁r₂) there: one scale for the whole tensor then fits all channels.

References:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, sections
    4.1 (equalization) and 4.1.3 (absorbing high biases).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer, set_bias, set_weight
from onnxq.graph.types import Model, Node
from onnxq.passes.pairs import Pair, find_pairs, writer

_ROUNDS = 60
_SETTLED = 1e-3
"""Largest |log s| of a round after which there is nothing more to gain."""

_LARGEST = 1e4
"""A channel is not scaled by more than this, so that nothing leaves the range of float32."""

_BIAS_GROWTH = 4.0
"""A bias, which grows with its channel, stays below this times the largest weight or bias that its layer had: that of a
channel whose weights are nearly zero would else be most of what the next layer reads, and of the activation's range."""


@dataclass(frozen=True)
class Equalized:
    """What was done.

    Attributes:
        pairs: how many pairs of layers were equalized.
        names: nodes whose weights changed.
        spread_before: largest ratio between the widest and the narrowest channel of a weight, before.
        spread_after: the same afterwards.
    """

    pairs: int
    names: tuple[str, ...]
    spread_before: float
    spread_after: float


def equalize(model: Model) -> Equalized:
    """Equalize every pair of layers of the main graph, in rounds until nothing moves.

    Args:
        model: the prepared model, changed in place; what it computes stays the same.
    """
    pairs = find_pairs(model.graph)
    weights = _Weights(pairs)
    before = weights.spread()
    for _ in range(_ROUNDS):
        if max((weights.step(pair) for pair in pairs), default=0.0) < _SETTLED:
            break
    names = walk.Names(model)
    changed = weights.write(names)
    return Equalized(len(pairs), tuple(changed), before, weights.spread())


def absorb_biases(model: Model, lowest: Callable[[dict[str, int]], Mapping[str, Array]]) -> list[str]:
    """Move what a Relu always lets through from the bias before it into the biases behind it.

    Where no element of channel i in front of the Relu is below cᵢ > 0, Relu(x − c) = Relu(x) − c: activations lose the
    part of their range that is never used. Only where the second layer does not pad, since padding is zero.

    Args:
        model: the prepared model, changed in place.
        lowest: gives the smallest element of each channel, (channels,), of values in the calibration data, by name,
            when it is told the axis of the channels by name.

    Returns:
        Names of the layers whose biases changed.
    """
    chosen = [pair for pair in find_pairs(model.graph) if _absorbs(pair)]
    channels = {pair.first.output.name or "": -1 if pair.first.node.op_type == "MatMul" else 1 for pair in chosen}
    minima = lowest(channels) if channels else {}
    names = walk.Names(model)
    changed: list[str] = []
    for pair in chosen:
        low = minima.get(pair.first.output.name or "")
        bias = pair.first.bias()
        if low is None or bias is None or low.size != pair.first.channels:
            continue
        constant = np.maximum(low.astype(np.float64), 0.0)
        if not (constant > 0).any():
            continue
        shifts = [(layer, other, _sum_over(layer, constant)) for layer, other in _seconds_with_bias(pair)]
        if len(shifts) != len(pair.seconds):
            continue
        set_bias(pair.first, bias - constant, names)
        changed.append(pair.first.node.name or "")
        for layer, other, shift in shifts:
            set_bias(layer, other + shift, names)
            changed.append(layer.node.name or "")
    return list(dict.fromkeys(changed))


def _by_input(node: Node, weight: Array) -> Array:
    """The weight as (inputs, rest): all that reads an input channel in one row. A view where that is possible."""
    match node.op_type:
        case "Conv":
            groups = walk.attr_int(node, "group", 1)
            grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return np.moveaxis(grouped, 2, 1).reshape(groups * weight.shape[1], -1)
        case "Gemm" if walk.outputs_first(node):
            return np.asarray(weight.T)
    return np.asarray(weight.reshape(weight.shape[0], -1))


def scaled_inputs(node: Node, weight: Array, scale: Array) -> Array:
    """The weight for inputs that are ``1/scale`` times as large; scale is (inputs,)."""
    match node.op_type:
        case "Conv":
            groups = walk.attr_int(node, "group", 1)
            grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return np.asarray(grouped * scale.reshape(groups, 1, weight.shape[1], 1)).reshape(weight.shape)
        case "Gemm" if walk.outputs_first(node):
            return np.asarray(weight * scale)
    return np.asarray(weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1)))


def _ranges(rows: Array) -> Array:
    return np.asarray(np.abs(rows).max(axis=1, initial=0.0))


class _Weights:
    """The weights and biases of all pairs in float64, until they are written back."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._layers: dict[int, AffineLayer] = {}
        self._nodes: dict[int, Node] = {}
        self._weight: dict[int, Array] = {}
        self._bias: dict[int, Array] = {}
        self._highest: dict[int, float] = {}
        for pair in pairs:
            key = id(pair.first.node)
            self._layers[key] = pair.first
            bias = pair.first.bias()
            assert bias is not None
            self._bias[key] = bias.copy()
            largest = max(np.abs(bias).max(initial=0.0), np.abs(pair.first.weight).max(initial=0.0))
            self._highest[key] = _BIAS_GROWTH * (float(largest) or 1.0)
            for node in (pair.first.node, *pair.seconds):
                array = walk.const_array(node.inputs[1])
                assert array is not None
                self._nodes[id(node)] = node
                self._weight.setdefault(id(node), array.astype(np.float64))

    def step(self, pair: Pair) -> float:
        """Equalize one pair; returns the largest |log s|."""
        key = id(pair.first.node)
        layer = AffineLayer(pair.first.node, self._weight[key], pair.first.channels, pair.first.rank, pair.first.add)
        written = _by_output(layer)
        read = np.zeros(layer.channels)
        for node in pair.seconds:
            rows = _ranges(_by_input(node, self._weight[id(node)]))
            read = np.maximum(read, rows.reshape(layer.channels, pair.repeat).max(axis=1))
        usable = (written > 0) & (read > 0)
        scale = np.ones(layer.channels)
        scale[usable] = np.clip(np.sqrt(written[usable] / read[usable]), 1 / _LARGEST, _LARGEST)
        scale = np.maximum(scale, np.minimum(np.abs(self._bias[key]) / self._highest[key], 1.0))
        self._weight[key] = layer.scaled_weight(1.0 / scale)
        self._bias[key] = self._bias[key] / scale
        for node in pair.seconds:
            spread = np.repeat(scale, pair.repeat)
            self._weight[id(node)] = scaled_inputs(node, self._weight[id(node)], spread)
        return float(np.abs(np.log(scale)).max(initial=0.0))

    def spread(self) -> float:
        """Largest ratio of the widest to the narrowest channel over the weights that write channels."""
        worst = 1.0
        for key, layer in self._layers.items():
            rows = _by_output(AffineLayer(layer.node, self._weight[key], layer.channels, layer.rank, layer.add))
            used = rows[rows > 0]
            if used.size:
                worst = max(worst, float(used.max() / used.min()))
        return worst

    def write(self, names: walk.Names) -> list[str]:
        """Put the arrays into the graph; returns the names of the nodes whose weights changed."""
        changed = []
        for key, node in self._nodes.items():
            old = walk.const_array(node.inputs[1])
            new = self._weight[key].astype(np.float32)
            if old is None or np.array_equal(old, new):
                continue
            layer = self._layers.get(key) or AffineLayer(node, old, 0, None)
            set_weight(layer, new, names)
            changed.append(node.name or "")
        for key, layer in self._layers.items():
            before = layer.bias()
            after = self._bias[key]
            if before is not None and not np.array_equal(before, after):
                set_bias(layer, after, names)
        return changed


def _by_output(layer: AffineLayer) -> Array:
    """Largest |weight| of each output channel."""
    weight, node = layer.weight, layer.node
    match node.op_type:
        case "Conv":
            return _ranges(weight.reshape(weight.shape[0], -1))
        case "ConvTranspose":
            groups = walk.attr_int(node, "group", 1)
            grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return _ranges(np.moveaxis(grouped, 2, 1).reshape(groups * weight.shape[1], -1))
        case "Gemm" if walk.outputs_first(node):
            return _ranges(weight)
    return _ranges(weight.T)


def _absorbs(pair: Pair) -> bool:
    """Whether a shift of the channels passes through: one Relu between, and no padding behind it."""
    if len(pair.between) != 1 or pair.between[0].op_type != "Relu" or pair.repeat != 1:
        return False
    if pair.first.node.op_type == "MatMul" and pair.first.add is None:
        return False
    return all(not _pads(node) for node in pair.seconds)


def _pads(node: Node) -> bool:
    if node.op_type == "ConvTranspose":
        return True  # every position at the edge misses some of the inputs
    if node.op_type != "Conv":
        return False
    return walk.attr_str(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(walk.attr_ints(node, "pads", ()))


def _seconds_with_bias(pair: Pair) -> list[tuple[AffineLayer, Array]]:
    found = []
    for node in pair.seconds:
        layer = writer(node)
        bias = layer.bias() if layer is not None else None
        if layer is not None and bias is not None and (layer.node.op_type != "MatMul" or layer.add is not None):
            found.append((layer, bias))
    return found


def _sum_over(layer: AffineLayer, constant: Array) -> Array:
    """What a constant input, (inputs,), adds to each output channel."""
    weight, node = layer.weight.astype(np.float64), layer.node
    if node.op_type == "Conv":
        groups = walk.attr_int(node, "group", 1)
        summed = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=-1)
        return np.asarray(np.einsum("goi,gi->go", summed, constant.reshape(groups, -1))).reshape(-1)
    if walk.outputs_first(node):
        return np.asarray(weight @ constant)
    return np.asarray(weight.T @ constant)


__all__ = ["Equalized", "absorb_biases", "equalize", "scaled_inputs"]
