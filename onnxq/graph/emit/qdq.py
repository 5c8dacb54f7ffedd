"""The QDQ format: operators stay as they are, between QuantizeLinear and DequantizeLinear nodes.

The runtime recognises DQ → operator → Q and runs it on integers; a runtime that does not still computes the same model
in float. Operators that ONNX Runtime would leave on floats in this form although they take integers (Pad) are put
between Q and DQ instead.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.spec import QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit import common
from onnxq.graph.emit.bodies import dequantize_in_bodies, shield_bodies
from onnxq.graph.emit.channels.channels_last import settle
from onnxq.graph.emit.channels.pointwise import as_product
from onnxq.graph.emit.float_nodes import hold_float
from onnxq.graph.emit.native import to_integers
from onnxq.graph.emit.norms import hold_pools, join_gelus
from onnxq.graph.emit.resizes import hold_layout
from onnxq.graph.emit.rewrite import USUAL, NodeRewrite, Rewrite, Style
from onnxq.graph.reading.ops import Kind, activation_positions, row_in

_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


def emit_qdq(model: ir.Model, rewrite: Rewrite, style: Style = USUAL) -> None:
    """Rewrite the model in place.

    Args:
        model: the prepared model that the rewrite was made for.
        rewrite: what becomes of it.
        style: how it is written.
    """
    own_grids = rewrite.sources if style.own_grids else None
    builder = common.Builder(model, joins_equal=style.steered, own_grids=own_grids)
    nodes = common.folded_first(model.graph, rewrite)
    emitter = _QdqEmitter(builder, rewrite, nodes, style)
    for value in common.inputs_of(model.graph):
        emitter.convert_float(value)
    for node in list(nodes.values()):
        if node.graph is None:
            continue  # its work is done by the node before it
        change = common.change_of(rewrite, node)
        if change is not None:
            emitter.convert(node, change)
        else:
            for output in node.outputs:
                emitter.convert_float(output)
    dequantize_in_bodies(builder, rewrite, emitter.integers)
    common.drop_idle(model.graph, emitter.integers)
    shield_bodies(builder)
    if style.steered:
        hold_float(builder, rewrite)
        hold_pools(builder)
        join_gelus(builder)
        hold_layout(builder)
        if style.settled:
            settle(builder.graph, builder.names)
    common.store_weights(builder, rewrite, nodes)


def _clamped(node: ir.Node) -> bool:
    """Whether a Relu or Clip reads the output of a node."""
    return any(user.op_type in ("Relu", "Clip") for user in node.outputs[0].consumers())


def _bytes_read(node: ir.Node) -> ir.Node | None:
    """The DQ that a node reads, if its integers are bytes."""
    dequantizer = node.inputs[0].producer() if node.inputs[0] is not None else None
    integers = dequantizer.inputs[0] if dequantizer is not None else None
    return dequantizer if integers is not None and integers.dtype in _BYTES else None


def _multiplies_bytes(node: ir.Node, change: NodeRewrite) -> bool:
    """Whether both operands of a product with a constant are bytes."""
    return _bytes_read(node) is not None and change.constants[1].params.spec.dtype.bits == 8


class _QdqEmitter:
    def __init__(self, builder: common.Builder, rewrite: Rewrite, nodes: dict[str, ir.Node], style: Style) -> None:
        self._builder = builder
        self._style = style
        self._nodes = nodes
        self._rewrite = rewrite
        self.integers: dict[int, ir.Value] = {}

    def convert_float(self, value: ir.Value) -> None:
        """Give a value that is computed in float an integer form, for the integer nodes alone."""
        params = self._rewrite.values.get(value.name or "")
        if params is None:
            return
        readers = [
            (user, position)
            for user in value.consumers()
            if common.change_of(self._rewrite, user) is not None
            for position in activation_positions(user, row_in(user))
            if user.inputs[position] is value
        ]
        if not readers:
            return
        back = self._pair(value)
        for user, position in readers:
            user.replace_input_with(position, back)
        self._widen(value.name or "", back)

    def convert(self, node: ir.Node, change: NodeRewrite) -> None:
        """Put an integer node between its Q and DQ nodes."""
        row = row_in(node)
        if change.adds is not None:
            self._as_product(node, change, self._nodes[change.adds])
            return
        joins = self._style.steered and change.float_output and node.op_type == "MatMul"
        if joins and 1 in change.constants and _clamped(node) and _multiplies_bytes(node, change):
            self._as_product(node, change, None)
            return
        if change.float_output and node.op_type == "Conv" and (read := _bytes_read(node)) is not None:
            self._as_pointwise(node, read, change)
            return
        for position, tensor in change.constants.items():
            original = node.inputs[position]
            assert original is not None
            edit.set_input(node, position, self._constant(node, original, tensor))
            edit.drop_unused_initializer(original)
        original = None if row.bias is None else walk.input_at(node, row.bias)
        stays = self._style.float_bias or (original is not None and original.name in self._style.float_biases)
        if change.bias is not None and row.bias is not None and not stays:
            edit.set_input(node, row.bias, self._bias(node, original, change))
            edit.drop_unused_initializer(original)
        if row.native and self._rewrite.values[node.outputs[0].name or ""].spec.dtype.bits == 8:
            source = node.inputs[0]
            assert source is not None
            name = node.outputs[0].name or ""
            to_integers(self._builder, node, self.integers[id(source)], self._rewrite.values[name], self.integers)
            return
        if change.float_output:
            if node.op_type == "MatMul" and self._style.steered:
                common.keep_adds_apart(node)
            return
        if row.kind is Kind.READING:
            return
        for output in list(node.outputs):
            name = output.name or ""
            if name in self._rewrite.values and (output.uses() or output.is_graph_output()):
                self._widen(name, self._pair(output, take_place=True))

    def _as_product(self, node: ir.Node, change: NodeRewrite, adds: ir.Node | None) -> None:
        """Write a MatMul, and the Add of its bias if there is one, as the integer operator that does both.

        ONNX Runtime makes it of Q, DQ and MatMul as well, but leaves the Add behind it, and leaves a MatMul in float
        whose float result a Relu or Clip reads.
        """
        builder, source, weight = self._builder, node.inputs[0], node.inputs[1]
        assert source is not None and weight is not None
        base, tensor = weight.name or "", change.constants[1]
        dequantizer = source.producer()
        assert dequantizer is not None
        b: list[ir.Value | None] = [
            builder.integers(base, tensor),
            builder.scale(base, tensor.params),
            builder.zero_point(base, tensor.params),
        ]
        new = common.to_float(builder, node, [list(dequantizer.inputs), b], adds)
        for output in new.outputs:
            self.convert_float(output)

    def _as_pointwise(self, node: ir.Node, dequantizer: ir.Node, change: NodeRewrite) -> None:
        """Write a Conv over single positions as a product of matrices."""
        back = as_product(self._builder, node, list(dequantizer.inputs), change)
        real = dequantizer.outputs[0]
        if not real.uses() and not real.is_graph_output() and dequantizer.graph is not None:
            dequantizer.graph.remove(dequantizer, safe=True)
        self.convert_float(back.outputs[0])

    def _pair(self, value: ir.Value, take_place: bool = False) -> ir.Value:
        """Q and DQ behind a value; the DQ's output, which replaces the value everywhere if ``take_place``."""
        builder, name = self._builder, value.name or ""
        params = self._rewrite.values[name]
        names = builder.names
        q = builder.quantize(value, params, names.value(f"{name}_QuantizeLinear_Output"))
        back, axis = self._rewrite.grid_behind(name)
        clip = builder.limit(q.outputs[0], params, self._rewrite.fixed.get(name))
        integers = q.outputs[0] if clip is None else clip.outputs[0]
        dq = builder.dequantize(integers, back, names.value(f"{name}_DequantizeLinear_Output"), name, axis)
        builder.place_after(value, [q, dq] if clip is None else [q, clip, dq])
        self.integers[id(dq.outputs[0])] = integers
        if take_place:
            common.replace_uses(value, dq.outputs[0], keep=q)
        if axis is not None and value.name == name:  # the numbers that the name is known for come behind the DQ
            value.name, dq.outputs[0].name = names.value(f"{name}_scaled"), name
        return dq.outputs[0]

    def _widen(self, name: str, back: ir.Value) -> None:
        """Give the readers that take a value on its second grid a Q and DQ of their own behind the first ones."""
        found = self._rewrite.converted.get(name)
        if found is None:
            return
        readers = [user for user in dict.fromkeys(back.consumers()) if user.name in found.readers]
        readers = [user for user in readers if user.graph is back.graph]
        if not readers:
            return
        builder = self._builder
        grid = builder.scale(name, found.params, "_convert"), builder.zero_point(name, found.params, "_convert")
        q = builder.onto(back, *grid, found.params, builder.names.value(f"{name}_QuantizeLinear_Converted"))
        converted = builder.names.value(f"{name}_DequantizeLinear_Converted")
        dq = builder.node(
            "DequantizeLinear", [q.outputs[0], *grid], converted, dtype=ir.DataType.FLOAT, shape=back.shape
        )
        builder.place_after(back, [q, dq])
        self.integers[id(dq.outputs[0])] = q.outputs[0]
        for user in readers:
            for position in activation_positions(user, row_in(user)):
                if user.inputs[position] is back:
                    user.replace_input_with(position, dq.outputs[0])

    def _constant(self, node: ir.Node, original: ir.Value, tensor: QTensor) -> ir.Value:
        builder, base = self._builder, original.name or "constant"
        integers = builder.integers(base, tensor)
        axis = common.channel_axis_of(tensor)
        # ONNX Runtime (seen in 1.32) makes a MatMulNBits of a DQ and a float MatMul, and fails where the integers lie
        # outside of their graph.
        graph = node.graph if _bytes_read(node) is not None else builder.graph
        assert graph is not None
        # Constants of equal contents are one: a zero point can be what another node dequantizes.
        inputs = (integers, builder.scale(base, tensor.params), builder.zero_point(base, tensor.params))
        for user in integers.consumers():
            known = user.op_type == "DequantizeLinear" and user.graph is graph
            if known and tuple(user.inputs) == inputs and _axis(user) == axis:
                return user.outputs[0]
        output = builder.names.value(f"{base}_DequantizeLinear_Output")
        dq = builder.dequantize(integers, tensor.params, output, base, axis)
        common.place_first(graph, [dq])
        return dq.outputs[0]

    def _bias(self, node: ir.Node, original: ir.Value | None, change: NodeRewrite) -> ir.Value:
        assert change.bias is not None
        builder, base = self._builder, (original.name if original is not None else None) or f"{node.name}_bias"
        integers = builder.integers(base, change.bias)
        axis = 0 if change.bias.params.scale.size > 1 else None
        output = builder.names.value(f"{base}_DequantizeLinear_Output")
        dq = builder.dequantize(integers, change.bias.params, output, base, axis)
        self._place_first(node, dq)
        return dq.outputs[0]

    def _place_first(self, node: ir.Node, dq: ir.Node) -> None:
        # Constants may be shared with nodes further up, so their DQ goes to the top of the node's graph.
        assert node.graph is not None
        common.place_first(node.graph, [dq])


def _axis(node: ir.Node) -> int | None:
    return walk.attr_int(node, "axis") if "axis" in node.attributes else None
