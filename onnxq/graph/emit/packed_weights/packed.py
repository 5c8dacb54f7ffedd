"""Packed weights: kernels and patterns that unpack them while they multiply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array, QType
from onnxq.core.packing import pack, pack_blocks
from onnxq.core.spec import PerBlock, QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit import common
from onnxq.graph.emit.packed_weights.expert_stacks import emit_experts
from onnxq.graph.emit.packed_weights.replace import Replacer, alpha_of
from onnxq.graph.emit.packed_weights.table_weights import emit_bnb4, emit_lookup
from onnxq.graph.emit.rewrite import Rewrite, WeightRewrite

_SIGNED = {QType.UINT2: QType.INT2, QType.UINT4: QType.INT4, QType.UINT8: QType.INT8}
_LARGEST_BLOCK = {2: 128, 4: 256, 8: 256}
_SMALLEST_BLOCK = {2: 32, 4: 16, 8: 16}


def emit_weight_only(model: ir.Model, rewrite: Rewrite, form: str) -> None:
    """Rewrite the nodes of ``rewrite.weights`` in place.

    Each has its own form; ``form`` is that of the nodes around them.
    """
    del form
    if not rewrite.weights:
        return
    emitter = _PackedEmitter(model)
    nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
    forms: dict[str, Callable[[ir.Node, WeightRewrite], None]] = {
        "MatMulNBits": emitter.nbits,
        "DequantizeLinear": emitter.blocked,
        "GatherBlockQuantized": emitter.table,
        "MatMulBnb4": partial(emit_bnb4, emitter),
        "Gather": partial(emit_lookup, emitter),
        "QMoE": partial(emit_experts, emitter),
    }
    # Tables come last: one that is tied to an output layer reads that layer's initializer.
    for name, change in sorted(rewrite.weights.items(), key=lambda item: item[1].form == "GatherBlockQuantized"):
        forms[change.form](nodes[name], change)


def block_of(tensor: QTensor) -> int:
    """Elements of a block as a kernel is told; one scale a row is written once for each of the largest blocks."""
    granularity, bits = tensor.params.spec.granularity, tensor.params.spec.dtype.bits
    if isinstance(granularity, PerBlock):
        return granularity.size
    whole = 1 << (int(tensor.values.shape[1]) - 1).bit_length()
    return min(max(whole, _SMALLEST_BLOCK[bits]), _LARGEST_BLOCK[bits])


class _PackedEmitter(Replacer):
    def nbits(self, node: ir.Node, change: WeightRewrite) -> None:
        """MatMulNBits in the place of a MatMul or Gemm."""
        tensor, original = change.constants[1], node.inputs[1]
        assert original is not None
        old, alpha = list(node.inputs), alpha_of(node)
        inputs: list[ir.Value | None] = [node.inputs[0], *self._packed(original, tensor, alpha)]
        bias, rest = self.bias(node, tensor.values.shape[0])
        if bias is not None:
            inputs += [None] * (5 - len(inputs)) + [bias]
        attributes = [
            ir.AttrInt64("K", tensor.values.shape[1]),
            ir.AttrInt64("N", tensor.values.shape[0]),
            ir.AttrInt64("bits", tensor.params.spec.dtype.bits),
            ir.AttrInt64("block_size", block_of(tensor)),
            ir.AttrInt64("accuracy_level", change.accuracy_level),
        ]
        self.replace(node, "MatMulNBits", inputs, attributes, rest)
        common.drop_inputs(old)

    def blocked(self, node: ir.Node, change: WeightRewrite) -> None:
        """DequantizeLinear of a [K, N] weight before a MatMul, which ONNX Runtime fuses to MatMulNBits.

        Each reader gets a DequantizeLinear of its own, in its own graph: only then is it fused.
        """
        tensor, original = change.constants[1], node.inputs[1]
        assert original is not None and node.graph is not None
        old, alpha, base = list(node.inputs), alpha_of(node), original.name or "weight"
        blocks = isinstance(tensor.params.spec.granularity, PerBlock)
        turned = f"turned {base}"  # an equal weight keeps its own copy: the runtime would join their DequantizeLinear
        scale = self.once(
            tensor, "scale", original, lambda: _scales(tensor, original, alpha, turned=True), f"{alpha} turned"
        )
        symmetric = tensor.params.spec.symmetric
        dtype = common.IR_TYPES[_SIGNED[tensor.params.spec.dtype] if symmetric else tensor.params.spec.dtype]
        integers = self.once(tensor, "quantized", original, lambda: _turned(tensor), turned, dtype)
        inputs: list[ir.Value | None] = [integers, scale]
        if not symmetric:
            inputs.append(self.once(tensor, "zero_point", original, lambda: _turned_zero_points(tensor), turned, dtype))
        attributes = [ir.AttrInt64("axis", 0 if blocks else 1)]
        if blocks:
            attributes.append(ir.AttrInt64("block_size", block_of(tensor)))
        dq = self.builder.node(
            "DequantizeLinear",
            inputs,
            self.builder.names.value(f"{base}_DequantizeLinear_Output"),
            attributes=attributes,
            dtype=original.dtype,
            shape=ir.Shape(tensor.values.shape[::-1]),
        )
        node.graph.insert_before(node, [dq])
        common.keep_adds_apart(node, but_bias=node.op_type == "MatMul")
        if node.op_type == "MatMul":
            edit.set_input(node, 1, dq.outputs[0])
        else:
            bias, rest = self.bias(node, tensor.values.shape[0])
            rest = bias if bias is not None else rest  # a bias of one axis is fused into MatMulNBits as well
            self.replace(node, "MatMul", [node.inputs[0], dq.outputs[0]], [], rest, domain="")
        common.drop_inputs(old)

    def table(self, node: ir.Node, change: WeightRewrite) -> None:
        """GatherBlockQuantized in the place of a Gather of rows, or of whole matrices from a stack."""
        tensor, original = change.constants[0], node.inputs[0]
        assert original is not None and original.shape is not None
        spec, lead = tensor.params.spec, tuple(original.shape.numpy()[:-1])
        inputs: list[ir.Value | None]
        tied = self.made.get((id(tensor), "packed", "1.0"))
        if len(lead) > 1:
            inputs = self._stack(original, tensor, lead)
        elif tied is None or tensor.values.shape[1] % block_of(tensor):  # padding would become part of the rows
            data = self.once(tensor, "packed_rows", original, lambda: pack(_stored(tensor), spec.dtype.bits))
            inputs = [data, *self._parameters(original, tensor, 1.0)]
        else:
            inputs = [self._rows_of(tensor, tied), *self._parameters(original, tensor, 1.0)]
        inputs.insert(1, node.inputs[1])
        attributes = [
            ir.AttrInt64("bits", spec.dtype.bits),
            ir.AttrInt64("block_size", block_of(tensor)),
            ir.AttrInt64("gather_axis", 0),
            ir.AttrInt64("quantize_axis", len(lead)),
        ]
        self.replace(node, "GatherBlockQuantized", inputs, attributes, None)
        common.drop_inputs([original])

    def _stack(self, original: ir.Value, tensor: QTensor, lead: tuple[int, ...]) -> list[ir.Value | None]:
        """Integers, scales and zero points of a stack of matrices."""
        bits = tensor.params.spec.dtype.bits
        parts: dict[str, Callable[[], Array]] = {
            "packed_rows": lambda: pack(_stored(tensor), bits),
            "scale": lambda: _scales(tensor, original, 1.0),
        }
        if not tensor.params.spec.symmetric:
            parts["zero_point"] = lambda: pack(_zero_points(tensor), bits)

        def stacked(make: Callable[[], Array]) -> Array:
            return make().reshape(*lead, -1)

        variant = f"stack of {lead}"
        return [self.once(tensor, what, original, partial(stacked, make), variant) for what, make in parts.items()]

    def _rows_of(self, tensor: QTensor, packed: ir.Value) -> ir.Value:
        """The weight of a MatMulNBits in the shape of a table: the same bytes, seen otherwise."""
        key = (id(tensor), "rows", "1.0")
        if key not in self.made:
            rows, width = tensor.values.shape
            length = -(-width // block_of(tensor)) * block_of(tensor) * tensor.params.spec.dtype.bits // 8
            base = (packed.name or "weight").removesuffix("_packed")
            shape = self.new(f"{base}_rows_shape", np.array([rows, length], np.int64))
            reshape = self.builder.node(
                "Reshape",
                [packed, shape],
                self.builder.names.value(f"{base}_packed_rows"),
                dtype=packed.dtype,
                shape=ir.Shape([rows, length]),
            )
            self.builder.place_after(packed, [reshape])
            self.made[key] = reshape.outputs[0]
        return self.made[key]

    def _packed(self, original: ir.Value, tensor: QTensor, alpha: float) -> list[ir.Value]:
        """Integers, scales and zero points as MatMulNBits takes them."""
        fill = _zero_points(tensor)[:, -1]
        weight = self.once(
            tensor,
            "packed",
            original,
            lambda: pack_blocks(_stored(tensor), tensor.params.spec.dtype.bits, block_of(tensor), fill),
        )
        return [weight, *self._parameters(original, tensor, alpha)]

    def _parameters(self, original: ir.Value, tensor: QTensor, alpha: float) -> list[ir.Value]:
        scale = self.once(tensor, "scale", original, lambda: _scales(tensor, original, alpha), str(alpha))
        if tensor.params.spec.symmetric:
            return [scale]
        bits = tensor.params.spec.dtype.bits
        return [scale, self.once(tensor, "zero_point", original, lambda: pack(_zero_points(tensor), bits))]


def _stored(tensor: QTensor) -> Array:
    """Integers as kernels without zero points read them: a symmetric grid has its zero in the middle of the type."""
    spec = tensor.params.spec
    values = tensor.values.astype(np.uint8)
    shift = (1 << (spec.dtype.bits - 1)) - spec.midpoint if spec.symmetric else 0
    return np.asarray(values + np.uint8(shift)) if shift else values


def _zero_points(tensor: QTensor) -> Array:
    """uint8, (rows, blocks)."""
    spec = tensor.params.spec
    if spec.symmetric:
        return np.full(_blocks(tensor), 1 << (spec.dtype.bits - 1), np.uint8)
    return np.broadcast_to(tensor.params.zero_point.astype(np.uint8), _blocks(tensor))


def _blocks(tensor: QTensor) -> tuple[int, int]:
    rows, width = tensor.values.shape
    return rows, -(-width // block_of(tensor))


def _scales(tensor: QTensor, original: ir.Value, alpha: float, turned: bool = False) -> Array:
    """Scales as (rows, blocks); ``turned`` gives them as a DequantizeLinear of [K, N] takes them."""
    assert original.dtype is not None
    scale = (tensor.params.scale * np.float32(alpha)).astype(original.dtype.numpy())
    if not turned:
        return np.broadcast_to(scale, _blocks(tensor))
    return np.asarray(scale.T if isinstance(tensor.params.spec.granularity, PerBlock) else scale.reshape(-1))


def _turned(tensor: QTensor) -> Array:
    spec = tensor.params.spec
    if not spec.symmetric:
        return np.asarray(tensor.values.T)
    signed = tensor.values.T.astype(np.int16) - np.int16(spec.midpoint)
    return np.asarray(signed.astype(_SIGNED[spec.dtype].numpy))


def _turned_zero_points(tensor: QTensor) -> Array:
    zero = tensor.params.zero_point
    return np.asarray(zero.T if isinstance(tensor.params.spec.granularity, PerBlock) else zero.reshape(-1))
