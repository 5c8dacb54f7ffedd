"""Raise the default operator set with onnx's converter."""

from __future__ import annotations

import re
from typing import Any

import onnx
import onnx_ir as ir

from onnxq.graph import names, walk
from onnxq.graph.files.checker import check_model
from onnxq.graph.prepare.operators import hardmax, resize

_INLINE = 1024
"""Initializers of fewer bytes are shown to the converter, which reads axes, sizes and scales from them."""

_NO_ADAPTER = re.compile(r"No Adapter \w+ Version \S+ for (\w+)")
"""What the converter says of an operator that it does not know."""

OLDEST = 7
"""Before this version arithmetic broadcast by attributes; runtimes do not promise to run such models."""


def raise_to(model: ir.Model, version: int, notes: list[str]) -> bool:
    """Convert the model to at least ``version`` of the default operator set.

    Args:
        model: changed in place; value and node names must be unique. Weights are not copied.
        version: the lowest acceptable version.
        notes: gets a sentence where the model cannot be converted and so stays as it is.

    Returns:
        Whether the model was converted.
    """
    current = walk.opset(model)
    if "" not in model.opset_imports or current >= version:
        return False
    if model.functions:
        notes.append(f"the model stays at operator set {current} instead of {version}: it calls functions")
        return False
    weights: dict[str, ir.TensorProtocol] = {}
    try:
        _refuse(model, current, version)
        if version >= hardmax.CHANGED_IN:
            hardmax.flatten(model)
        resize.rename_upsample(model)
        coordinates = resize.coordinates(model)
        weights = _take_weights(model)
        before = ir.to_proto(model)
        after = onnx.version_converter.convert_version(before, version)
        check_model(after)
        converted = ir.from_proto(after)
        _keep_signature(model.graph, converted.graph)
    except Exception as error:  # the converter raises whatever an operator without an adapter leads to
        _give_weights(model.graph, weights)
        reason = _reason(error)
        notes.append(f"the model stays at operator set {current} instead of {version}: {reason}")
        return False
    names.name_unnamed(after.graph, converted.graph)
    resize.restore(converted.graph, coordinates)
    _restore(model.graph, converted.graph, weights)
    model.graph = converted.graph
    return True


def _reason(error: Exception) -> str:
    """Why it failed, without the places in onnx's source."""
    missing = _NO_ADAPTER.search(str(error))
    return f"onnx cannot convert {missing[1]}" if missing else " ".join(str(error).split())


def _keep_signature(old: ir.Graph, new: ir.Graph) -> None:
    """Give the converted graph's inputs and outputs the types that they had.

    Raises:
        ValueError: the converter added, dropped, renamed or reordered some.
    """
    for what, ours, theirs in (("inputs", old.inputs, new.inputs), ("outputs", old.outputs, new.outputs)):
        if [value.name for value in ours] != [value.name for value in theirs]:
            raise ValueError(f"onnx's converter changes the {what} of the model")
        for value, converted in zip(ours, theirs, strict=True):
            converted.type, converted.shape = value.type, value.shape
            converted.metadata_props.update(value.metadata_props)


def _refuse(model: ir.Model, current: int, version: int) -> None:
    """Stop where onnx's converter cannot go, or is known to give something else than it got."""
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ValueError(f"onnx {onnx.__version__} knows operator sets up to {newest}")
    for node in walk.all_nodes(model.graph):
        if node.op_type == "GroupNormalization" and node.domain == "" and current < 21 <= version:
            raise ValueError(f"GroupNormalization '{node.name}' has scales of another shape from operator set 21 on")


def _take_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the large initializers, so that the converter does not see their contents."""
    taken: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or tensor.dtype == ir.DataType.STRING or tensor.nbytes < _INLINE:
            continue
        taken[name] = tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return taken


def _give_weights(graph: ir.Graph, weights: dict[str, ir.TensorProtocol]) -> None:
    """Undo `_take_weights`, on the same graph or on a converted one."""
    values = {value.name: value for value in graph.inputs}
    inputs = [value for value in graph.inputs if value.name not in weights]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for name, tensor in weights.items():
        values[name].const_value = tensor
        graph.initializers.add(values[name])


def _restore(old: ir.Graph, new: ir.Graph, weights: dict[str, ir.TensorProtocol]) -> None:
    """Give the converted graph its weights, types and metadata; intermediate types of the converter are not kept."""
    _give_weights(new, weights)
    types: dict[str, tuple[Any, ir.Shape | None]] = {
        value.name: (value.type, value.shape) for value in walk.all_values(old) if value.name
    }
    for value in walk.all_values(new):
        if value.producer() is not None:
            value.type, value.shape = types.get(value.name or "", (None, None))
        elif value.name in types and not value.is_initializer():  # what a body takes, whose sizes the converter names
            value.type, value.shape = types[value.name]
    metadata = {node.name: node for node in walk.all_nodes(old) if node.name}
    for node in walk.all_nodes(new):
        same = metadata.get(node.name or "")
        if same is not None and same.op_type == node.op_type:
            node.metadata_props.update(same.metadata_props)
            node.meta.update(same.meta)
    new.metadata_props.update(old.metadata_props)
