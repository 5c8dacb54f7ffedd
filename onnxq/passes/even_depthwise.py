"""Even out the channels that a depthwise convolution reads, for engines whose sums of products are coarse.

Qualcomm's HTP multiplies 16-bit activations in two halves of 8 bits and cuts the sum of the lower ones off to units of
256 products. In a channel that is small beside the others of its value, and whose weights are large in return, such a
unit is hundreds of steps of the result. A Mul in front lets the channels use the whole grid, and the weights are
divided by its factors: the products get finer by as much, and the model computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.algorithms.channels.even_channels import SampleExtremes
from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.types import Model, Node
from onnxq.passes.pairs import input_channels

MOST = 255.0
"""The largest factor: factors are whole numbers, which 8 bits hold."""

_LEVELS = 65535.0
"""Steps of 16-bit activations."""

_CUT = 0.58
"""Root of the mean square of what is cut off, which is anything from 0 to one unit, in units."""


def is_depthwise(node: Node) -> bool:
    """Whether each output channel of a convolution reads one input channel, by a weight that is known."""
    weight = walk.const_array(walk.input_at(node, 1)) if node.op_type == "Conv" else None
    groups = walk.attr_int(node, "group", 1)
    return weight is not None and groups > 1 and weight.shape[1] == 1 and input_channels(node) == groups


def cut_off_db(node: Node, bits: int, unit: int, read: SampleExtremes, written: SampleExtremes) -> float:
    """The signal in what a depthwise convolution gives over what is cut off there, in dB.

    Args:
        node: the convolution.
        bits: of its weight, which has a scale a channel.
        unit: products that its sums are a multiple of.
        read: what samples showed of its input.
        written: likewise of its output.
    """
    cut = _CUT * unit * _step_of(read) * _weight_steps(node, bits)
    signal = float(np.square(written.rows.astype(np.float64)).mean())
    noise = float(np.square(cut).mean())
    return 10.0 * float(np.log10(max(signal, 1e-60) / max(noise, 1e-60)))


def factors_of(read: SampleExtremes) -> Array:
    """The factor of each channel with which all of them use the grid of the largest: whole numbers, float64."""
    peaks = read.peaks.astype(np.float64)
    found: Array = np.clip(np.floor(peaks.max() / np.maximum(peaks, np.finfo(np.float32).tiny)), 1.0, MOST)
    return found


def multiply_channels(model: Model, factors: Mapping[str, Array]) -> list[str]:
    """Put a Mul in front of depthwise convolutions and divide their weights.

    Args:
        model: changed in place; what it computes in float stays.
        factors: float64, (input channels,), positive, by the name of the convolution.

    Returns:
        The names of the nodes that were added.
    """
    names, added = walk.Names(model), []
    for node in [node for node in walk.all_nodes(model.graph) if node.name in factors]:
        scales, value, weight = factors[node.name or ""], node.inputs[0], walk.const_array(node.inputs[1])
        assert value is not None and weight is not None
        spread = (scales.size, *(1,) * (weight.ndim - 2))
        product = edit.multiply_by(
            model.graph, value, scales.reshape(spread).astype(weight.dtype), names, f"{node.name}_evened"
        )
        edit.set_input(node, 0, product)
        outputs = np.repeat(scales, weight.shape[0] // scales.size).reshape(-1, *(1,) * (weight.ndim - 1))
        old = node.inputs[1]
        divided = (weight.astype(np.float64) / outputs).astype(weight.dtype)
        edit.set_constant(node, 1, divided, names, f"{old.name}_evened" if old is not None else "")
        producer = product.producer()
        added.append(producer.name or "" if producer is not None else "")
    return added


def _step_of(seen: SampleExtremes) -> float:
    """The step of a 16-bit grid that holds a value and zero."""
    return (max(float(seen.highest.max()), 0.0) - min(float(seen.lowest.min()), 0.0)) / _LEVELS


def _weight_steps(node: Node, bits: int) -> Array:
    """(output channels,)."""
    weight = walk.const_array(node.inputs[1])
    assert weight is not None
    peaks = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1).astype(np.float64)
    return np.asarray(peaks / (2 ** (bits - 1) - 1))
