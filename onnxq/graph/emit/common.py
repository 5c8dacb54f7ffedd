"""What all emitters share: scales and integers as initializers, Q and DQ nodes, clamps taken away, stored weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.core.mapped import forget
from onnxq.core.spec import PerAxis, QParams, QTensor
from onnxq.errors import RecipeError
from onnxq.graph import edit, spilled, walk
from onnxq.graph.emit.rewrite import NodeRewrite, Rewrite
from onnxq.graph.files.io import bytes_of
from onnxq.graph.reading.ops import MICROSOFT

IR_TYPES: dict[QType, ir.DataType] = {
    qtype: ir.DataType[qtype.value.upper()] for qtype in QType if qtype.value.upper() in ir.DataType.__members__
}


_CLIPS_INTEGERS = 12
"""The operator set whose Clip takes integers."""

_SHORT = 1 << 16
"""Bytes up to which a constant is its own key."""


_LONG, _HEAD, _TAIL = 80, 40, 32
"""Characters beyond which a name of ours is made of those at both ends of what it is called after."""


def shortened(name: str) -> str:
    """A name for what is ours alone, of bounded length.

    Names of TensorFlow's exporters may have hundreds of characters, and each pair of Q and DQ would repeat them ten
    times: more bytes than a small layer saves.
    """
    return name if len(name) <= _LONG else f"{name[:_HEAD]}~{name[-_TAIL:]}"


class Builder:
    """Makes nodes for any graph of a model, and initializers of the main graph, each distinct constant once.

    Subgraphs see the constants of the main graph, and the runtime takes them for constants there too.
    """

    def __init__(
        self, model: ir.Model, *, joins_equal: bool = True, own_grids: Mapping[str, str] | None = None
    ) -> None:
        """Look at what the model has.

        Args:
            model: changed by what is made.
            joins_equal: integers of equal contents are one initializer, whatever their scales. The QNN provider (2.7)
                keeps one scale an initializer, and computes wrong numbers for all others.
            own_grids: each value has its own scale and zero point, found by its name or, where it is here, by that of
                the value it has them from; None: those of equal contents are one initializer.
        """
        self._joins_equal = joins_equal
        self._own_grids = own_grids
        self._own: dict[int, tuple[QTensor, ir.Value]] = {}
        self.graph = model.graph
        self.names = walk.Names(model)
        self._spill = spilled.spill_of(model)
        self._given = {id(node): node for node in walk.all_nodes(model.graph) if node.op_type == "DequantizeLinear"}
        self._constants: dict[tuple[str, str, bytes, tuple[int, ...]], ir.Value] = {}

    def is_given(self, node: ir.Node) -> bool:
        """Whether the model brought a DQ along."""
        return id(node) in self._given

    def constant(self, name: str, array: Array, qtype: QType | None = None, *, joins: bool = True) -> ir.Value:
        """An initializer with this content; an equal one that was added before, if ``joins`` under any name, serves."""
        array = np.require(array, requirements="C")
        content = array.tobytes() if array.nbytes <= _SHORT else hashlib.sha256(bytes_of(array)).digest()
        key = ("" if joins else name, str(array.dtype), content, array.shape)
        if key not in self._constants:
            self._constants[key] = self.initializer(name, array, IR_TYPES[qtype] if qtype is not None else None)
        return self._constants[key]

    def initializer(self, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of the main graph, whatever others there are; large ones go to the model's file for them."""
        if self._spill is not None:
            array = self._spill.keep(array)
            forget(array)
        return edit.add_initializer(self.graph, self.names.value(name), array, dtype)

    def scale(self, value: str, params: QParams, suffix: str = "") -> ir.Value:
        """Scale as the operators take it: a scalar, or one entry a channel; with a suffix that of a second grid."""
        return self._of_grid(value, "_scale", suffix, params.scale)

    def zero_point(self, value: str, params: QParams, suffix: str = "") -> ir.Value:
        """Zero point of the same shape."""
        return self._of_grid(value, "_zero_point", suffix, params.zero_point, params.spec.dtype)

    def _of_grid(self, value: str, what: str, suffix: str, array: Array, dtype: QType | None = None) -> ir.Value:
        source = value if suffix else (self._own_grids or {}).get(value, value)  # a second grid is the value's own
        name = shortened(f"{source}{what}{suffix}")
        return self.constant(name, shaped(array), dtype, joins=self._own_grids is None)

    def integers(self, value: str, tensor: QTensor) -> ir.Value:
        """The integers of a quantized constant."""
        if not self._joins_equal:
            if id(tensor) not in self._own:
                array = np.require(tensor.values, requirements="C")
                name = self.names.value(f"{value}_quantized")
                made = edit.add_initializer(self.graph, name, array, IR_TYPES[tensor.params.spec.dtype])
                self._own[id(tensor)] = tensor, made
            return self._own[id(tensor)][1]
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
            name = self.names.node(shortened(stem if stem.endswith(op_type) else f"{output}_{op_type}"))
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
        return self.onto(value, self.scale(base, params), self.zero_point(base, params), params, output)

    def onto(self, value: ir.Value, scale: ir.Value, zero_point: ir.Value, params: QParams, output: str) -> ir.Node:
        """QuantizeLinear on a grid whose constants are there."""
        return self.node(
            "QuantizeLinear",
            [value, scale, zero_point],
            output,
            dtype=IR_TYPES[params.spec.dtype],
            shape=value.shape,
        )

    def limit(self, integers: ir.Value, params: QParams, limits: tuple[int, int] | None) -> ir.Node | None:
        """Clip of quantized activations; None where every integer of their type may occur.

        Raises:
            RecipeError: the operator set has no Clip of integers.
        """
        dtype, spec = params.spec.dtype, params.spec
        if limits is None and spec.bits < dtype.bits:  # a coarser grid than its type: Q goes on to the type's ends
            limits = (spec.qmin, spec.qmax)
        if limits is None:
            return None
        if (opset := walk.opset(self.graph)) < _CLIPS_INTEGERS:
            raise RecipeError(
                f"value {integers.name!r}: a grid of fewer levels than its type has needs operator set "
                f"{_CLIPS_INTEGERS}, and the model cannot be raised from {opset}; export it with a newer one"
            )
        bounds = [self.constant(f"{integers.name}_limit", np.asarray(end, dtype.numpy), dtype) for end in limits]
        return self.node(
            "Clip",
            [integers, *bounds],
            self.names.value(f"{integers.name}_limited"),
            dtype=IR_TYPES[dtype],
            shape=integers.shape,
        )

    def dequantize(self, value: ir.Value, params: QParams, output: str, base: str, axis: int | None = None) -> ir.Node:
        """DequantizeLinear of an activation or, along ``axis``, of a constant."""
        attributes = [ir.AttrInt64("axis", axis)] if axis is not None else []
        inputs: list[ir.Value | None] = [value, self.scale(base, params)]
        if params.spec.dtype is not QType.INT32 or self._own_grids is not None:  # there it is zero by the standard
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


_SUM_BROADCASTS = 8
"""The operator set from which on Sum is what Add is."""


def use_sum(node: ir.Node) -> bool:
    """Write an Add as Sum, which computes the same and which the runtime joins with nothing; whether it could be."""
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or node.graph is None:
        return False
    if walk.opset(node.graph) < _SUM_BROADCASTS:
        return False
    node.op_type = "Sum"
    return True


def keep_adds_apart(node: ir.Node, *, but_bias: bool = False) -> None:
    """Keep ONNX Runtime from joining a product whose weight is on integers and an Add behind it into a float Gemm.

    It does so where both have two axes, for a bias as for anything else of that shape, before it looks for integers,
    and then unfolds the weight at every inference.

    Args:
        node: a MatMul, or a Gemm that becomes one.
        but_bias: leave constants of one axis, which the kernel for packed weights takes.
    """
    for user in node.outputs[0].consumers():
        constants = [walk.const_array(value) for value in user.inputs]
        if not (but_bias and any(array is not None and array.ndim == 1 for array in constants)):
            use_sum(user)


def store_weights(builder: Builder, rewrite: Rewrite, nodes: dict[str, ir.Node]) -> None:
    """Store weights as integers that are dequantized to float once, when the model is loaded.

    Cast → Mul of an initializer is constant-folded by ONNX Runtime; a DequantizeLinear is not, and would run at every
    inference. Both lie in the graph that held the float weight: where that is a body, the runtime lays out the weight
    for its kernel only if it is folded there.
    """
    done: dict[tuple[int, int], ir.Value] = {}
    if rewrite.storage:
        nodes = {**{node.name or "": node for node in walk.all_nodes(builder.graph)}, **nodes}  # subgraphs among them
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
    """Nodes by name, subgraphs included, after every clamp that a range replaces is gone."""
    nodes = {node.name or "": node for node in walk.all_nodes(graph)}
    for name, change in rewrite.nodes.items():
        if change.folds is not None:
            fold_clamp(nodes[name], nodes.pop(change.folds))
    return nodes


def inputs_of(graph: ir.Graph) -> list[ir.Value]:
    """Inputs of a graph and of the subgraphs inside it."""
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


def drop_inputs(values: list[ir.Value | None]) -> None:
    """Remove float initializers that nothing reads any more."""
    for value in values:
        edit.drop_unused_initializer(value)


def change_of(rewrite: Rewrite, node: ir.Node) -> NodeRewrite | None:
    """What is to be done to a node, or None."""
    return rewrite.nodes.get(node.name or "")
