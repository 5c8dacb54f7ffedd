"""The QOperator format: each integer node becomes the runtime's own integer operator (QLinearConv, QGemm, …)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq.core.spec import QParams
from onnxq.graph import edit, walk
from onnxq.graph.emit import common
from onnxq.graph.emit.bodies import shield_bodies
from onnxq.graph.emit.channels.channels_last import settle
from onnxq.graph.emit.channels.pointwise import as_product
from onnxq.graph.emit.float_nodes import hold_float
from onnxq.graph.emit.native import to_integers
from onnxq.graph.emit.norms import hold_pools, join_gelus
from onnxq.graph.emit.resizes import hold_layout
from onnxq.graph.emit.rewrite import USUAL, NodeRewrite, Rewrite, Style
from onnxq.graph.reading.ops import OPS, Kind, activation_positions

Inputs = list[ir.Value | None]


def emit_qoperator(model: ir.Model, rewrite: Rewrite, style: Style = USUAL) -> None:
    """Rewrite the model in place; arguments as for `onnxq.graph.emit.qdq.emit_qdq`."""
    builder = common.Builder(model, own_grids=rewrite.sources if style.own_grids else None)
    nodes = common.folded_first(model.graph, rewrite)
    emitter = _QOperatorEmitter(builder, rewrite, nodes)
    for value in common.inputs_of(model.graph):
        emitter.remember(value)
    for node in list(nodes.values()):
        if node.graph is None:
            continue  # its work is done by the node before it
        change = common.change_of(rewrite, node)
        if change is None:
            for output in node.outputs:
                emitter.remember(output)
        else:
            emitter.convert(node, change)
    common.drop_idle(model.graph, emitter.integers)
    shield_bodies(builder)
    hold_float(builder, rewrite)
    hold_pools(builder)
    join_gelus(builder)
    hold_layout(builder)
    settle(builder.graph, builder.names)
    common.store_weights(builder, rewrite, nodes)


class _QOperatorEmitter:
    def __init__(self, builder: common.Builder, rewrite: Rewrite, nodes: dict[str, ir.Node]) -> None:
        self._builder = builder
        self._nodes = nodes
        self._rewrite = rewrite
        self.integers: dict[int, ir.Value] = {}
        self._params: dict[int, QParams] = {}

    def remember(self, value: ir.Value) -> None:
        """Note the parameters of a float value while it still has its name."""
        params = self._rewrite.values.get(value.name or "")
        if params is not None:
            self._params[id(value)] = params

    def convert(self, node: ir.Node, change: NodeRewrite) -> None:
        """Replace one node by its integer operator."""
        row = OPS[node.op_type]
        if not row.takes_integers:
            for output in node.outputs:
                self.remember(output)
            return
        if row.kind is Kind.PASSING:
            source = node.inputs[0]
            assert source is not None
            params = self._rewrite.values[node.outputs[0].name or ""]
            to_integers(self._builder, node, self._integer(source), params, self.integers)
            for output in node.outputs:
                user = next((u for u in output.consumers() if u.op_type == "DequantizeLinear"), None)
                if user is not None:
                    self._params[id(user.outputs[0])] = params
            return
        if row.kind is Kind.READING:
            source = node.inputs[0]
            assert source is not None
            edit.set_input(node, 0, self._integer(source))
            return
        self._replace(node, change)

    def _replace(self, node: ir.Node, change: NodeRewrite) -> None:
        builder, row, graph = self._builder, OPS[node.op_type], node.graph
        assert graph is not None
        output = node.outputs[0]
        name = output.name or ""
        if change.float_output and node.op_type == "Conv":
            self.remember(as_product(builder, node, self._operand(node, change, 0), change).outputs[0])
            return
        triples = [self._operand(node, change, i) for i in self._positions(node, change)]
        bias = self._bias(node, change)
        domain, op_type = row.qoperator or ("", node.op_type)
        old_inputs = list(node.inputs)
        if change.float_output and node.op_type == "MatMul":
            adds = self._nodes[change.adds] if change.adds is not None else None
            self.remember(common.to_float(builder, node, triples, adds).outputs[0])
            return
        if change.float_output:
            inputs = _gemm_to_float(triples, bias)
            new = builder.node(
                op_type, inputs, name, name=node.name, domain=domain, attributes=_attributes(node), shape=output.shape,
                dtype=ir.DataType.FLOAT,
            )  # fmt: skip
            graph.insert_after(node, [new])
            edit.take_over(output, new.outputs[0])
        else:
            params = self._rewrite.values[name]
            result: Inputs = [builder.scale(name, params), builder.zero_point(name, params)]
            inputs = _FORMS.get(node.op_type, _plain)(triples, bias, result, node)
            integer_name = builder.names.value(f"{name}_quantized")
            new = builder.node(
                op_type, inputs, integer_name, name=node.name, domain=domain, attributes=_attributes(node),
                shape=output.shape, dtype=common.IR_TYPES[params.spec.dtype],
            )  # fmt: skip
            grid, axis = self._rewrite.grid_behind(name)
            clip = builder.limit(new.outputs[0], params, self._rewrite.fixed.get(name))
            integers = new.outputs[0] if clip is None else clip.outputs[0]
            back = builder.dequantize(integers, grid, builder.names.value(f"{name}_float"), name, axis)
            graph.insert_after(node, [new, back] if clip is None else [new, clip, back])
            edit.take_over(output, back.outputs[0])
            self.integers[id(back.outputs[0])] = integers
            self._params[id(back.outputs[0])] = params
        graph.remove(node, safe=True)
        common.drop_inputs(old_inputs)

    def _positions(self, node: ir.Node, change: NodeRewrite) -> list[int]:
        return sorted({*activation_positions(node, OPS[node.op_type]), *change.constants})

    def _operand(self, node: ir.Node, change: NodeRewrite, position: int) -> Inputs:
        """[integers, scale, zero point] of one operand."""
        builder, value = self._builder, node.inputs[position]
        assert value is not None
        base = value.name or ""
        tensor = change.constants.get(position)
        if tensor is not None:
            params = tensor.params
            return [builder.integers(base, tensor), builder.scale(base, params), builder.zero_point(base, params)]
        integer = self._integer(value)
        params = self._params[id(value)]
        return [integer, builder.scale(base, params), builder.zero_point(base, params)]

    def _integer(self, value: ir.Value) -> ir.Value:
        """The integer form of a value; a float one is quantized once for all."""
        if id(value) not in self.integers:
            builder, name = self._builder, value.name or ""
            q = builder.quantize(value, self._params[id(value)], builder.names.value(f"{name}_quantized"))
            clip = builder.limit(q.outputs[0], self._params[id(value)], self._rewrite.fixed.get(name))
            builder.place_after(value, [q] if clip is None else [q, clip])
            self.integers[id(value)] = (clip or q).outputs[0]
        return self.integers[id(value)]

    def _bias(self, node: ir.Node, change: NodeRewrite) -> ir.Value | None:
        position = OPS[node.op_type].bias
        if change.bias is None or position is None:
            return None
        original = walk.input_at(node, position)
        return self._builder.integers(original.name if original and original.name else f"{node.name}_bias", change.bias)


Form = Callable[[list[Inputs], ir.Value | None, Inputs, ir.Node], Inputs]


def _plain(operands: list[Inputs], bias: ir.Value | None, result: Inputs, node: ir.Node) -> Inputs:
    """x, x_scale, x_zero_point[, second operand …], y_scale, y_zero_point."""
    del bias, node
    return [value for operand in operands for value in operand] + result


def _with_bias(operands: list[Inputs], bias: ir.Value | None, result: Inputs, node: ir.Node) -> Inputs:
    """QLinearConv: operands, result, bias."""
    inputs = _plain(operands, None, result, node)
    return [*inputs, bias] if bias is not None else inputs


def _gemm(operands: list[Inputs], bias: ir.Value | None, result: Inputs, node: ir.Node) -> Inputs:
    """QGemm: operands, bias (may be missing), result."""
    del node
    return [value for operand in operands for value in operand] + [bias] + result


def _concat(operands: list[Inputs], bias: ir.Value | None, result: Inputs, node: ir.Node) -> Inputs:
    """QLinearConcat: result first."""
    del bias, node
    return result + [value for operand in operands for value in operand]


def _where(operands: list[Inputs], bias: ir.Value | None, result: Inputs, node: ir.Node) -> Inputs:
    """QLinearWhere: the condition first."""
    return [node.inputs[0], *_plain(operands, bias, result, node)]


_FORMS: dict[str, Form] = {"Conv": _with_bias, "Gemm": _gemm, "Concat": _concat, "Where": _where}


def _gemm_to_float(operands: list[Inputs], bias: ir.Value | None) -> Inputs:
    """QGemm without the parameters of its result gives floats."""
    return [value for operand in operands for value in operand] + ([bias] if bias is not None else [])


def _attributes(node: ir.Node) -> list[ir.Attr]:
    """The attributes that the integer operator takes over."""
    kept = [a for name, a in node.attributes.items() if (node.op_type, name) != ("Gemm", "beta")]
    if node.op_type == "Softmax":
        version = node.version or (node.graph.opset_imports.get("", 13) if node.graph is not None else 13)
        kept = [a for a in kept if a.name != "opset"] + [ir.AttrInt64("opset", version)]
        if not any(a.name == "axis" for a in kept):
            kept.append(ir.AttrInt64("axis", -1 if version >= 13 else 1))
    return kept
