"""The grids of a quantized model as ``TensorQuantOverrides``, to make another model on the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.quant_types import QuantType
from onnxq.core.dtypes import Array
from onnxq.errors import ModelError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.types import Node, Value
from onnxq.graph.views.counterparts import bare_name
from onnxq.pipeline.float_model import Source

_TYPES = {
    np.dtype(np.int8): QuantType.QInt8,
    np.dtype(np.uint8): QuantType.QUInt8,
    np.dtype(np.int16): QuantType.QInt16,
    np.dtype(np.uint16): QuantType.QUInt16,
}


def tensor_quant_overrides(model: Source, float_model: Source | None = None) -> dict[str, list[dict[str, Any]]]:
    """What ``extra_options["TensorQuantOverrides"]`` has to be for the grids of a QDQ model.

    Args:
        model: path or ``onnx.ModelProto``, with QuantizeLinear and DequantizeLinear.
        float_model: the model that the overrides are for: tensors that it does not have are left out, and ``axis`` is
            that of its weights, which may lie the other way round in ``model``.

    Returns:
        By the name of the float tensor one entry, or one a channel, of which the first has ``axis``: ``quant_type``,
        ``scale`` (float32) and ``zero_point``, and ``convert`` where some nodes read a second grid. Biases of 32 bits
        are left out: they follow from the others.

    Raises:
        ModelError: the model cannot be read, or has no such grid.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    second: dict[str, dict[str, Any]] = {}
    for node in walk.all_nodes(io.load(model).graph):
        value = node.inputs[0] if node.inputs else None
        if value is None or not value.name:
            continue
        constant = walk.is_constant(value)
        if (node.op_type == "QuantizeLinear") != constant and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (walk.const_array(walk.input_at(node, index)) for index in (1, 2))
            if scale is None:
                continue
            if zero is None:  # left out where it is 0
                integers = walk.const_array(value)
                zero = np.zeros(scale.shape, np.uint8 if integers is None else integers.dtype)
            kind = _TYPES.get(zero.dtype)
            source = None if constant else _first_grid(value)
            if kind is not None and source is not None:
                second[source] = {"quant_type": kind, "recv_nodes": _readers(node)}
            elif kind is not None:
                found.setdefault(bare_name(value.name) if constant else value.name, _entries(node, scale, zero, kind))
    for name, converted in second.items():
        if name in found:
            found[name][0]["convert"] = converted
    if float_model is not None:
        found = _of(float_model, found)
    if not found:
        raise ModelError(
            "tensor_quant_overrides: the model has no QuantizeLinear or DequantizeLinear with a constant grid; pass a "
            "quantized model in the QDQ format"
        )
    return found


def _of(model: Source, found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    known = {value.name: value for value in walk.all_values(io.load(model).graph)}
    kept = {name: entries for name, entries in found.items() if name in known}
    for name, entries in kept.items():
        shape = walk.dims(known[name]) or ()
        if len(entries) > 1 and len(entries) in shape and shape[entries[0]["axis"] % len(shape)] != len(entries):
            entries[0]["axis"] = shape.index(len(entries))
    return kept


def _first_grid(value: Value) -> str | None:
    """The name of the value that a QuantizeLinear rounds again, where it reads the result of a DequantizeLinear."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    while node is not None and node.op_type in ("DequantizeLinear", "Clip"):
        source = walk.input_at(node, 0)
        node = source.producer() if source is not None else None
    first = walk.input_at(node, 0) if node is not None and node.op_type == "QuantizeLinear" else None
    return first.name if first is not None else None


def _readers(quantizer: Node) -> set[str]:
    backs = [user for user in quantizer.outputs[0].consumers() if user.op_type == "DequantizeLinear"]
    return {user.name for back in backs for user in back.outputs[0].consumers() if user.name}


def _entries(node: Node, scale: Array, zero: Array, kind: QuantType) -> list[dict[str, Any]]:
    if scale.size == 1:
        return [_entry(kind, scale.reshape(()), zero.reshape(()))]
    entries = [_entry(kind, one, other) for one, other in zip(scale.reshape(-1), zero.reshape(-1), strict=True)]
    return [{"axis": walk.attr_int(node, "axis", 1), **entries[0]}, *entries[1:]]


def _entry(kind: QuantType, scale: Any, zero: Any) -> dict[str, Any]:
    return {"quant_type": kind, "scale": np.array(scale, np.float32), "zero_point": np.array(zero)}
