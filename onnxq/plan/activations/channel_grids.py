"""A grid for each channel of a convolution's output, where the floats behind it are all that is read.

The integer kernel of a convolution writes one grid for all channels. Where channels differ in size (a pointwise layer
in front of a depthwise one that evens them out, as in MobileNetV3 and what is built of it), the small ones are rounded
to next to nothing. But each channel of the weight has a scale of its own: with the weight's and the bias' scale divided
by a channel's share of the common range, the kernel writes every channel over the whole grid, and a DequantizeLinear
with a scale for each channel undoes it. Weights stay the integers that they are, and no node is added.

That needs readers that compute in float: an integer kernel takes one scale for its input.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerTensor, QParams, QTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import NodeRewrite, Rewrite
from onnxq.graph.reading.ops import Kind, row_of
from onnxq.graph.types import Model, Node
from onnxq.plan.weights.constants import quantize_bias
from onnxq.stats.statistics import Statistics

LEAST_GAIN_BITS = 0.5
"""What the channels must gain in the mean. Where channels lie last, a DequantizeLinear with a scale for each takes
three times as long as one with a single scale, 0.3 ns more an element, once for each node that reads it; layers whose
channels gain less lose little on a common grid."""

_FINEST = 2.0**-10
"""Finest step of a channel, as a share of the common one; channels that were silent on all samples get it."""

_HEADROOM = 2.0
"""Reach of a channel's grid over the largest magnitude that was seen: a few samples do not show how far one channel
goes as they do for all together."""

_PER_CHANNEL_OPSET = 13
"""Operator set from which DequantizeLinear takes a scale for each channel."""

_BIAS_LIMIT = float(1 << 30)


def spread_channels(
    model: Model, rewrite: Rewrite, statistics: Statistics | None, but: Collection[str] = ()
) -> Rewrite:
    """Give the channels of convolution outputs grids of their own, where they gain enough.

    A channel whose own grid would be no finer keeps the common one, so that none loses.

    Args:
        model: the prepared model; not changed.
        rewrite: the numbers of a plan for it.
        statistics: with the largest magnitude of each channel; outputs without stay as they are.
        but: names of values whose grid is to be no finer.

    Returns:
        The rewrite with other scales and biases, or the same one.
    """
    if statistics is None or walk.opset(model.graph) < _PER_CHANNEL_OPSET:
        return rewrite
    nodes = dict(rewrite.nodes)
    channels = dict(rewrite.channels)
    for node in walk.all_nodes(model.graph):
        change = rewrite.nodes.get(node.name or "")
        name = node.outputs[0].name or ""
        if change is None or node.op_type != "Conv" or name in rewrite.fixed or name in but:
            continue
        if not _reads_floats(node, change, rewrite):
            continue
        peaks = statistics.peaks.get(name)
        spread = _spread(node, change, rewrite, peaks.highest if peaks is not None else None)
        if spread is not None:
            nodes[node.name or ""], channels[name] = spread
    return replace(rewrite, nodes=nodes, channels=channels)


def _reads_floats(node: Node, change: NodeRewrite, rewrite: Rewrite) -> bool:
    """Whether the output has an integer form that only nodes in float read, none of which merely moves it.

    ONNX Runtime takes a DequantizeLinear past operators that move elements, and joins what then meets.
    """
    output = node.outputs[0]
    if change.folds is not None or change.float_output or (output.name or "") not in rewrite.values:
        return False
    for user in output.consumers():
        row = row_of(user)
        moves = user.op_type in ("Concat", "Identity") or (row is not None and row.kind is Kind.PASSING)
        if moves or user.graph is not node.graph or (user.name or "") in rewrite.nodes:
            return False
    return True


def _spread(
    node: Node, change: NodeRewrite, rewrite: Rewrite, highest: Array | None
) -> tuple[NodeRewrite, QParams] | None:
    """The layer with other scales, and the grids of its channels."""
    source, weight = node.inputs[0], change.constants.get(1)
    common = rewrite.values[node.outputs[0].name or ""]
    given = rewrite.values.get(source.name or "") if source is not None else None
    if weight is None or given is None or highest is None or not highest.any():
        return None
    count = weight.values.shape[0]
    if highest.size != count or weight.params.scale.size != count or not isinstance(common.spec.granularity, PerTensor):
        return None
    step, zero = float(common.scale.reshape(())), int(common.zero_point.reshape(()))
    scale_x = float(given.scale.reshape(()))
    middle = (common.spec.qmin + common.spec.qmax + 1) // 2
    own = np.maximum(_HEADROOM * highest / (common.spec.qmax - middle), step * _FINEST)
    moved = np.abs(middle - zero) * own / (scale_x * weight.params.scale.reshape(-1).astype(np.float64))
    finer = (own < step) & (moved < _BIAS_LIMIT)
    steps = np.where(finer, own, step).astype(np.float32)
    if np.mean(np.log2(step / steps)) < LEAST_GAIN_BITS:
        return None
    zeros = np.where(finer, middle, zero)
    factor = step / steps.astype(np.float64)
    scale = (weight.params.scale * factor.reshape(weight.params.scale.shape)).astype(np.float32)
    bias = _moved_bias(change.bias, (zeros - zero) * step, scale_x, scale)
    constants = {**change.constants, 1: QTensor(weight.values, replace(weight.params, scale=scale))}
    spec = TensorSpec(common.spec.dtype, PerAxis(1))
    grids = QParams(spec, steps, zeros.astype(common.zero_point.dtype))
    return replace(change, constants=constants, bias=bias), grids


def _moved_bias(bias: QTensor | None, shift: Array, scale_x: float, scale_w: Array) -> QTensor | None:
    """The bias at the weight's new scales, its integers the old ones, with what moves each channel's zero added."""
    if bias is None and not shift.any():
        return None
    moved = quantize_bias(shift, scale_x, scale_w)
    if bias is None:
        return moved
    total = moved.values.astype(np.int64) + bias.values.astype(np.int64)
    limits = np.iinfo(np.int32)
    return QTensor(np.clip(total, limits.min, limits.max).astype(np.int32), moved.params)
