"""Types and shapes of values, as far as onnx can infer them; what fails is a note, never an error."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxq.graph import io, walk
from onnxq.graph.prepare import evaluate, folding

_LISTED = 4096
"""Elements up to which onnx may compute the contents of a value; it takes some 100 bytes for each."""


def infer(model: ir.Model, notes: list[str], *, folded: bool) -> None:
    """Fill in types and shapes.

    What the model says about its inputs and outputs is kept; a shape is replaced only by one that knows more.

    Args:
        model: changed in place; value names must be unique in the whole model.
        notes: gets a sentence where inference fails.
        folded: constants are folded, so that a size that is still not constant is not known to onnx either.
    """
    data_prop = all(_may_list(node, folded) for node in walk.all_nodes(model.graph))
    try:
        with io.detached(model, "weights") as (proto, _):
            inferred = onnx.shape_inference.infer_shapes(
                proto, check_type=False, strict_mode=False, data_prop=data_prop
            )
    except Exception as error:  # onnx raises whatever an unknown construct leads to
        notes.append(f"shape inference failed, types come from calibration: {' '.join(str(error).split())}")
        return
    known = {info.name: info.type for info in _value_infos(inferred.graph)}
    for value in walk.all_values(model.graph):
        found = known.get(value.name or "")
        if found is not None and found.WhichOneof("value") == "tensor_type":
            _update(value, found)


def _may_list(node: ir.Node, folded: bool) -> bool:
    """Whether onnx may compute the elements of what a node gives: not if there are very many."""
    if node.op_type not in ("ConstantOfShape", "Range") or node.domain != "":
        return True
    inputs = folding.constants_of(node)
    if inputs is None:
        return folded
    size = evaluate.result_bytes(node, inputs)
    return size is not None and size <= 8 * _LISTED


def _update(value: ir.Value, found: onnx.TypeProto) -> None:
    if value.is_initializer():
        return
    if value.dtype is None and found.tensor_type.elem_type:
        value.type = ir.TensorType(ir.DataType(found.tensor_type.elem_type))
    if not found.tensor_type.HasField("shape") or value.is_graph_input():
        return
    shape = ir.serde.deserialize_type_proto_for_shape(found)
    if shape is None:
        return
    if value.shape is None or (
        not value.is_graph_output() and shape.rank() == value.shape.rank() and _fixed(shape) > _fixed(value.shape)
    ):
        value.shape = shape


def _fixed(shape: ir.Shape) -> int:
    return sum(isinstance(dim, int) for dim in shape)


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.output
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _value_infos(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for body in attribute.graphs:
                    yield from _value_infos(body)
