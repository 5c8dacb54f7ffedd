"""Even out the channels of activations between layers, by what samples show of them; the model computes the same.

What writes a channel divides it by its factor, what reads it multiplies: both in weights and biases that are there
already, so that no node is added. See `onnxq.algorithms.channels.even_channels`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxq.algorithms.channels.even_channels import Evened, ReadingLayer, SampleExtremes, SharedValue, search_even
from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer, set_bias, set_weight
from onnxq.graph.types import Model, Node
from onnxq.passes.channel_factors import Factors
from onnxq.passes.equalize import scaled_inputs

_MOST_OUTPUTS = 256
"""Outputs of a layer that its weights' noise is estimated on, evenly spaced."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Factors that have to be chosen together, since grids hold them together: their numbers, and the values."""

    numbers: Array
    values: tuple[str, ...]


def rounded(factors: Factors, layers: Collection[str]) -> Factors:
    """With those readers alone that round what they read; the others follow.

    Args:
        factors: of a graph.
        layers: names of the layers that round their input.
    """
    return replace(factors, rounding=[read for read in factors.read if read[0].name in layers and read[2].any()])


def even_out(
    model: Model, factors: Factors, seen: Mapping[str, tuple[SampleExtremes, SampleExtremes]]
) -> dict[str, Evened]:
    """Choose factors for each group of values and write them into the layers' weights.

    Args:
        model: prepared; changed in place, what it computes in float stays.
        factors: of it, from `rounded`.
        seen: what samples showed of the values that layers round; groups that lack one stay as they are.

    Returns:
        What was done where channels changed, by the first value of each group.
    """
    readers: dict[str, list[tuple[Node, Array]]] = {}
    for node, value, numbers in factors.rounding:
        readers.setdefault(value.name or "", []).append((node, numbers))
    count = 1 + max((int(numbers.max(initial=0)) for numbers in _all(factors)), default=0)
    scales, found = np.ones(count), {}
    for group in _groups(factors):
        if any(name not in seen or seen[name][0].peaks.size != readers[name][0][1].size for name in group.values):
            continue
        places = np.full(count, -1)
        places[group.numbers] = np.arange(group.numbers.size)
        values = [
            SharedValue(seen[name], places[readers[name][0][1]], tuple(_weight(node) for node, _ in readers[name]))
            for name in group.values
        ]
        evened = search_even(values, group.numbers.size)
        if evened.alpha is not None:
            scales[group.numbers] = evened.scales
            found[group.values[0]] = evened
    if found:
        write_factors(model, factors, scales)
    return found


def _all(factors: Factors) -> list[Array]:
    return [numbers for _, numbers in factors.written] + [numbers for _, _, numbers in factors.read]


def _groups(factors: Factors) -> list[_Group]:
    """Factors joined where one value has both."""
    parents: dict[int, int] = {}

    def root(number: int) -> int:
        while parents.setdefault(number, number) != number:
            number = parents[number]
        return number

    free = {value.name or "": np.unique(numbers[numbers > 0]) for _, value, numbers in factors.rounding}
    for numbers in free.values():
        for number in numbers.tolist():
            first, other = sorted((root(int(numbers[0])), root(number)))
            parents[other] = first
    members: dict[int, list[int]] = {}
    for number in parents:
        members.setdefault(root(number), []).append(number)
    names: dict[int, list[str]] = {}
    for name, numbers in free.items():
        if numbers.size:
            names.setdefault(root(int(numbers[0])), []).append(name)
    return [_Group(np.array(sorted(members[first])), tuple(values)) for first, values in names.items()]


def _weight(node: Node) -> ReadingLayer:
    """The weight as (outputs, inputs of each, kernel), of some of its outputs."""
    array = walk.const_array(node.inputs[1])
    assert array is not None
    grouped = by_groups(node, array)
    groups = grouped.shape[0]
    array = grouped.reshape(-1, *grouped.shape[2:])
    if groups == 1 and len(array) > _MOST_OUTPUTS:
        array = array[np.linspace(0, len(array) - 1, _MOST_OUTPUTS).astype(int)]
    return ReadingLayer.of(array, groups)


def by_groups(node: Node, weight: Array) -> Array:
    """The weight of a Conv, ConvTranspose, Gemm or MatMul as (groups, outputs of each, inputs of each, kernel)."""
    groups = walk.attr_int(node, "group", 1) if node.op_type in ("Conv", "ConvTranspose") else 1
    if node.op_type == "ConvTranspose":
        apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.asarray(apart.transpose(0, 2, 1, 3))
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not walk.outputs_first(node)):
        return np.asarray(weight.T[None, :, :, None])
    return np.asarray(weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1))


def write_factors(model: Model, factors: Factors, scales: Array) -> None:
    """Write factors into the layers' weights and biases.

    Args:
        model: changed in place; what it computes in float stays.
        factors: of it.
        scales: float64, what the channels of each number are divided by; 1 for number 0.
    """
    names = walk.Names(model)
    inputs = {id(node): scales[numbers] for node, _, numbers in factors.read}
    outputs = {id(layer.node): scales[numbers] for layer, numbers in factors.written}
    layers = {id(node): AffineLayer(node, np.zeros(0), 0, None) for node, _, _ in factors.read}
    layers |= {id(layer.node): layer for layer, _ in factors.written}
    for key, layer in layers.items():
        array = walk.const_array(layer.node.inputs[1])
        assert array is not None
        new = array.astype(np.float64)
        if key in inputs:
            new = scaled_inputs(layer.node, new, inputs[key])
        if key in outputs:
            new = replace(layer, weight=new).scaled_weight(1.0 / outputs[key])
            bias = layer.bias()
            if bias is not None and bias.any() and (outputs[key] != 1).any():
                set_bias(layer, bias / outputs[key], names)
        new = new.astype(array.dtype)
        if not np.array_equal(new, array):
            set_weight(layer, new, names)


__all__ = ["by_groups", "even_out", "rounded", "write_factors"]
