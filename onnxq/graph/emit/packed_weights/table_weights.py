"""Weights as indices into a table: looked up by MatMulBnb4, or by a Gather that the runtime computes once, at load."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.codebook import NF4, CodebookTensor
from onnxq.core.dtypes import Array, QType
from onnxq.core.packing import pack
from onnxq.core.spec import PerAxis, PerBlock
from onnxq.graph import edit, walk
from onnxq.graph.emit.common import IR_TYPES, drop_inputs
from onnxq.graph.emit.packed_weights.replace import Replacer, alpha_of
from onnxq.graph.emit.rewrite import WeightRewrite


def emit_bnb4(replacer: Replacer, node: ir.Node, change: WeightRewrite) -> None:
    """MatMulBnb4 in the place of a MatMul or Gemm."""
    tensor, original = change.codebooks[1], node.inputs[1]
    assert original is not None and isinstance(tensor.granularity, PerBlock)
    old, alpha = list(node.inputs), alpha_of(node)
    sizes = walk.dims(original)
    assert sizes is not None
    turned = walk.outputs_first(node)
    outputs, inputs = (int(size or 0) for size in (sizes if turned else sizes[::-1]))
    weight = replacer.once(tensor, "packed", original, lambda: pack(tensor.indices.reshape(-1), 4, high_first=True))
    scale = replacer.once(
        tensor, "absmax", original, lambda: (tensor.scale * np.float32(alpha)).reshape(-1), str(alpha)
    )
    bias, rest = replacer.bias(node, outputs)
    attributes = [
        ir.AttrInt64("K", inputs),
        ir.AttrInt64("N", outputs),
        ir.AttrInt64("block_size", tensor.granularity.size),
        ir.AttrInt64("quant_type", int(np.array_equal(tensor.table, NF4))),
    ]
    replacer.replace(
        node, "MatMulBnb4", [node.inputs[0], weight, scale], attributes, bias if bias is not None else rest
    )
    drop_inputs(old)


def emit_lookup(replacer: Replacer, node: ir.Node, change: WeightRewrite) -> None:
    """Indices and table in the place of a float weight; the node itself stays."""
    for position, tensor in change.codebooks.items():
        original = node.inputs[position]
        assert original is not None
        turned = original.shape is not None and original.shape.rank() == 2 and _is_turned(node)
        key = (id(tensor), "looked up", str(turned))
        if key not in replacer.made:
            replacer.made[key] = _Lookup(replacer, original, tensor, turned).value()
        edit.set_input(node, position, replacer.made[key])
        edit.drop_unused_initializer(original)


def _is_turned(node: ir.Node) -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not walk.outputs_first(node))


class _Lookup:
    """The nodes that turn indices into a weight: all are constant arithmetic, which the runtime does at load."""

    def __init__(self, replacer: Replacer, original: ir.Value, tensor: CodebookTensor, turned: bool) -> None:
        assert original.dtype is not None and original.shape is not None
        self._replacer, self._tensor, self._turned = replacer, tensor, turned
        self._original, self._base = original, original.name or "weight"
        self._dtype = original.dtype
        self._shape = [int(size) for size in original.shape.numpy()]
        self._nodes: list[ir.Node] = []

    def value(self) -> ir.Value:
        """The weight, in its shape."""
        tensor = self._tensor
        block = tensor.granularity.size if isinstance(tensor.granularity, PerBlock) else 0
        direct = not block and tensor.table.ndim == 1
        indices = self._indices(block, direct)
        table = self._constant("table", tensor.table.astype(self._dtype.numpy()))
        if tensor.table.ndim == 1:
            found = self._node("Gather", [table, indices])
        else:
            found = self._node("GatherElements", [table, indices], ir.AttrInt64("axis", 1))
        if not bool((tensor.scale == 1).all()):
            found = self._node("Mul", [found, self._constant("scale", self._scale(block, direct))])
        if not direct:
            found = self._arranged(found, block)
        last = self._nodes[-1].outputs[0]
        last.shape, last.type = ir.Shape(self._shape), ir.TensorType(self._dtype)
        first = self._nodes[0].inputs[0]
        assert first is not None
        self._replacer.builder.place_after(first, self._nodes)
        return found

    def _indices(self, block: int, direct: bool) -> ir.Value:
        array = self._tensor.indices
        if direct:
            array = (array.T if self._turned else array).reshape(self._shape)
        elif block:
            array = np.pad(array, ((0, 0), (0, -array.shape[1] % block))).reshape(-1, block)
        qtype = QType.UINT4 if self._tensor.bits == 4 else QType.UINT8
        stored = self._replacer.new(f"{self._base}_index", array.astype(qtype.numpy), IR_TYPES[qtype])
        return self._node("Cast", [stored], ir.AttrInt64("to", int(ir.DataType.INT32)))

    def _scale(self, block: int, direct: bool) -> Array:
        scale = self._tensor.scale.astype(self._dtype.numpy())
        if block or not direct:
            return np.asarray(scale.reshape(-1, 1))
        if not isinstance(self._tensor.granularity, PerAxis):
            return np.asarray(scale.reshape(()))
        return np.asarray(scale.reshape(1, -1) if self._turned else self._channels(scale))

    def _channels(self, scale: Array) -> Array:
        """Scales of rows so that they broadcast over the weight, whose first axes the rows are made of."""
        leading, count = [], 1
        for size in self._shape:
            leading.append(size if count < scale.size else 1)
            count *= size
        return scale.reshape(leading)

    def _arranged(self, found: ir.Value, block: int) -> ir.Value:
        rows, width = self._tensor.indices.shape
        if block:
            found = self._reshaped(found, [rows, -(-width // block) * block])
            if width % block:
                ends = [self._constant(name, np.array([n], np.int64)) for name, n in (("start", 0), ("end", width))]
                found = self._node("Slice", [found, *ends, self._constant("axis", np.array([1], np.int64))])
        if self._turned:
            if [width, rows] != self._shape:
                found = self._reshaped(found, self._shape[::-1])
            return self._node("Transpose", [found], ir.AttrInt64s("perm", [1, 0]))
        return found if [rows, width] == self._shape else self._reshaped(found, self._shape)

    def _reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        return self._node("Reshape", [value, self._constant("shape", np.array(shape, np.int64))])

    def _constant(self, what: str, array: Array) -> ir.Value:
        return self._replacer.new(f"{self._base}_{what}", array)

    def _node(self, op_type: str, inputs: list[ir.Value], *attributes: ir.Attr) -> ir.Value:
        builder = self._replacer.builder
        output = builder.names.value(f"{self._base}_{op_type.lower()}")
        node = builder.node(op_type, list(inputs), output, attributes=list(attributes))
        self._nodes.append(node)
        return node.outputs[0]
