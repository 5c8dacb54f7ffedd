"""Find the weight of a node in whatever form it is stored, and say what it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.affine import dequantize, params_for, quantize
from onnxq.core.dtypes import Array, QType
from onnxq.core.error_measures import sqnr_db
from onnxq.core.packing import PACKED_BITS, unpack
from onnxq.core.spec import PerAxis, PerTensor, TensorSpec
from onnxq.graph import traits, walk
from onnxq.graph.reading import at_run_time
from onnxq.graph.reading.ops import channel_axis

_POSITIONS = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1, "MatMulInteger": 1,
    "ConvInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "DynamicQuantizeLSTM": 1,
    "QAttention": 1, "MatMulNBits": 1, "MatMulBnb4": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3,
    "GatherBlockQuantized": 0,
}  # fmt: skip
_SCALES = {
    "QLinearConv": 4, "QLinearMatMul": 4, "QGemm": 4, "MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 2,
    "DynamicQuantizeLSTM": 8, "QAttention": 4, "MatMulNBits": 2, "GatherBlockQuantized": 2,
}  # fmt: skip
_ZERO_POINTS = {"QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5, "MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3}
_PACKED = traits.PACKED - {"QMoE"}
_LARGE = 1 << 24
"""Elements beyond which the error at int8 is not computed."""


@dataclass(frozen=True)
class Weight:
    """A constant that a layer multiplies with.

    Attributes:
        node: the layer.
        value: the constant as it is stored.
        scale: its scales, where it is stored as integers and they are constant.
        zero_point: its zero points, likewise.
        axis: along which scales of rank 1 lie; None where there is one, or they have the weight's rank.
        block: elements in a block; 0 where there are no blocks.
        dequantized: Cast → Mul turns the integers into floats, once, when the model is loaded.
        table: reals that the integers are indices into.
    """

    node: ir.Node
    value: ir.Value
    scale: Array | None = None
    zero_point: Array | None = None
    axis: int | None = None
    block: int = 0
    dequantized: bool = False
    table: Array | None = None


def weight_of(node: ir.Node, position: int | None = None) -> Weight | None:
    """The weight of a node, behind the DequantizeLinear or Cast → Mul that unfolds it; None where it has none.

    Args:
        node: any node.
        position: the input that holds the weight; None takes the operator's own.
    """
    if position is None:
        position = 0 if at_run_time.is_table(node) else _POSITIONS.get(node.op_type)
        if node.op_type == "MatMul" and (found := weight_of(node, 1)) is not None:
            return found
        position = 0 if node.op_type == "MatMul" else position
    value = walk.input_at(node, position) if position is not None else None
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        source = producer.inputs[0]
        if source is None or not walk.is_constant(source):
            return None
        return Weight(
            node,
            source,
            walk.const_array(walk.input_at(producer, 1)),
            walk.const_array(walk.input_at(producer, 2)),
            walk.attr_int(producer, "axis", 1),
            walk.attr_int(producer, "block_size", 0),
        )
    if (looked_up := _looked_up(node, producer)) is not None:
        return looked_up
    if producer is not None and _is_turned_at_load(producer):
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    if (stored := _dequantized(producer)) is not None and producer is not None:
        return Weight(node, stored, walk.const_array(producer.inputs[1]), dequantized=True)
    if producer is not None and producer.op_type == "Transpose" and walk.is_constant(producer.inputs[0]):
        return _turned(node, producer)
    if not walk.is_constant(value):
        return None
    if node.op_type in at_run_time.PRODUCTS or node.op_type == "Gather":
        axis = -1 if node.op_type == "MatMulInteger" else 0
        return Weight(node, value, at_run_time.scale_behind(node), axis=axis)
    if node.op_type not in _SCALES:
        return Weight(node, value, block=walk.attr_int(node, "block_size", 0))
    axis = 0 if node.op_type == "QLinearConv" or walk.outputs_first(node) else -1
    zero_point = _ZERO_POINTS.get(node.op_type)
    return Weight(
        node,
        value,
        walk.const_array(walk.input_at(node, _SCALES[node.op_type])),
        walk.const_array(walk.input_at(node, zero_point)) if zero_point is not None else None,
        axis,
        walk.attr_int(node, "block_size", 0),
    )


def _turned(node: ir.Node, transpose: ir.Node) -> Weight | None:
    """The weight of a product of integers that are another node's table, turned."""
    value = transpose.inputs[0]
    if value is None or node.op_type not in at_run_time.PRODUCTS:
        return None
    return Weight(node, value, at_run_time.scale_behind(node), axis=0)


def _looked_up(node: ir.Node, producer: ir.Node | None) -> Weight | None:
    """The indices behind Cast → Gather or GatherElements of a constant table, scaled and rearranged or not."""
    scale, block = None, 0
    while producer is not None and producer.op_type in ("Transpose", "Reshape", "Slice", "Mul"):
        if producer.op_type == "Mul":
            scale = walk.const_array(producer.inputs[1])
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    if producer is None or producer.op_type not in ("Gather", "GatherElements") or producer.inputs[1] is None:
        return None
    cast, table = producer.inputs[1].producer(), walk.const_array(producer.inputs[0])
    stored = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if table is None or stored is None or not walk.is_constant(stored) or stored.dtype in walk.FLOATS:
        return None
    return Weight(node, stored, scale, None, None, block, True, table)


def _is_turned_at_load(node: ir.Node) -> bool:
    """Whether a node transposes what another one unfolds, for a product with its constant on the left."""
    made = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
    return _dequantized(made) is not None


def _dequantized(node: ir.Node | None) -> ir.Value | None:
    """The integers behind the Mul of Cast → Mul; None for any other node."""
    if node is None or node.op_type != "Mul" or node.inputs[0] is None:
        return None
    cast = node.inputs[0].producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if source is None or not walk.is_constant(source) or source.dtype in walk.FLOATS:
        return None
    return source


def granularity_of(weight: Weight) -> str:
    """Which elements share a scale, or a table, in words; empty where that is not known."""
    if weight.table is not None:
        groups = max(1 if weight.scale is None else weight.scale.size, weight.table.size // weight.table.shape[-1])
        return f"in {groups} groups" if groups > 1 else "per tensor"
    if weight.block:
        return f"in blocks of {weight.block}"
    if weight.scale is None:
        return ""
    return "per channel" if weight.scale.size > 1 else "per tensor"


def weight_facts(weight: Weight) -> dict[str, Any]:
    """What a weight looks like, as plain data; see `onnxq.report.results.Inspection`."""
    value, array = weight.value, walk.const_array(weight.value)
    dtype = value.dtype.name.lower() if value.dtype is not None else "unknown"
    facts: dict[str, Any] = {
        "name": value.name, "node": weight.node.name,
        "shape": _shape(value, array),
        "dtype": {"float": "float32", "double": "float64"}.get(dtype, dtype),
        "granularity": granularity_of(weight) or None, "low": None, "high": None, "sqnr_db": None,
    }  # fmt: skip
    if weight.node.op_type in _PACKED:
        return facts | _packed_facts(weight)
    if array is None or array.size == 0:
        return facts
    if weight.table is not None:
        facts["dtype"] = f"{facts['dtype']} index of {weight.table.shape[-1]} values"
        return facts
    reals = _reals(weight, array)
    if reals is not None and np.isfinite(reals).any():
        facts["low"], facts["high"] = float(np.nanmin(reals)), float(np.nanmax(reals))
    if array.dtype == np.float32 and array.ndim >= 2 and array.size <= _LARGE and np.isfinite(array).all():
        facts["sqnr_db"] = _error_at_int8(weight.node, array)
    return facts


def reals_of(weight: Weight) -> Array | None:
    """The real numbers that a weight stands for, in the shape that it is stored in; None where they are not known."""
    array = walk.const_array(weight.value)
    if array is None or weight.table is not None or weight.node.op_type in _PACKED:
        return None
    return _reals(weight, array)


def _shape(value: ir.Value, array: Array | None) -> list[int]:
    """The shape of the contents, which what the model declares may contradict."""
    tensor = value.const_value
    if tensor is not None:
        return list(tensor.shape.numpy())
    return list(array.shape) if array is not None else []


def _packed_facts(weight: Weight) -> dict[str, Any]:
    """Shape, type and range of a weight whose integers lie several to a byte."""
    node, scale = weight.node, weight.scale
    if node.op_type == "MatMulBnb4":
        kind = "nf4" if walk.attr_int(node, "quant_type", 1) else "fp4"
        return {"shape": [walk.attr_int(node, "N"), walk.attr_int(node, "K")], "dtype": kind}
    packed = walk.const_array(weight.value)
    if packed is None or packed.dtype != np.uint8 or scale is None:
        return {}
    bits, block = walk.attr_int(node, "bits", 4), weight.block
    if bits not in PACKED_BITS or not block or walk.attr_int(node, "quantize_axis", 1) != 1:
        return {}
    rows = packed.reshape(packed.shape[0], -1)
    width = walk.attr_int(node, "K") or rows.shape[1] * 8 // bits
    facts: dict[str, Any] = {"shape": [rows.shape[0], width], "dtype": f"uint{bits}"}
    blocks = (rows.shape[0], -(-width // block))
    zero, zeros = walk.const_array(walk.input_at(node, 3)), np.full(blocks, 1 << (bits - 1), np.float32)
    if rows.shape[0] * width > _LARGE or scale.size != zeros.size or rows.shape[1] * 8 // bits < width:
        return facts
    if zero is not None and zero.dtype == np.uint8 and zero.size == blocks[0] * -(-blocks[1] * bits // 8):
        zeros[:] = unpack(zero.reshape(blocks[0], -1), bits, blocks[1])
    elif zero is not None and zero.dtype != np.uint8 and zero.size == zeros.size:
        zeros[:] = zero.reshape(blocks)
    elif zero is not None:
        return facts
    scales = np.asarray(scale, np.float32).reshape(blocks)
    middle, step = (np.repeat(part, block, axis=1)[:, :width] for part in (zeros, scales))
    reals = (unpack(rows, bits, width).astype(np.float32) - middle) * step
    if reals.size and np.isfinite(reals).any():
        facts["low"], facts["high"] = float(np.nanmin(reals)), float(np.nanmax(reals))
    return facts


def _reals(weight: Weight, array: Array) -> Array | None:
    """The real numbers that a weight stands for; None where its scales are not known."""
    if weight.value.dtype in walk.FLOATS:
        return np.asarray(array, np.float32)
    scale, zero = weight.scale, weight.zero_point
    if scale is None:
        return None
    numbers = array.astype(np.float32)
    for parameter, operation in ((zero, np.subtract), (scale, np.multiply)):
        if parameter is None or parameter.size == 0:
            continue
        spread = _spread(parameter.astype(np.float32), weight, array.shape)
        if spread is None:
            return None
        numbers = operation(numbers, spread)
    return numbers


def _spread(parameter: Array, weight: Weight, shape: tuple[int, ...]) -> Array | None:
    """A scale or zero point in a shape that broadcasts over the weight's; None where they do not fit."""
    if parameter.size == 1:
        return parameter.reshape(())
    if weight.axis is not None and not -len(shape) <= weight.axis < len(shape):
        return None
    if weight.block and weight.axis is not None and parameter.ndim == len(shape):
        whole = np.repeat(parameter, weight.block, axis=weight.axis)
        return np.take(whole, np.arange(shape[weight.axis]), axis=weight.axis)
    if parameter.ndim == len(shape):
        return parameter
    if weight.node.op_type == "DynamicQuantizeLSTM":  # [directions] or [directions, gates]
        return parameter.reshape(shape[0], 1, -1)
    if weight.axis is None or parameter.ndim != 1 or parameter.size != shape[weight.axis]:
        return None
    return parameter.reshape([-1 if i == weight.axis % len(shape) else 1 for i in range(len(shape))])


def _error_at_int8(node: ir.Node, array: Array) -> float | None:
    axis = channel_axis(node, array.ndim)
    spec = TensorSpec(QType.INT8, PerTensor() if axis is None else PerAxis(axis), symmetric=True, narrow_range=True)
    params = params_for(array, spec)
    ratio = sqnr_db(array, dequantize(quantize(array, params), params))
    return float(ratio) if np.isfinite(ratio) else None
