"""Scale the channels of a float model as those of a quantized model made from it were, so that the two can be compared.

Equalization, evened-out channels, SmoothQuant and AWQ write factors into constants before these are rounded. What they
were is found in the constants themselves, and the float model gets them by the same rewrites, which keep what it
computes whatever the factors are: a factor that was estimated badly makes for a rough comparison, not for a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxq.algorithms.channels.recovered import LEAST, ChangedWeight, recovered_scales
from onnxq.core.dtypes import Array
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import ModelError
from onnxq.graph import traits, walk
from onnxq.graph.prepare.folding.affine_layer import constant_operand
from onnxq.graph.types import Model, Node
from onnxq.graph.views.counterparts import Counterparts
from onnxq.passes.absorb import Change, absorb
from onnxq.passes.channel_factors import channel_factors
from onnxq.passes.equalize import absorb_biases
from onnxq.passes.even_depthwise import is_depthwise, multiply_channels
from onnxq.passes.even_out import by_groups, write_factors
from onnxq.passes.pairs import input_channels, writer
from onnxq.passes.scales import scale_channels
from onnxq.plan.weights.needed_moments import layer_input

_GAIN_DB = 1.0
"""What the weights of those that read scaled channels have to gain."""

_ABSORBED = 0.2
"""Share of what a Relu always lets through from which a bias is smaller since it was absorbed, not corrected."""

_EXACT = 1e-4
"""Relative difference from which constants that are not rounded show that they were scaled."""


Lowest = Callable[[dict[str, int]], Mapping[str, Array]]
"""The smallest element of each channel, (channels,), of values, by name, when it is told the axis of the channels."""


def recover(model: Model, quantized: Counterparts, lowest: Lowest | None = None) -> int:
    """Scale channels as in the quantized model.

    Args:
        model: float; changed in place, what it computes stays.
        quantized: made from it.
        lowest: tells how much of biases can move behind a Relu; None leaves them where they are.

    Returns:
        How many layers got other weights.
    """
    before = weight_fit(model, quantized)
    _in_front_of_depthwise(model, quantized)  # first: a Mul shows its factors, which are guessed at between layers
    if _between_layers(model, quantized) and lowest is not None:
        absorb_biases(model, lambda axes: _absorbed(model, quantized, lowest(axes)))
    _in_front_of_layers(model, quantized)
    after = weight_fit(model, quantized)
    return sum(after[name] > ratio for name, ratio in before.items() if name in after)


def weight_fit(model: Model, quantized: Counterparts) -> dict[str, float]:
    """SQNR in dB of each layer's weight in the quantized model against the one here, by the layer's name."""
    found = {}
    for node in model.graph:
        if node.op_type in traits.LAYERS and node.name:
            before, after = walk.const_array(walk.input_at(node, 1)), quantized.constant(node, 1)
            if before is not None and after is not None and before.size and np.isfinite(before).all():
                found[node.name] = float(sqnr_db(before, after))
    return found


def _absorbed(model: Model, quantized: Counterparts, lowest: Mapping[str, Array]) -> dict[str, Array]:
    """What each channel's bias lost in the quantized model, as far as it can have lost it."""
    found = {}
    for node in model.graph:
        layer = writer(node)
        name = layer.output.name or "" if layer is not None else ""
        if layer is None or name not in lowest:
            continue
        place = constant_operand(layer.add) if layer.add is not None else None
        other = quantized.constant(layer.add or layer.node, 2 if place is None else place[2])
        bias = layer.bias()
        if bias is None or other is None or other.size != bias.size:
            continue
        lost = np.minimum(bias - other.reshape(-1), lowest[name])
        found[name] = np.where(lost > _ABSORBED * np.maximum(lowest[name], 0.0), np.maximum(lost, 0.0), 0.0)
    return found


def _between_layers(model: Model, quantized: Counterparts) -> bool:
    """Factors of channels that one layer writes and others read: evened out, or equalized; whether there were any."""
    factors = channel_factors(model.graph)
    if not factors.read:
        return False
    outputs = {id(layer.node): (layer.node, numbers) for layer, numbers in factors.written}
    inputs = {id(node): (node, numbers) for node, _, numbers in factors.read}
    links, count = [], 1
    for key in [id(node) for node in model.graph if id(node) in outputs or id(node) in inputs]:
        node, _ = outputs.get(key) or inputs[key]
        before, after = walk.const_array(node.inputs[1]), quantized.constant(node, 1)
        written, read = (side[key][1] if key in side else None for side in (outputs, inputs))
        for numbers in (written, read):
            count = max(count, 1 + int(numbers.max(initial=0))) if numbers is not None else count
        if before is None or after is None or not (np.isfinite(before).all() and np.isfinite(after).all()):
            continue
        first, second = by_groups(node, before), by_groups(node, after)
        shapes = (first.shape[0], first.shape[1]), (first.shape[0], first.shape[2])
        numbered = [
            np.zeros(shape, np.int64) if numbers is None else numbers.reshape(shape)
            for numbers, shape in zip((written, read), shapes, strict=True)
        ]
        links.append(ChangedWeight(first, second, numbered[0], numbered[1]))
    scales = recovered_scales(links, count)
    if not (scales != 1).any():
        return False
    write_factors(model, factors, scales)
    return True


def _in_front_of_layers(model: Model, quantized: Counterparts) -> None:
    """Factors of what layers multiply with matrices, which a norm, a layer or a Mul took up: SmoothQuant and AWQ."""
    groups: dict[str, list[Node]] = {}
    channels: dict[str, int] = {}
    for node in model.graph:
        read, weight = layer_input(node), walk.input_at(node, 1)
        if read is not None and weight is not None and walk.only_use(weight) is node and walk.is_float(weight):
            groups.setdefault(read[0], []).append(node)
            channels.setdefault(*read)
    for name, layers in groups.items():
        for product, factors in quantized.multiplier(name).items():
            behind = [node for node in layers if quantized.reads(node, product)]
            if behind and factors.size == channels[name] and (factors > 0).all():
                _scale(model, name, behind, factors)
                break
        else:
            found = _taken_up(layers[0], channels[name], quantized)
            if found is not None and _fits_better(layers, found, quantized):
                _scale(model, name, layers, found)


def _in_front_of_depthwise(model: Model, quantized: Counterparts) -> None:
    """Factors of what depthwise convolutions read, which a Mul took up."""
    found: dict[str, Array] = {}
    for node in model.graph:
        value = walk.input_at(node, 0)
        if value is None or not is_depthwise(node):
            continue
        for product, factors in quantized.multiplier(value.name or "").items():
            if quantized.reads(node, product) and factors.size == input_channels(node) and (factors > 0).all():
                found[node.name or ""] = factors.reshape(-1).astype(np.float64)
    multiply_channels(model, found)


def _scale(model: Model, name: str, layers: list[Node], factors: Array) -> None:
    try:
        scale_channels(model, name, [node.name or "" for node in layers], np.asarray(factors, np.float64))
    except ModelError:
        return  # names that are not there twice, or weights that would leave their type


def _fits_better(layers: list[Node], factors: Array, quantized: Counterparts) -> bool:
    """Whether weights that are divided by factors are closer to those of the quantized model."""
    gained = []
    for node in layers:
        before, after = walk.const_array(node.inputs[1]), quantized.constant(node, 1)
        if before is not None and after is not None:
            divided = before / (factors if walk.outputs_first(node) else factors[:, None])
            gained.append(float(sqnr_db(divided, after)) - float(sqnr_db(before, after)))
    return bool(gained) and float(np.mean(gained)) > _GAIN_DB


def _taken_up(layer: Node, channels: int, quantized: Counterparts) -> Array | None:
    """The factors that what makes a layer's input has taken up in the quantized model; None where it has none."""
    value = layer.inputs[0]
    marked = np.arange(2.0, channels + 2)
    changes = absorb(value, marked) if value is not None else None
    if value is None or not changes:
        return None
    layers = [change for change in changes if change.node.op_type in ("MatMul", "Gemm")]
    products, powers = np.zeros(channels), np.zeros(channels)
    for change in (change for change in layers or changes if not layers or change.position == 1):
        found = _gains(change, marked, quantized)  # biases of layers are corrected besides
        if found is None:
            return None
        products += found[0]
        powers += found[1]
    factors = np.where(powers > 0, products / np.where(powers > 0, powers, 1.0), 1.0)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        return None
    least = LEAST if layers else 1 + _EXACT
    return factors if np.abs(np.log(factors)).max(initial=0.0) > np.log(least) else None


def _gains(change: Change, marked: Array, quantized: Counterparts) -> tuple[Array, Array] | None:
    """Of one constant: by channel, Σ before·after and Σ before², as shares of all of it; None where it is not known."""
    before = walk.const_array(walk.input_at(change.node, change.position))
    after = quantized.constant(change.node, change.position)
    shape = change.array.shape
    if (
        before is None
        or after is None
        or before.size not in (1, change.array.size)
        or after.size not in (1, before.size, change.array.size)
    ):
        return None
    before, after = (np.broadcast_to(array.astype(np.float64), shape) for array in (before, after))
    used = (before != 0) & np.isfinite(before) & np.isfinite(after)
    ratio = change.array[used].astype(np.float64) / before[used]
    old, new = before[used], after[used]
    if ratio.size and float(np.median(ratio)) < 1:  # the constant divides
        ratio, old, new = 1 / ratio, new, old
    number = np.rint(ratio).astype(np.int64) - int(marked[0])
    inside = (number >= 0) & (number < marked.size)
    total = max(float(np.square(old).sum()), 1e-30)
    sums = [np.bincount(number[inside], array[inside] / total, marked.size) for array in (old * new, np.square(old))]
    return sums[0], sums[1]
