"""Activations quantized at inference: integer products in the patterns that ONNX Runtime joins to one kernel.

A product becomes ``MatMulInteger → Cast → Mul(scale of x · scale of w)``, which the runtime makes a
MatMulIntegerToFloat, or a DynamicQuantizeMatMul where it is the only reader of its DynamicQuantizeLinear. All readers of
a value share one quantized form of it.

References:
    Yao et al., ZeroQuant, arXiv:2206.01861: scales by row of activations ("token-wise") and by group of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerBlock, QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit import common, operators
from onnxq.graph.emit.rewrite import ATTENTION, GATHER, LSTM, TOKEN, DynamicRewrite, Rewrite

STEPS = 127
"""Steps of a row's grid on either side of its zero point."""

ZERO = 128
"""Zero point of a row's uint8 grid."""

SMALLEST = 1e-30
"""Largest magnitude that a row is taken to have at least: a row of zeros has a scale, and gives zeros."""


def emit_dynamic(model: ir.Model, rewrite: Rewrite) -> None:
    """Rewrite the nodes of ``rewrite.dynamic`` in place."""
    if not rewrite.dynamic:
        return
    nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
    tables = [change.constants[0] for change in rewrite.dynamic.values() if change.form == GATHER]
    emitter = _Emitter(common.Builder(model), tables)
    for name, change in rewrite.dynamic.items():
        emitter.convert(nodes[name], change)


@dataclass(frozen=True)
class _Quantized:
    """A value as integers, with its scale (a scalar, or one entry a row) and its zero point."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class _Emitter:
    def __init__(self, builder: common.Builder, tables: list[QTensor]) -> None:
        self._builder = builder
        self._tables = tables
        self._tensors: dict[ir.Value, _Quantized] = {}
        self._rows: dict[ir.Value, _Quantized] = {}
        self._parts: dict[tuple[ir.Value, int], list[ir.Value]] = {}
        self._turned: dict[int, ir.Value] = {}
        self._transposes: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node, change: DynamicRewrite) -> None:
        """Replace one node."""
        inputs = list(node.inputs)
        match change.form:
            case "lstm":
                operators.lstm(self._builder, node, change)
            case "attention":
                source = node.inputs[0]
                assert source is not None
                x = self._by_tensor(source)
                operators.attention(self._builder, node, change, x.integers, x.scale, x.zero_point)
            case "gather":
                operators.gather(self._builder, node, change.constants[0])
            case _:
                self._product(node, change)
        edit.remove_node(node)
        common.drop_inputs(inputs)

    def _product(self, node: ir.Node, change: DynamicRewrite) -> None:
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        by_row = change.form == TOKEN
        if node.op_type == "Gemm" and walk.attr_int(node, "transA"):
            source = self._transposed(source)
        x = self._by_row(source) if by_row else self._by_tensor(source)
        tensor = change.constants[1]
        if isinstance(tensor.params.spec.granularity, PerBlock) and tensor.values.ndim == 2:
            result = self._blocks(node, x, tensor)
        else:
            apart = by_row and self._meets_a_bias(node)
            result = self._whole(node, x, tensor, apart)
        if node.op_type == "Gemm":
            result = self._add_bias(node, result)
        elif not by_row:
            self._keep_rank(node)
        edit.take_over(output, result)

    # The product.

    def _whole(self, node: ir.Node, x: _Quantized, tensor: QTensor, apart: bool) -> ir.Value:
        """``(integers of x · integers of w) · (scale of x · scale of w)``.

        Args:
            node: the product in float.
            x: its input.
            tensor: its weight.
            apart: bring the rows back to their scales by a Mul of its own. ONNX Runtime (seen in 1.32) joins an Add
                behind the product to its kernel also where scales are by row, and then scales the bias with the rows.
        """
        values, scale = tensor.values, tensor.params.scale
        if scale.size == 1 or scale.ndim == 2:  # of several matrices the kernel takes scales of the weight's rank alone
            scale = common.shaped(scale)
        if node.op_type == "Gemm":
            if walk.attr_int(node, "transB"):
                values = np.ascontiguousarray(values.T)
            scale = scale * np.float32(walk.attr_float(node, "alpha", 1.0))
        base = self._base(node)
        integers = self._weight(base, values, tensor.params.spec.dtype)
        scales = self._builder.constant(f"{base}_scale", scale)
        if not apart:
            return self._scaled(node, x, integers, x.scale, scales, base)
        largest = self._node(node, "ReduceMax", [x.scale], f"{base}_largest_scale", [ir.AttrInt64("keepdims", 0)])
        share = self._node(node, "Div", [x.scale, largest], f"{base}_row_share")
        return self._node(node, "Mul", [self._scaled(node, x, integers, largest, scales, base), share], f"{base}_rows")

    def _scaled(
        self, node: ir.Node, x: _Quantized, weight: ir.Value, scale: ir.Value, scales: ir.Value, base: str, part: str = ""
    ) -> ir.Value:
        """The pattern itself; the first product of a node takes its name."""
        builder, graph = self._builder, node.graph
        assert graph is not None
        product = builder.node(
            "MatMulInteger",
            [x.integers, weight, x.zero_point],
            builder.names.value(f"{base}{part}_integers"),
            name=None if part else node.name,
            dtype=ir.DataType.INT32,
        )
        graph.insert_before(node, [product])
        real = self._node(node, "Cast", [product.outputs[0]], f"{base}{part}_real", [_TO_FLOAT])
        factor = self._node(node, "Mul", [scale, scales], f"{base}{part}_factor")
        return self._node(node, "Mul", [real, factor], f"{base}{part}_product")

    def _blocks(self, node: ir.Node, x: _Quantized, tensor: QTensor) -> ir.Value:
        """The sum of one product for each block of rows of the weight."""
        granularity = tensor.params.spec.granularity
        assert isinstance(granularity, PerBlock)
        values, scale = tensor.values, tensor.params.scale
        base, alpha = self._base(node), np.float32(walk.attr_float(node, "alpha", 1.0))
        sizes = [min(granularity.size, values.shape[0] - i) for i in range(0, values.shape[0], granularity.size)]
        terms: list[ir.Value | None] = []
        start = 0
        for index, (size, piece) in enumerate(zip(sizes, self._split(x.integers, sizes), strict=True)):
            part = f"_{index}" if index else ""
            weight = np.ascontiguousarray(values[start : start + size])
            integers = self._weight(f"{base}{part}", weight, tensor.params.spec.dtype)
            scales = self._builder.constant(f"{base}{part}_scale", scale[index] * alpha)
            piece_of_x = _Quantized(piece, x.scale, x.zero_point)
            terms.append(self._scaled(node, piece_of_x, integers, x.scale, scales, base, part))
            start += size
        return self._node(node, "Sum", terms, f"{base}_sum")

    def _split(self, integers: ir.Value, sizes: list[int]) -> list[ir.Value]:
        key = (integers, sizes[0])
        if key not in self._parts:
            builder, name = self._builder, integers.name or ""
            attributes: list[ir.Attr] = [ir.AttrInt64("axis", -1)]
            inputs: list[ir.Value | None] = [integers]
            if walk.opset(builder.graph) < 13:
                attributes.append(ir.AttrInt64s("split", sizes))
            else:
                inputs.append(builder.constant(f"{name}_lengths", np.array(sizes, np.int64)))
            node = ir.Node(
                "", "Split", inputs, attributes, num_outputs=len(sizes),
                name=builder.names.node(f"{name}_Split"),
            )  # fmt: skip
            for output in node.outputs:
                output.name = builder.names.value(f"{name}_part")
                output.type = ir.TensorType(ir.DataType.UINT8)
            producer = integers.producer()
            assert producer is not None and producer.graph is not None
            producer.graph.insert_after(producer, [node])
            self._parts[key] = list(node.outputs)
        return self._parts[key]

    def _weight(self, base: str, values: Array, dtype: QType) -> ir.Value:
        """The integers of a weight; those of a tied table are turned instead of stored a second time."""
        for tensor in self._tables:
            table = tensor.values
            if values.ndim == 2 and table.shape == values.shape[::-1] and np.array_equal(table.T, values):
                return self._turn(base, tensor)
        return self._builder.constant(f"{base}_quantized", values, dtype)

    def _turn(self, base: str, table: QTensor) -> ir.Value:
        if id(table) not in self._turned:
            builder = self._builder
            integers = builder.integers(f"{base}_table", table)
            turn = builder.node(
                "Transpose", [integers], builder.names.value(f"{base}_quantized"),
                attributes=[ir.AttrInt64s("perm", (1, 0))], dtype=ir.DataType.INT8,
            )  # fmt: skip
            builder.place_after(integers, [turn])
            self._turned[id(table)] = turn.outputs[0]
        return self._turned[id(table)]

    # What stands behind it.

    def _add_bias(self, node: ir.Node, product: ir.Value) -> ir.Value:
        bias = walk.input_at(node, 2)
        beta = np.float32(walk.attr_float(node, "beta", 1.0))
        if bias is None or beta == 0:
            return product
        base = self._base(node)
        array = walk.const_array(bias)
        if beta != 1 and array is not None:
            bias = self._builder.constant(f"{base}_bias", (array * beta).astype(array.dtype))
        elif beta != 1:
            factor = self._builder.constant(f"{base}_beta", np.asarray(beta))
            bias = self._node(node, "Mul", [bias, factor], f"{base}_bias")
        return self._node(node, "Add", [product, bias], f"{base}_sum")

    def _meets_a_bias(self, node: ir.Node) -> bool:
        if node.op_type == "Gemm":
            return walk.input_at(node, 2) is not None
        return self._added(node) is not None

    def _added(self, node: ir.Node) -> tuple[ir.Node, Array] | None:
        """The only reader of a product where it adds a constant."""
        user = walk.only_use(node.outputs[0])
        if user is None or user.op_type != "Add" or user.domain not in ("", "ai.onnx"):
            return None
        arrays = [array for array in map(walk.const_array, user.inputs) if array is not None]
        return (user, arrays[0]) if arrays else None

    def _keep_rank(self, node: ir.Node) -> None:
        """Write Sum for an Add whose constant has more dimensions than the product may have.

        ONNX Runtime joins it to the product's kernel as a bias, and the result loses the additional dimensions.
        """
        found = self._added(node)
        rank = walk.rank(node.outputs[0])
        if found is not None and found[1].ndim > 1 and (rank is None or found[1].ndim > rank):
            found[0].op_type = "Sum"

    # The input.

    def _by_tensor(self, value: ir.Value) -> _Quantized:
        if value not in self._tensors:
            builder, name = self._builder, value.name or ""
            node = ir.Node(
                "", "DynamicQuantizeLinear", [value], num_outputs=3,
                name=builder.names.node(f"{name}_DynamicQuantizeLinear"),
            )  # fmt: skip
            types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            for output, what, dtype in zip(node.outputs, ("quantized", "scale", "zero_point"), types, strict=True):
                output.name, output.type = builder.names.value(f"{name}_{what}"), ir.TensorType(dtype)
            node.outputs[0].shape = value.shape
            _place_after(value, [node])
            self._tensors[value] = _Quantized(*node.outputs)
        return self._tensors[value]

    def _by_row(self, value: ir.Value) -> _Quantized:
        """A symmetric grid for each row: ``scale = max |x| / 127``, zero at 128."""
        if value not in self._rows:
            builder, name = self._builder, value.name or ""
            made: list[ir.Node] = []

            def add(op_type: str, inputs: list[ir.Value | None], what: str, attributes: list[ir.Attr]) -> ir.Value:
                node = builder.node(
                    op_type, inputs, builder.names.value(f"{name}_{what}"), attributes=attributes,
                    dtype=ir.DataType.UINT8 if op_type == "QuantizeLinear" else ir.DataType.FLOAT,
                )  # fmt: skip
                made.append(node)
                return node.outputs[0]

            attributes: list[ir.Attr] = [ir.AttrInt64("keepdims", 1)]
            axes: list[ir.Value | None] = []
            if walk.opset(builder.graph) < 18:
                attributes.append(ir.AttrInt64s("axes", (-1,)))
            else:
                axes.append(builder.constant("last_axis", np.array([-1], np.int64)))
            magnitude = add("Abs", [value], "magnitude", [])
            largest = add("ReduceMax", [magnitude, *axes], "row_magnitude", attributes)
            guarded = add("Max", [largest, self._scalar("smallest_magnitude", SMALLEST)], "row_range", [])
            scale = add("Div", [guarded, self._scalar("row_steps", STEPS)], "row_scale", [])
            steps = add("Div", [value, scale], "row_steps", [])
            zero_point = builder.constant("row_zero_point", np.asarray(np.uint8(ZERO)))
            integers = add("QuantizeLinear", [steps, self._scalar("one", 1.0), zero_point], "quantized", [])
            integers.shape = value.shape
            _place_after(value, made)
            self._rows[value] = _Quantized(integers, scale, zero_point)
        return self._rows[value]

    def _transposed(self, value: ir.Value) -> ir.Value:
        """The value turned, as a float: ONNX Runtime would take integers turned behind DynamicQuantizeLinear for it."""
        if value not in self._transposes:
            builder = self._builder
            node = builder.node(
                "Transpose", [value], builder.names.value(f"{value.name}_transposed"),
                attributes=[ir.AttrInt64s("perm", (1, 0))], dtype=ir.DataType.FLOAT,
            )  # fmt: skip
            _place_after(value, [node])
            self._transposes[value] = node.outputs[0]
        return self._transposes[value]

    # Small things.

    def _scalar(self, name: str, number: float) -> ir.Value:
        return self._builder.constant(name, np.asarray(np.float32(number)))

    def _base(self, node: ir.Node) -> str:
        weight = walk.input_at(node, 1)
        return (weight.name if weight is not None else None) or node.name or "weight"

    def _node(
        self, before: ir.Node, op_type: str, inputs: list[ir.Value | None], output: str, attributes: list[ir.Attr] | None = None
    ) -> ir.Value:
        graph = before.graph
        assert graph is not None
        node = self._builder.node(
            op_type, inputs, self._builder.names.value(output), attributes=attributes, dtype=ir.DataType.FLOAT
        )
        graph.insert_before(before, [node])
        return node.outputs[0]


_TO_FLOAT = ir.AttrInt64("to", int(ir.DataType.FLOAT))


def _place_after(value: ir.Value, nodes: list[ir.Node]) -> None:
    """Insert nodes where the value is made, or first in the graph that gets it as an input."""
    producer = value.producer()
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, nodes)
        return
    graph = value.graph
    assert graph is not None
    first = next(iter(graph))
    graph.insert_before(first, nodes)
