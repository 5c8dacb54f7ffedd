"""Take fake quantization out of a model, and keep the grids that it was trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.graph import edit, traits, walk
from onnxq.graph.reading.ops import Kind, activation_positions, clamp_bounds, row_of
from onnxq.graph.trained.given_grids import GivenGrid, grid_of, wide

_LAYERS = traits.LAYERS - {"ConvTranspose"}
_ARRANGED = traits.MOVING | {"Identity"}


@dataclass
class Lifted:
    """What a model was trained with.

    Attributes:
        values: grid of each activation, by the name of the value whose Q and DQ were taken out.
        nodes: names of that Q and DQ.
        weights: integers and grid of each constant that was unfolded to float, by the initializer's name.
        refused: how often a Q or DQ had to stay, by the reason.
    """

    values: dict[str, GivenGrid] = field(default_factory=dict)
    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    weights: dict[str, tuple[Array, GivenGrid]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


def comes_trained(model: ir.Model, float_weights: int) -> bool:
    """Whether a model has grids for activations and lacks some of what an integer kernel needs.

    Tools that quantize after training write complete models, with biases as int32, and what they left float they meant
    to leave. Exports of quantization-aware training have float biases, or float weights in front of their Q.

    Args:
        model: the prepared model.
        float_weights: how many float constants a QuantizeLinear read before it was prepared.
    """
    nodes = list(walk.all_nodes(model.graph))
    if not any(node.op_type == "QuantizeLinear" and not walk.is_constant(node.inputs[0]) for node in nodes):
        return False
    return float_weights > 0 or any(map(_lacks_bias, nodes))


def _lacks_bias(node: ir.Node) -> bool:
    """Whether a layer reads a quantized input and weight and adds a float bias."""
    row = row_of(node)
    if node.op_type not in _LAYERS or row is None or row.bias is None:
        return False
    bias = walk.const_array(walk.input_at(node, row.bias))
    return bias is not None and bias.dtype == np.float32 and all(map(is_dequantized, node.inputs[:2]))


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value comes from a DequantizeLinear, behind operators that only arrange its elements."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _ARRANGED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def lift(model: ir.Model, activation: QType, weight: QType) -> Lifted:
    """Take out what fakes quantization and can be said as a grid of the target's; the rest stays as it is.

    Args:
        model: prepared; changed in place. Afterwards it computes without rounding its activations, with the weights
            that its integers stand for.
        activation: type of activations on the target.
        weight: type of weights on the target.
    """
    found = Lifted()
    names = walk.Names(model)
    for node in walk.nodes_to_rewrite(model, "DequantizeLinear"):
        if walk.is_constant(node.inputs[0]):
            _unfold(node, activation, weight, names, found)
    for node in walk.nodes_to_rewrite(model, "QuantizeLinear"):
        _take_out(node, activation, found)
    return found


def _unfold(node: ir.Node, activation: QType, weight: QType, names: walk.Names, found: Lifted) -> None:
    """Give what computes with a quantized constant the reals that it stands for."""
    grid, integers = grid_of(node), walk.const_array(node.inputs[0])
    if integers is None or node.outputs[0].is_graph_output() or node.graph is None:
        return
    readers = []
    for use in list(node.outputs[0].uses()):
        role = _role(use.node, use.idx)
        reason = _why_not(grid, role, activation, weight) if role else None
        if reason:
            found.refused[reason] += 1
        elif role:
            readers.append(use)
    reals = _reals(integers, grid) if grid is not None and readers else None
    if grid is None or reals is None:
        return
    name = names.value(f"{node.inputs[0].name if node.inputs[0] is not None else node.name}_real")
    constant = edit.add_initializer(node.graph, name, reals)
    if grid.dtype is not QType.INT32:
        found.weights[name] = (_arranged(wide(integers), readers[0].node), grid)
    for use in readers:
        use.node.replace_input_with(use.idx, constant)
    _drop_if_unused(node)


def _role(node: ir.Node, position: int) -> str:
    """What a constant is there: "weight", "bias" or "operand" of an integer kernel; "" for anything else."""
    if node.op_type in _ARRANGED and position == 0:
        roles = {_role(use.node, use.idx) for output in node.outputs for use in output.uses()}
        return roles.pop() if len(roles) == 1 else ""
    row = row_of(node)
    if row is None or row.kind not in (Kind.WEIGHTED, Kind.REQUANTIZING):
        return ""
    if row.kind is Kind.REQUANTIZING:
        return "operand" if position in activation_positions(node, row) else ""
    return {row.weight: "weight", row.bias: "bias"}.get(position, "")


def _arranged(integers: Array, node: ir.Node | None) -> Array:
    """Integers as they lie behind the operators that arrange them."""
    while node is not None and node.op_type in _ARRANGED:
        shape = walk.dims(node.outputs[0])
        if node.op_type == "Transpose":
            integers = integers.transpose(walk.attr_ints(node, "perm") or None)
        elif shape is not None and None not in shape:
            integers = integers.reshape([dim for dim in shape if dim is not None])
        node = next(iter(node.outputs[0].consumers()), None)
    return integers


def _why_not(grid: GivenGrid | None, role: str, activation: QType, weight: QType) -> str | None:
    """Why a constant's grid cannot be kept; None where it can."""
    if grid is None:
        return f"a {role} has scales in blocks, or none that are constant"
    if role == "bias":
        return None
    moved = grid.shifted(activation if role == "operand" else weight)
    if moved is None:
        return f"the {role} is {grid.dtype.value}, which does not fit into 8 bits"
    if role == "operand" and grid.axis is not None:
        return "a constant that is added or multiplied has scales for each channel, and integer kernels take one"
    if role == "weight" and moved.zero_point.any():
        return "zero points of a weight are not the middle of its grid, and integer kernels here take no others"
    return None


def _reals(integers: Array, grid: GivenGrid) -> Array | None:
    """float32 reals; None where the scales do not fit."""
    scale, zero = grid.scale, grid.zero_point
    if grid.axis is not None:
        axis = grid.axis + integers.ndim if grid.axis < 0 else grid.axis
        if not 0 <= axis < integers.ndim or integers.shape[axis] != scale.size:
            return None
        shape = [-1 if index == axis else 1 for index in range(integers.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((wide(integers) - zero).astype(np.float32) * scale, np.float32)


def _take_out(node: ir.Node, activation: QType, found: Lifted) -> None:
    """Let what reads the DQs behind a Q read the value in front of it, and note its grid."""
    value = node.inputs[0]
    if value is None or not value.name or walk.is_constant(value):
        return
    given = grid_of(node)
    last, low, high = _clipped(node)
    behind = list(last.outputs[0].consumers())
    if given is None or not behind or any(user.op_type != "DequantizeLinear" for user in behind):
        found.refused["integers are read by more than a DequantizeLinear, or the scale is not constant"] += 1
        return
    if last.outputs[0].is_graph_output() or node.outputs[0].is_graph_output():
        found.refused["its integers are an output of the model"] += 1
        return
    if any((grid := grid_of(user)) is None or not grid.same_steps(given) for user in behind):
        found.refused["it is dequantized with other scales than it is quantized with"] += 1
        return
    clipped = GivenGrid(
        given.dtype, given.scale, given.zero_point, given.axis, max(low, given.low), min(high, given.high)
    )
    grid = clipped.shifted(activation)
    if given.axis is not None:
        found.refused["an activation has scales for each channel, and integer kernels take one"] += 1
        return
    if grid is None:
        found.refused[f"an activation is {given.dtype.value}, which is no {activation.value}"] += 1
        return
    if not all(_may_go(user, value) for user in behind):
        found.refused["it stands between an input and an output of the model"] += 1
        return
    names, before = (node.name or "", behind[0].name or ""), value.name
    for user in behind:
        output = user.outputs[0]
        if output.is_graph_output():
            edit.take_over(output, value)
        else:
            output.replace_all_uses_with(value)
        _drop_if_unused(user)
    _drop_if_unused(last)
    if last is not node:
        _drop_if_unused(node)
    name = value.name or ""
    if before != name and before in found.values:
        found.values[name], found.nodes[name] = found.values.pop(before), found.nodes.pop(before)
    if name in found.values and not found.values[name].same_steps(grid):
        found.refused["two grids for one value; the first one is kept"] += 1
        return
    found.values[name], found.nodes[name] = grid, names


def _clipped(node: ir.Node) -> tuple[ir.Node, int, int]:
    """The Clip of integers behind a Q (or the Q itself), and its bounds."""
    user = walk.only_use(node.outputs[0])
    if user is None or user.op_type != "Clip" or user.domain not in ("", "ai.onnx"):
        return node, -(1 << 40), 1 << 40
    if any(walk.const_array(value) is None for value in user.inputs[1:3] if value is not None):
        return node, -(1 << 40), 1 << 40
    low, high = clamp_bounds(user)
    return user, int(max(low, -(1 << 40))), int(min(high, 1 << 40))


def _may_go(node: ir.Node, value: ir.Value) -> bool:
    """Whether the value in front of a Q may stand where a DQ gives an output of the graph."""
    output, graph = node.outputs[0], node.graph
    return not output.is_graph_output() or (graph is not None and edit.can_be_output(value, graph))


def _drop_if_unused(node: ir.Node) -> None:
    if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    inputs = list(node.inputs)
    edit.remove_node(node)
    for value in inputs:
        edit.drop_unused_initializer(value)
