"""QOperator models in QDQ form: each integer operator as the float one between DequantizeLinear and QuantizeLinear.

Models are only rewritten to be looked at; numbers are those of the integer kernels up to their own rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.reading.ops import MICROSOFT, Kind, row_of

_OPERANDS = {
    "QLinearAdd": 2, "QLinearMul": 2, "QLinearAveragePool": 1, "QLinearGlobalAveragePool": 1, "QLinearLeakyRelu": 1,
    "QLinearSigmoid": 1, "QLinearSoftmax": 1, "QLinearReduceMean": 1,
}  # fmt: skip
"""Operators whose inputs are (x, scale, zero point) for each operand, then (scale, zero point) of the result."""

DROPPED = {"channels_last", "opset"}
"""Attributes that only the integer operator has."""

Triple = tuple[ir.Value | None, ir.Value | None, ir.Value | None]


def to_qdq(model: ir.Model) -> int:
    """Rewrite every integer operator of the main graph in place.

    Returns:
        How many were rewritten. Operators on images whose channels lie last stay as they are.
    """
    done = 0
    names = walk.Names(model)
    grids: dict[int, tuple[ir.Value | None, ir.Value | None]] = {}
    for node in list(model.graph):
        if walk.attr_int(node, "channels_last", 0):
            continue
        if node.op_type == "QuantizeLinear":
            grids[id(node.outputs[0])] = (node.inputs[1], walk.input_at(node, 2))
        row = row_of(node)
        if row is not None and row.kind is Kind.PASSING and id(node.inputs[0]) in grids:
            _around(model.graph, node, grids, names)
            done += 1
            continue
        form = float_form(node)
        if form is None:
            continue
        end = _replace(model.graph, node, form, names)
        if form.result is not None:
            grids[id(end)] = form.result[1:]
        done += 1
    return done


class FloatOperator:
    """A float operator: its type, its operands, and the grid of its result (None: the result is float)."""

    def __init__(
        self, op_type: str, operands: list[Triple | ir.Value | None], result: Triple | None, axes: dict[int, int]
    ) -> None:
        self.op_type, self.operands, self.result, self.axes = op_type, operands, result, axes


def float_form(node: ir.Node, *, with_bias: bool = False) -> FloatOperator | None:
    """What an integer operator is in float; None for other operators.

    Args:
        node: any node.
        with_bias: also of a product that adds a bias, which the form leaves out.
    """
    i = list(node.inputs) + [None] * 10
    match node.op_type:
        case "QLinearConv":
            bias: Triple | None = (i[8], None, None) if i[8] is not None else None
            return FloatOperator("Conv", [(i[0], i[1], i[2]), (i[3], i[4], i[5]), bias], (None, i[6], i[7]), {1: 0})
        case "QLinearMatMul":
            rank = walk.rank(i[3]) or 2
            return FloatOperator("MatMul", [(i[0], i[1], i[2]), (i[3], i[4], i[5])], (None, i[6], i[7]), {1: rank - 1})
        case "MatMulIntegerToFloat" if node.domain == MICROSOFT and (with_bias or i[6] is None):
            return FloatOperator(
                "MatMul", [(i[0], i[2], i[4]), (i[1], i[3], i[5])], None, {1: (walk.rank(i[1]) or 2) - 1}
            )
        case "QGemm":
            axis = 0 if walk.outputs_first(node) else 1
            result: Triple | None = (None, i[7], i[8]) if i[7] is not None else None
            bias = (i[6], None, None) if i[6] is not None else None
            return FloatOperator("Gemm", [(i[0], i[1], i[2]), (i[3], i[4], i[5]), bias], result, {1: axis})
        case "QLinearConcat":
            operands: list[Triple | ir.Value | None] = [
                (node.inputs[k], node.inputs[k + 1], node.inputs[k + 2]) for k in range(2, len(node.inputs) - 2, 3)
            ]
            return FloatOperator("Concat", operands, (None, i[0], i[1]), {})
        case "QLinearWhere":
            return FloatOperator("Where", [i[0], (i[1], i[2], i[3]), (i[4], i[5], i[6])], (None, i[7], i[8]), {})
        case name if name in _OPERANDS:
            count = _OPERANDS[name]
            each: list[Triple | ir.Value | None] = [(i[3 * k], i[3 * k + 1], i[3 * k + 2]) for k in range(count)]
            return FloatOperator(name.removeprefix("QLinear"), each, (None, i[3 * count], i[3 * count + 1]), {})
    return None


def _around(
    graph: ir.Graph,
    node: ir.Node,
    grids: dict[int, tuple[ir.Value | None, ir.Value | None]],
    names: walk.Names,
) -> None:
    """Let a node that moves integers move floats: DequantizeLinear in front of it, QuantizeLinear behind."""
    source = node.inputs[0]
    assert source is not None
    scale, zero = grids[id(source)]
    parameters = [scale] if zero is None else [scale, zero]
    back = _node("DequantizeLinear", [source, *parameters], names.value(f"{source.name}_dequantized"), names)
    graph.insert_before(node, [back])
    node.replace_input_with(0, back.outputs[0])
    if node.op_type == "Pad" and walk.input_at(node, 2) is not None:
        node.replace_input_with(2, None)  # it pads with the integer that stands for zero
    for output in node.outputs:
        if not output.uses() and not output.is_graph_output():
            continue
        name = output.name or ""
        output.type = ir.TensorType(ir.DataType.FLOAT)
        quantize = _node("QuantizeLinear", [output, *parameters], names.value(f"{name}_integers"), names)
        graph.insert_after(node, [quantize])
        end = quantize.outputs[0]
        output.replace_all_uses_with(end, replace_graph_outputs=True)
        quantize.replace_input_with(0, output)
        grids[id(end)] = (scale, zero)


def _replace(graph: ir.Graph, node: ir.Node, form: FloatOperator, names: walk.Names) -> ir.Value:
    new: list[ir.Node] = []
    inputs: list[ir.Value | None] = []
    scales: list[ir.Value | None] = []
    for position, operand in enumerate(form.operands):
        if not isinstance(operand, tuple):
            inputs.append(operand)
            continue
        value, scale, zero = operand
        if scale is None and value is not None:  # an int32 bias, at the product of the other two scales
            product = _node("Mul", [scales[0], scales[1]], names.value(f"{value.name}_scale"), names)
            flat = _node(
                "Reshape", [product.outputs[0], _minus_one(graph, names)], names.value(f"{value.name}_scales"), names
            )
            cast = _node("Cast", [value], names.value(f"{value.name}_cast"), names, to=int(ir.DataType.FLOAT))
            dequantized = _node(
                "Mul", [cast.outputs[0], flat.outputs[0]], names.value(f"{value.name}_dequantized"), names
            )
            new += [product, flat, cast, dequantized]
            inputs.append(dequantized.outputs[0])
            continue
        scales.append(scale)
        axis = form.axes.get(position) if walk.rank(scale) else None
        made = _node(
            "DequantizeLinear",
            [value, scale, zero] if zero is not None else [value, scale],
            names.value(f"{value.name if value is not None else 'x'}_dequantized"),
            names,
            **({} if axis is None else {"axis": axis}),
        )
        new.append(made)
        inputs.append(made.outputs[0])
    output = node.outputs[0]
    kept = [attribute for name, attribute in node.attributes.items() if name not in DROPPED]
    float_name = output.name if form.result is None else names.value(f"{output.name}_float")
    result = ir.Value(name=None if form.result is None else float_name)
    core = ir.Node("", form.op_type, inputs, kept, outputs=[result], name=node.name)
    new.append(core)
    end = result
    if form.result is not None:
        _, scale, zero = form.result
        quantize = ir.Node("", "QuantizeLinear", [result, scale, zero], outputs=[ir.Value()], name=names.node("q"))
        new.append(quantize)
        end = quantize.outputs[0]
    graph.insert_after(node, new)
    name = output.name
    output.replace_all_uses_with(end, replace_graph_outputs=True)
    output.name = None
    graph.remove(node, safe=True)
    end.name = name
    if form.result is not None:
        result.name = float_name
    return end


def _node(op_type: str, inputs: list[ir.Value | None], output: str, names: walk.Names, **attributes: int) -> ir.Node:
    return ir.Node(
        "",
        op_type,
        inputs,
        [ir.AttrInt64(key, value) for key, value in attributes.items()],
        outputs=[ir.Value(name=output)],
        name=names.node(f"{output}_{op_type}"),
    )


def _minus_one(graph: ir.Graph, names: walk.Names) -> ir.Value:
    return edit.add_initializer(graph, names.value("flat_shape"), np.array([-1], np.int64))
