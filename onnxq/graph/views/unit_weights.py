"""The weight of a layer in a float and in a quantized model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.reading.ops import channel_axis
from onnxq.graph.undo import real_weights

_UNPACK = {"MatMulNBits": real_weights.of_nbits, "MatMulBnb4": real_weights.of_bnb4}


def dequantized(node: ir.Node) -> Array | None:
    """What a DequantizeLinear of constants gives; None where an input is not constant."""
    arrays = [walk.const_array(value) for value in node.inputs]
    if any(array is None for array in arrays):
        return None
    integers, scale = arrays[0], arrays[1]
    assert integers is not None and scale is not None
    real = integers.astype(np.float32)
    axis, block = walk.attr_int(node, "axis", 1), walk.attr_int(node, "block_size", 0)

    def spread(parameter: Array) -> Array:
        parameter = parameter.astype(np.float32)
        if parameter.ndim == 0 or parameter.size == 1:
            return parameter.reshape(())
        if block:
            whole = np.repeat(parameter, block, axis=axis)
            return np.take(whole, np.arange(real.shape[axis]), axis=axis)
        return parameter.reshape([-1 if i == axis % real.ndim else 1 for i in range(real.ndim)])

    if len(arrays) > 2 and arrays[2] is not None:
        real = real - spread(arrays[2])
    return np.asarray(real * spread(scale), np.float32)


def distance(pair: tuple[Array, Array]) -> float:
    """Squared distance of two weights of one shape."""
    return float(np.square(pair[0] - pair[1], dtype=np.float64).sum())


def weights_of(original: ir.Node, main: ir.Node) -> tuple[Array, Array] | None:
    """The weight of a layer in both models, where it is a constant and keeps its shape."""
    before = walk.const_array(walk.input_at(original, 1))
    value = walk.input_at(main, 1)
    producer = value.producer() if value is not None else None
    if before is None or channel_axis(original, before.ndim) is None or before.dtype.kind != "f":
        return None
    after = None
    if main.op_type in _UNPACK:
        after = _UNPACK[main.op_type](main, [walk.const_array(source) for source in main.inputs])
    elif producer is not None and producer.op_type == "DequantizeLinear":
        after = dequantized(producer)
    elif producer is not None and producer.op_type == "Mul":
        cast = producer.inputs[0].producer() if producer.inputs[0] is not None else None
        integers = walk.const_array(cast.inputs[0]) if cast is not None and cast.op_type == "Cast" else None
        scale = walk.const_array(producer.inputs[1])
        after = None if integers is None or scale is None else integers.astype(np.float32) * scale
    elif value is not None:
        after = walk.const_array(value)
    if after is None or after.dtype.kind != "f":
        return None
    if after.shape != before.shape and after.ndim == 2 and after.T.shape == before.shape:
        after = after.T
    return (before, after) if after.shape == before.shape else None
