"""Grids of weights that a layer multiplies as integers, or that are dequantized to float when the model is loaded."""

from __future__ import annotations

import math

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.reading.ops import STORABLE, channel_axis, contracted_axes
from onnxq.graph.types import FLOAT32, Node
from onnxq.plan.placement.select import Choice
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.targets import Target

MIN_STORED = 1024
"""Weights of fewer elements stay float in storage: scales and two nodes would outweigh the saving."""

_NODES = 400
"""Bytes of the Cast and the Mul that make a stored weight a float one again, names included."""

_ELEMENTS_A_SCALE = 16
"""Elements that share a scale at least, where there is one for each column of each matrix."""


def storage_specs(node: Node, recipe: Recipe, choice: Choice) -> dict[int, TensorSpec]:
    """Grids of the weights of a node that can be stored, by input position."""
    positions = STORABLE.get(node.op_type, ()) if node.domain == "" else ()
    per_channel = recipe.per_channel if choice.rule.per_channel is None else choice.rule.per_channel
    specs: dict[int, TensorSpec] = {}
    for position in positions:
        value = walk.input_at(node, position)
        array = walk.const_array(value)
        if array is None or value is None or value.dtype != FLOAT32 or array.size < MIN_STORED or array.ndim < 2:
            continue
        if all(walk.is_constant(other) for other in node.inputs if other is not None):
            continue  # the runtime computes it once, at load
        granularity = _granularity(node, position, array) if per_channel else PerTensor()
        if not _saves(array, granularity):
            continue
        specs[position] = TensorSpec(QType.INT8, granularity, symmetric=True, narrow_range=True)
    return specs


def integer_spec(node: Node, position: int, recipe: Recipe, target: Target, choice: Choice) -> TensorSpec:
    """Grid of the weight of a node that computes on integers."""
    array = walk.const_array(node.inputs[position])
    assert array is not None
    per_channel = recipe.per_channel if choice.rule.per_channel is None else choice.rule.per_channel
    old = node.graph is not None and walk.opset(node.graph) < target.min_opset  # QuantizeLinear has no axis there
    turned = not target.scales_turn and walk.is_turned_and_reshaped(node)
    axis = channel_axis(node, array.ndim) if per_channel and not old and not turned else None
    asked = choice.rule.bits or recipe.bits or PRESETS[choice.rule.preset or recipe.preset].bits
    bits = min(asked, target.weight_bits)
    bits_used = bits if bits < target.weight.bits and not recipe.wide_weights else None
    even = not recipe.asymmetric_weights
    return TensorSpec(
        _weight_type(recipe, target),
        PerTensor() if axis is None or not even else PerAxis(axis),  # integer kernels have one zero point
        symmetric=even,
        narrow_range=even,
        grid_bits=bits_used,
    )


def _weight_type(recipe: Recipe, target: Target) -> QType:
    if recipe.wide_weights:
        return QType.UINT16 if recipe.unsigned_weights else QType.INT16
    return QType.UINT8 if recipe.unsigned_weights else target.weight


def _granularity(node: Node, position: int, array: Array) -> Granularity:
    """A scale for each output: all elements that a sum runs over share one."""
    if node.op_type not in ("MatMul", "Einsum"):
        axis = channel_axis(node, array.ndim)
        return PerTensor() if axis is None else PerAxis(axis)
    summed = contracted_axes(node, position, array.ndim)
    if summed is None:
        return PerTensor()
    kept = [axis for axis in range(array.ndim) if axis not in summed]
    if len(kept) == 1:
        return PerAxis(kept[0])
    if len(summed) == 1 and array.shape[summed[0]] >= _ELEMENTS_A_SCALE:
        return PerBlock(summed[0], array.shape[summed[0]])
    return PerAxis(kept[-1]) if kept else PerTensor()


def is_small(node: Node) -> bool:
    """Whether a layer has a constant weight, and none large enough to gain from being stored as integers."""
    arrays = [walk.const_array(walk.input_at(node, position)) for position in STORABLE[node.op_type]]
    sizes = [array.size for array in arrays if array is not None]
    return bool(sizes) and max(sizes) < MIN_STORED


def scales_outweigh(node: Node) -> bool:
    """Whether scales for each output, and two nodes, take what the integers of all constant weights of a layer save."""
    arrays = {position: walk.const_array(walk.input_at(node, position)) for position in STORABLE[node.op_type]}
    known = [(position, array) for position, array in arrays.items() if array is not None and array.ndim > 1]
    return bool(known) and not any(_saves(array, _granularity(node, position, array)) for position, array in known)


def _saves(array: Array, granularity: Granularity) -> bool:
    """Whether int8 elements with their scales and nodes take fewer bytes than float ones."""
    scales = 1
    if isinstance(granularity, PerAxis):
        scales = array.shape[granularity.axis]
    elif isinstance(granularity, PerBlock):
        blocks = -(-array.shape[granularity.axis] // granularity.size)
        scales = math.prod(array.shape) // array.shape[granularity.axis] * blocks
    return 3 * array.size - 4 * scales > _NODES
