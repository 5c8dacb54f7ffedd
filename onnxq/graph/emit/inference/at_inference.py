"""Activations quantized at inference: integer products in the patterns that ONNX Runtime joins to one kernel.

A product becomes ``MatMulInteger → Cast → Mul(scale of x · scale of w)``, which the runtime makes a
MatMulIntegerToFloat, or a DynamicQuantizeMatMul where it is the only reader of its DynamicQuantizeLinear. All readers
of a value share one quantized form of it.

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
from onnxq.graph.emit import common
from onnxq.graph.emit.inference import self_quantizing
from onnxq.graph.emit.inference.channel_split import Splits
from onnxq.graph.emit.inference.row_scales import Row
from onnxq.graph.emit.rewrite import GATHER, SPLIT, TOKEN, DynamicRewrite, Rewrite
from onnxq.graph.reading.signs import Sign, sign_of


def emit_dynamic(model: ir.Model, rewrite: Rewrite) -> None:
    """Rewrite the nodes of ``rewrite.dynamic`` in place."""
    if not rewrite.dynamic:
        return
    nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
    tables = [change.constants[0] for change in rewrite.dynamic.values() if change.form == GATHER]
    emitter = _DynamicEmitter(common.Builder(model), tables)
    for name, change in rewrite.dynamic.items():
        emitter.convert(nodes[name], change)


@dataclass(frozen=True)
class _Quantized:
    """A value as integers, with its scale (a scalar, or one entry a row) and its zero point."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class _DynamicEmitter:
    def __init__(self, builder: common.Builder, tables: list[QTensor]) -> None:
        self._builder = builder
        self._tables = tables
        self._tensors: dict[ir.Value, _Quantized] = {}
        self._splits = Splits(builder)
        self._rows: dict[ir.Value, _Quantized] = {}
        self._parts: dict[tuple[ir.Value, int], list[ir.Value]] = {}
        self._turned: dict[int, ir.Value] = {}
        self._transposes: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node, change: DynamicRewrite) -> None:
        """Replace one node."""
        inputs = list(node.inputs)
        match change.form:
            case "lstm":
                self_quantizing.lstm(self._builder, node, change)
            case "attention":
                source = node.inputs[0]
                assert source is not None
                x = self._by_tensor(source)
                self_quantizing.attention(self._builder, node, change, x.integers, x.scale, x.zero_point)
            case "gather":
                self_quantizing.gather(self._builder, node, change.constants[0])
            case _:
                self._product(node, change)
        edit.remove_node(node)
        common.drop_inputs(inputs)

    def _product(self, node: ir.Node, change: DynamicRewrite) -> None:
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        by_row = change.form in (TOKEN, SPLIT)
        if node.op_type == "Gemm" and walk.attr_int(node, "transA"):
            source = self._transposed(source)
        tensor = change.constants[1]
        rest, sign = source, sign_of(source)
        if change.channels is not None:
            width = tensor.values.shape[1 if walk.outputs_first(node) else 0]
            rest = self._splits.rest(source, change.channels, width)
        x = self._by_row(rest, sign) if by_row else self._by_tensor(rest)
        if isinstance(tensor.params.spec.granularity, PerBlock) and tensor.values.ndim == 2:
            result = self._blocks(node, x, tensor)
        else:
            result = self._whole(node, x, tensor)
        if change.channels is not None and change.rows is not None:
            result = self._with_outliers(node, source, result, change.channels, change.rows)
        if node.op_type == "Gemm":
            result = self._add_bias(node, result, "Sum" if by_row else "Add")
        else:
            self._keep_apart(node, by_row)
        edit.take_over(output, result)

    # The product.

    def _whole(self, node: ir.Node, x: _Quantized, tensor: QTensor) -> ir.Value:
        """``(integers of x · integers of w) · (scale of x · scale of w)``."""
        values, scale = tensor.values, tensor.params.scale
        if scale.size == 1 or scale.ndim == 2:  # of several matrices the kernel takes scales of the weight's rank alone
            scale = common.shaped(scale)
        if node.op_type == "Gemm":
            if walk.outputs_first(node):
                values = np.ascontiguousarray(values.T)
            scale = scale * np.float32(walk.attr_float(node, "alpha", 1.0))
        base = self._base(node)
        integers = self._weight(base, values, tensor.params.spec.dtype)
        scales = self._builder.constant(f"{base}_scale", scale)
        return self._scaled(node, x, integers, x.scale, scales, base)

    def _scaled(
        self,
        node: ir.Node,
        x: _Quantized,
        weight: ir.Value,
        scale: ir.Value,
        scales: ir.Value,
        base: str,
        part: str = "",
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

    def _with_outliers(
        self, node: ir.Node, source: ir.Value, product: ir.Value, channels: Array, rows: Array
    ) -> ir.Value:
        """The product of the other channels plus that of the outliers, in float."""
        base = self._base(node)
        weight = self._builder.constant(f"{base}_outliers", rows * np.float32(walk.attr_float(node, "alpha", 1.0)))
        outliers = self._splits.outliers(source, channels)
        outer = self._node(node, "MatMul", [outliers, weight], f"{base}_outer")
        return self._node(node, "Sum", [product, outer], f"{base}_both")

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

    def _add_bias(self, node: ir.Node, product: ir.Value, op_type: str) -> ir.Value:
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
        return self._node(node, op_type, [product, bias], f"{base}_sum")

    def _added(self, node: ir.Node) -> tuple[ir.Node, Array] | None:
        """The only reader of a product where it adds a constant."""
        user = walk.only_use(node.outputs[0])
        if user is None or user.op_type != "Add" or user.domain not in ("", "ai.onnx"):
            return None
        arrays = [array for array in map(walk.const_array, user.inputs) if array is not None]
        return (user, arrays[0]) if arrays else None

    def _keep_apart(self, node: ir.Node, by_row: bool) -> None:
        """Write Sum for an Add that ONNX Runtime must not join to the product's kernel as a bias.

        It does so (seen in 1.32) also where scales are by row, and then scales the bias with the rows; and where the
        constant has more dimensions than the product, which the result then lacks. Sum gives the same numbers.
        """
        found = self._added(node)
        if found is None:
            return
        rank = walk.rank(node.outputs[0])
        if by_row or (found[1].ndim > 1 and (rank is None or found[1].ndim > rank)):
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

    def _by_row(self, value: ir.Value, sign: Sign) -> _Quantized:
        """A grid for each row, zero at 128: ``scale = max |x| / 127``.

        Where the graph says that rows are hardly ever negative the zero point is near the lower end, so that no half of
        the grid lies idle: ``scale = max(max x / (255 − zero), −min x / zero)``. It is one for the whole tensor in any
        case, because the runtime's kernels take no other.
        """
        if value not in self._rows:
            row = Row(self._builder, value, sign)
            _place_after(value, row.nodes)
            self._rows[value] = _Quantized(row.integers, row.scale, row.zero_point)
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

    def _base(self, node: ir.Node) -> str:
        weight = walk.input_at(node, 1)
        return (weight.name if weight is not None else None) or node.name or "weight"

    def _node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        output: str,
        attributes: list[ir.Attr] | None = None,
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
