"""What all emitters share: scales and integers as initializers, Q and DQ nodes, clamps taken away, stored weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, QParams, QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit.rewrite import NodeRewrite, Rewrite
from onnxq.graph.reading.ops import MICROSOFT

IR_TYPES: dict[QType, ir.DataType] = {
    qtype: ir.DataType[qtype.name] for qtype in QType if qtype.name in ir.DataType.__members__
}


class Builder:
    """Makes nodes for any graph of a model, and initializers of the main graph, each distinct constant once.

    Bodies see the constants of the main graph, and the runtime takes them for constants there too.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = walk.Names(model)
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def constant(self, name: str, array: Array, qtype: QType | None = None) -> ir.Value:
        """An initializer with this content; an equal one that was added before serves again."""
        array = np.require(array, requirements="C")
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self._constants:
            dtype = IR_TYPES[qtype] if qtype is not None else None
            self._constants[key] = edit.add_initializer(self.graph, self.names.value(name), array, dtype)
        return self._constants[key]

    def scale(self, value: str, params: QParams) -> ir.Value:
        """Scale as the operators take it: a scalar, or one entry a channel."""
        return self.constant(f"{value}_scale", shaped(params.scale))

    def zero_point(self, value: str, params: QParams) -> ir.Value:
        """Zero point of the same shape."""
        return self.constant(f"{value}_zero_point", shaped(params.zero_point), params.spec.dtype)

    def integers(self, value: str, tensor: QTensor) -> ir.Value:
        """The integers of a quantized constant."""
        return self.constant(f"{value}_quantized", tensor.values, tensor.params.spec.dtype)

    def node(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        output: str,
        *,
        name: str | None = None,
        domain: str = "",
        attributes: list[ir.Attr] | None = None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
    ) -> ir.Node:
        """A node with one output, not yet in the graph."""
        value = ir.Value(name=output, type=ir.TensorType(dtype) if dtype is not None else None, shape=shape)
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        if name is None:
            stem = output.removesuffix("_Output")
            name = self.names.node(stem if stem.endswith(op_type) else f"{output}_{op_type}")
        return ir.Node(domain, op_type, inputs, attributes or [], outputs=[value], name=name)

    def place_after(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        """Insert nodes right behind the one that writes ``value``, or first in its graph where it is an input."""
        producer = value.producer()
        graph = value.graph or self.graph
        if producer is not None:
            graph.insert_after(producer, nodes)
        else:
            place_first(graph, nodes)

    def quantize(self, value: ir.Value, params: QParams, output: str) -> ir.Node:
        """QuantizeLinear of an activation."""
        base = value.name or output
        return self.node(
            "QuantizeLinear",
            [value, self.scale(base, params), self.zero_point(base, params)],
            output,
            dtype=IR_TYPES[params.spec.dtype],
            shape=value.shape,
        )

    def dequantize(self, value: ir.Value, params: QParams, output: str, base: str, axis: int | None = None) -> ir.Node:
        """DequantizeLinear of an activation or, along ``axis``, of a constant."""
        attributes = [ir.AttrInt64("axis", axis)] if axis is not None else []
        inputs: list[ir.Value | None] = [value, self.scale(base, params)]
        if params.spec.dtype is not QType.INT32:  # there it is zero by the standard
            inputs.append(self.zero_point(base, params))
        return self.node(
            "DequantizeLinear",
            inputs,
            output,
            attributes=attributes,
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
        )


def place_first(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Insert nodes at the top of a graph."""
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)


def shaped(array: Array) -> Array:
    """Parameters as Q and DQ take them: rank 0 for one, rank 1 for one a channel, full rank for blocks."""
    if array.size == 1:
        return np.asarray(array.reshape(()))
    longer = [length for length in array.shape if length > 1]
    return array.reshape(-1) if len(longer) == 1 else array


def channel_axis_of(tensor: QTensor) -> int | None:
    """Axis along which a quantized constant has its scales; None for one scale."""
    granularity = tensor.params.spec.granularity
    if isinstance(granularity, PerAxis) and tensor.params.scale.size > 1:
        return granularity.axis
    return None


def fold_clamp(node: ir.Node, clamp: ir.Node) -> None:
    """Take a Relu or Clip away: the node before it writes the clamp's output, under that output's name."""
    bounds = list(clamp.inputs[1:])
    edit.take_over(clamp.outputs[0], node.outputs[0])
    edit.remove_node(clamp)
    drop_inputs(bounds)


def to_float(builder: Builder, node: ir.Node, operands: list[list[ir.Value | None]], adds: ir.Node | None) -> ir.Node:
    """Put the operator that multiplies integers and scales the products to float in the place of a MatMul.

    Args:
        builder: of the model.
        node: the MatMul; removed.
        operands: [integers, scale, zero point] of both operands.
        adds: the Add behind it, with one constant a column; removed too.
    """
    a, b = operands
    inputs = [a[0], b[0], a[1], b[1], a[2], b[2]]
    last = adds if adds is not None else node
    if adds is not None:
        inputs.append(next(value for value in adds.inputs if walk.is_constant(value)))
    output = last.outputs[0]
    new = builder.node(
        "MatMulIntegerToFloat", inputs, output.name or "", name=node.name, domain=MICROSOFT, shape=output.shape,
        dtype=ir.DataType.FLOAT,
    )  # fmt: skip
    graph = node.graph
    assert graph is not None
    graph.insert_after(node, [new])
    edit.take_over(output, new.outputs[0])
    for old in dict.fromkeys((last, node)):
        inputs = list(old.inputs)
        graph.remove(old, safe=True)
        drop_inputs(inputs)
    return new


def store_weights(builder: Builder, rewrite: Rewrite, nodes: dict[str, ir.Node]) -> None:
    """Store weights as integers that are unfolded to float once, when the model is loaded.

    Cast → Mul of an initializer is constant-folded by ONNX Runtime; a DequantizeLinear is not, and would run at every
    inference. Both lie in the graph that held the float weight: where that is a body, the runtime lays out the weight
    for its kernel only if it is folded there.
    """
    done: dict[tuple[int, int], ir.Value] = {}
    if rewrite.storage:
        nodes = {**{node.name or "": node for node in walk.all_nodes(builder.graph)}, **nodes}  # bodies among them
    for name, constants in rewrite.storage.items():
        for position, tensor in constants.items():
            original = nodes[name].inputs[position]
            assert original is not None
            home = original.graph or builder.graph
            key = (id(tensor), id(home))
            if key not in done:
                base = original.name or name
                integers = builder.integers(base, tensor)
                scale = builder.constant(f"{base}_scale", tensor.params.scale)
                cast = builder.node(
                    "Cast",
                    [integers],
                    builder.names.value(f"{base}_cast"),
                    attributes=[ir.AttrInt64("to", int(ir.DataType.FLOAT))],
                    dtype=ir.DataType.FLOAT,
                    shape=original.shape,
                )
                mul = builder.node(
                    "Mul",
                    [cast.outputs[0], scale],
                    builder.names.value(f"{base}_unfolded"),
                    dtype=ir.DataType.FLOAT,
                    shape=original.shape,
                )
                place_first(home, [cast, mul])
                done[key] = mul.outputs[0]
            edit.set_input(nodes[name], position, done[key])
            edit.drop_unused_initializer(original)


def folded_first(graph: ir.Graph, rewrite: Rewrite) -> dict[str, ir.Node]:
    """Nodes by name, bodies included, after every clamp that a range replaces is gone."""
    nodes = {node.name or "": node for node in walk.all_nodes(graph)}
    for name, change in rewrite.nodes.items():
        if change.folds is not None:
            fold_clamp(nodes[name], nodes.pop(change.folds))
    return nodes


def inputs_of(graph: ir.Graph) -> list[ir.Value]:
    """Inputs of a graph and of the bodies inside it."""
    return [value for scope in walk.all_graphs(graph) for value in scope.inputs]


def replace_uses(old: ir.Value, new: ir.Value, keep: ir.Node) -> None:
    """Let every reader of ``old`` but one node read ``new``, which takes over the place and name of a graph output."""
    if old.is_graph_output():
        name, shape, type_ = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = new.name, None
        new.name, new.shape, new.type = name, shape, type_
    else:
        old.replace_all_uses_with(new)
    for index, value in enumerate(keep.inputs):
        if value is new:
            keep.replace_input_with(index, old)


def drop_idle(graph: ir.Graph, integers: dict[int, ir.Value]) -> None:
    """Remove the DQ nodes that nothing reads because every reader took the integers.

    Args:
        graph: changed in place.
        integers: integer form by id of the float value that a DQ gives.
    """
    for node in list(walk.all_nodes(graph)):
        if node.op_type != "DequantizeLinear" or id(node.outputs[0]) not in integers:
            continue
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output() and node.graph is not None:
            node.graph.remove(node, safe=True)


def dequantize_in_bodies(builder: Builder, rewrite: Rewrite, integers: dict[int, ir.Value]) -> None:
    """Give the integer nodes of a body a DQ of their own behind the integers they read from outside it.

    The runtime joins a DQ and its reader to an integer kernel only where both lie in one graph. The value is quantized
    once all the same: the integers are what the body reads.

    Args:
        builder: of the model.
        rewrite: which nodes run on integers.
        integers: integer form by id of the float value that a DQ gives.
    """
    for node in list(walk.all_nodes(builder.graph)):
        if node.op_type != "DequantizeLinear" or id(node.outputs[0]) not in integers:
            continue
        inside: dict[int, ir.Value] = {}
        for user, index in list(node.outputs[0].uses()):
            if user.graph is node.graph or user.graph is None or change_of(rewrite, user) is None:
                continue
            if id(user.graph) not in inside:
                name = node.outputs[0].name or ""
                copy = builder.node(
                    "DequantizeLinear", list(node.inputs), builder.names.value(f"{name}_DequantizeLinear_Output"),
                    dtype=ir.DataType.FLOAT, shape=node.outputs[0].shape,
                )  # fmt: skip
                place_first(user.graph, [copy])
                inside[id(user.graph)] = copy.outputs[0]
            user.replace_input_with(index, inside[id(user.graph)])


_ROUNDED_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Layers whose float weight ONNX Runtime rounds to 8 bits, one scale for all, where they stand between a DQ and a Q."""


def keep_float(builder: Builder) -> None:
    """Keep the runtime from quantizing the layers that the plan leaves float.

    Its pass WeightBiasQuantization takes only layers behind a DQ of one scale: a DQ of the same scale written once for
    each channel gives the same numbers and is passed over. Operator sets before 13 have no such DQ.
    """
    if walk.opset(builder.graph) < 13:
        return
    for node in list(walk.all_nodes(builder.graph)):
        graph = node.graph
        channels = _input_channels(node) if node.op_type in _ROUNDED_AT_LOAD and node.domain == "" else None
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if (
            channels is None
            or graph is None
            or source is None
            or source.op_type != "DequantizeLinear"
            or source.graph is not graph
        ):
            continue
        scale, zero_point = (walk.const_array(walk.input_at(source, i)) for i in (1, 2))
        if scale is None or zero_point is None or scale.ndim or not _goes_to_integers(node):
            continue
        name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        apart = builder.node(
            "DequantizeLinear",
            [
                source.inputs[0],
                builder.constant(f"{name}_scales", np.full(channels, scale)),
                builder.constant(f"{name}_zero_points", np.full(channels, zero_point)),
            ],
            builder.names.value(f"{name}_DequantizeLinear_Output"),
            attributes=[ir.AttrInt64("axis", 1)],
            dtype=ir.DataType.FLOAT,
            shape=node.inputs[0].shape if node.inputs[0] is not None else None,
        )
        graph.insert_before(node, [apart])
        edit.set_input(node, 0, apart.outputs[0])
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            graph.remove(source, safe=True)


def _input_channels(node: ir.Node) -> int | None:
    """Channels of the input of a layer with a float weight; None where it has none that is constant."""
    weight = walk.input_at(node, 1)
    producer = weight.producer() if weight is not None else None
    if weight is None or (producer is not None and producer.op_type == "DequantizeLinear"):
        return None
    shape = walk.dims(weight)
    if shape is None or len(shape) < 2 or None in shape[:2]:
        return None
    first, second = int(shape[0] or 0), int(shape[1] or 0)
    if node.op_type == "Conv":
        return second * walk.attr_int(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return first
    return None if walk.attr_int(node, "transA") else (second if walk.outputs_first(node) else first)


def _goes_to_integers(node: ir.Node) -> bool:
    """Whether a Q reads the node's output, by way of a Relu or Clip or not."""
    for user in node.outputs[0].consumers():
        if user.op_type == "QuantizeLinear":
            return True
        if user.op_type in ("Relu", "Clip") and any(u.op_type == "QuantizeLinear" for u in user.outputs[0].consumers()):
            return True
    return False


_PROPAGATED = frozenset("MaxPool Reshape Slice Squeeze Transpose Unsqueeze".split())
"""Operators past which ONNX Runtime moves a DequantizeLinear that stands before them."""


def shield_bodies(builder: Builder) -> None:
    """Put Q and DQ between a float node that a DQ may be moved past and bodies of If, Loop or Scan that read it.

    ONNX Runtime (seen in 1.32) looks for the reader among the inputs of the If, where values that a body captures are
    not, and ends the process. What moves numbers of a grid gives numbers of that grid, so this changes none.
    """
    for node in list(walk.all_nodes(builder.graph)):
        graph, output, name = node.graph, node.outputs[0], node.outputs[0].name or ""
        if node.op_type not in _PROPAGATED or graph is None or all(user.graph is graph for user in output.consumers()):
            continue
        source = _dequantizer(node)
        if source is None or source.inputs[0] is None:
            continue
        q = builder.node(
            "QuantizeLinear",
            [output, *source.inputs[1:]],
            builder.names.value(f"{name}_QuantizeLinear_Output"),
            dtype=source.inputs[0].dtype,
            shape=output.shape,
        )
        dq = builder.node(
            "DequantizeLinear",
            [q.outputs[0], *source.inputs[1:]],
            builder.names.value(f"{name}_DequantizeLinear_Output"),
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        graph.insert_after(node, [q, dq])
        replace_uses(output, dq.outputs[0], keep=q)


def _dequantizer(node: ir.Node) -> ir.Node | None:
    """The DQ of one scale whose numbers reach the node through operators that only move them."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None:
        return None
    if source.op_type in _PROPAGATED or source.op_type == "Identity":
        return _dequantizer(source)
    return source if source.op_type == "DequantizeLinear" and walk.rank(source.inputs[1]) == 0 else None


def drop_inputs(values: list[ir.Value | None]) -> None:
    """Remove float initializers that nothing reads any more."""
    for value in values:
        edit.drop_unused_initializer(value)


def change_of(rewrite: Rewrite, node: ir.Node) -> NodeRewrite | None:
    """What is to be done to a node, or None."""
    return rewrite.nodes.get(node.name or "")
