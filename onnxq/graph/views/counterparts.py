"""What a quantized model holds in the place of a float model's constants, as real numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.prepare.whole import initializer_inputs
from onnxq.graph.reading.ops import channel_axis
from onnxq.graph.undo import real_weights
from onnxq.graph.views.canonical import to_qdq

_SUFFIXES = ("_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output", "_dequantized", "_float", "_quant")
_ROUNDING = traits.CONVERSIONS | {"Cast", "DynamicQuantizeLinear", "Identity"}
_STEPS = 4
"""Nodes that stand between a product and the layer that rounds and reads it, at most."""

_UNPACK = {"MatMulNBits": real_weights.of_nbits, "MatMulBnb4": real_weights.of_bnb4}


class Counterparts:
    """The nodes of a quantized model by the names that they have in the float model."""

    def __init__(self, quantized: ir.Model) -> None:
        """Look at a copy of a model, made by whatever tool, with its integer operators in QDQ form."""
        copy = quantized.clone()
        initializer_inputs.remove_initializers(copy)
        lift_constants.lift(copy)
        to_qdq(copy)
        self._model = copy  # its values are only reachable as long as it is
        self._nodes: dict[str, ir.Node] = {}
        for node in copy.graph:
            for name in (bare_name(node.name or ""), node.name or ""):
                if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast"):
                    self._nodes.setdefault(name, node)
        self._factors = _multipliers(copy.graph)

    def constant(self, node: ir.Node, position: int) -> Array | None:
        """The real numbers that stand in the place of a constant input of a float model's node.

        Returns:
            Of the shape that it has in the float model, or of a larger one where that is a single number; None where
            there are none, or none that can be compared.
        """
        other, before = self._nodes.get(node.name or ""), walk.const_array(walk.input_at(node, position))
        if other is None or before is None or before.dtype.kind != "f":
            return None
        if position == 1 and channel_axis(node, before.ndim) is not None:
            pair = weights_of(node, other)
            return None if pair is None else pair[1]
        value = walk.input_at(other, position)
        producer = value.producer() if value is not None else None
        array = walk.const_array(value)
        if array is None and producer is not None and producer.op_type == "DequantizeLinear":
            array = dequantized(producer)
        fits = array is not None and array.dtype.kind == "f" and (array.shape == before.shape or before.size == 1)
        return array if fits else None

    def multiplier(self, value: str) -> Mapping[str, Array]:
        """The constants that a value, by its name, is multiplied by on its way into layers; by name of the product."""
        return self._factors.get(value, {})

    def reads(self, node: ir.Node, product: str) -> bool:
        """Whether a float model's node reads a value of the quantized model in its first input."""
        other = self._nodes.get(node.name or "")
        value = walk.input_at(other, 0) if other is not None else None
        for _ in range(_STEPS):
            if value is None or value.name == product:
                break
            producer = value.producer()
            if producer is None or producer.op_type not in _ROUNDING:
                return False
            value = walk.input_at(producer, 0)
        return value is not None and value.name == product


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
    elif main.op_type == "MatMulIntegerToFloat":
        after = _of_products(main)
    elif main.op_type in ("MatMulInteger", "ConvInteger"):
        after = _of_integers(main)
    elif value is not None:
        after = walk.const_array(value)
    if after is None or after.dtype.kind != "f":
        return None
    if after.shape != before.shape and after.ndim == 2 and after.T.shape == before.shape:
        after = after.T
    if before.ndim > 2 and after.ndim == 2 and before.shape == (*after.T.shape, *(1,) * (before.ndim - 2)):
        after = after.T.reshape(before.shape)  # a Conv over single positions, as a product of matrices
    return (before, after) if after.shape == before.shape else None


def _of_products(main: ir.Node) -> Array | None:
    """The weight of a product that is scaled to float at once; (in, out)."""
    integers, scale, zero = (walk.const_array(walk.input_at(main, i)) for i in (1, 3, 5))
    if integers is None or scale is None:
        return None
    real = integers.astype(np.float32) - np.float32(0 if zero is None else zero.astype(np.float32))
    return np.asarray(real * scale.reshape(scale.shape if scale.size > 1 else ()))


def _of_integers(main: ir.Node) -> Array | None:
    """The weight of a layer whose input is rounded at inference: the integers times the scale behind them."""
    integers, zero = walk.const_array(walk.input_at(main, 1)), walk.const_array(walk.input_at(main, 3))
    cast = walk.only_use(main.outputs[0])
    product = walk.only_use(cast.outputs[0]) if cast is not None and cast.op_type == "Cast" else None
    if integers is None or cast is None or product is None or product.op_type != "Mul":
        return None
    factor = next((value.producer() for value in product.inputs if value is not cast.outputs[0] and value), None)
    if factor is None or factor.op_type != "Mul":
        return None
    scale = next((array for value in factor.inputs if (array := walk.const_array(value)) is not None), None)
    real = integers.astype(np.float32) - np.float32(0 if zero is None else zero.astype(np.float32))
    if scale is None or scale.size == 1 or main.op_type == "MatMulInteger":
        return None if scale is None else np.asarray(real * scale.reshape(scale.shape if scale.size > 1 else ()))
    return np.asarray(real * scale.reshape((-1,) + (1,) * (real.ndim - 1)))


def _multipliers(graph: ir.Graph) -> dict[str, dict[str, Array]]:
    """Products of a value and a constant vector, by the names of the value and of the product."""
    found: dict[str, dict[str, Array]] = {}
    for node in graph:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        for position in (0, 1):
            array, value = _vector(node.inputs[position]), _unrounded(node.inputs[1 - position])
            if array is not None and value is not None and value.name:
                found.setdefault(value.name, {})[node.outputs[0].name or ""] = array
    return found


def _vector(value: ir.Value | None) -> Array | None:
    """A constant with one number a channel, on integers too; None for anything else."""
    producer = value.producer() if value is not None else None
    array = walk.const_array(value)
    if array is None and producer is not None and producer.op_type == "DequantizeLinear":
        array = dequantized(producer)
    if array is None or array.dtype.kind != "f" or array.ndim == 0 or array.size != max(array.shape):
        return None
    return array.reshape(-1)


def _unrounded(value: ir.Value | None) -> ir.Value | None:
    """A value in front of its Q and DQ."""
    for _ in range(_STEPS):
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type not in _ROUNDING:
            break
        value = walk.input_at(producer, 0)
    return value


def bare_name(name: str) -> str:
    """A name without the endings that quantizers add."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return bare_name(name.removesuffix(suffix))
    return name
