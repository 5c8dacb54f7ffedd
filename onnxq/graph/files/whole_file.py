"""A model with all its weights in one file, written weight by weight: protobuf alone would hold all of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxq.core.mapped import Spill, forget
from onnxq.errors import ModelError
from onnxq.graph.files import io

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write_whole(model: ir.Model, file: BinaryIO) -> None:
    """Write a model as one message.

    The large initializers come last in the graph, where readers of protobuf take them as well as anywhere.

    Args:
        model: unchanged.
        file: open for writing.

    Raises:
        ModelError: it is larger than protobuf allows.
    """
    with io.detached(model, "weights") as (proto, tensors):
        large = {name for value in io.large_tensors(model) if (name := value.name)}
        heads = [_head(tensor) for tensor in proto.graph.initializer if tensor.name in large]
        small = [tensor for tensor in proto.graph.initializer if tensor.name not in large]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    around = proto.SerializeToString()
    fields = [_field_of(head, tensor.nbytes) for head, tensor in zip(heads, tensors, strict=True)]
    length = len(graph) + sum(len(field) + t.nbytes for field, t in zip(fields, tensors, strict=True))
    if length + len(around) > io.PROTOBUF_LIMIT:
        raise ModelError("model: it exceeds protobuf's 2 GB; save it with its weights beside it")
    file.write(around + _key(_GRAPH, length) + graph)
    _write_weights(fields, tensors, file)


def write_beside(model: ir.Model, spill: Spill) -> Path:
    """Write a model whose large weights are in a spill file beside that file, to be opened there.

    Returns:
        The file.

    Raises:
        ModelError: more than 2 GB of it are not in the spill file.
        OSError: it cannot be written.
    """
    path = spill.path.with_name("model.onnx")
    kept = {}
    try:
        for value, tensor in io.large_tensors(model).items():
            place = spill.place_of(tensor.numpy()) if type(tensor) is ir.Tensor else None
            if place is not None:
                shape = ir.Shape(tensor.shape.numpy())
                kept[value] = tensor
                value.const_value = ir.ExternalTensor(
                    spill.path.name, place, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
                )
        path.write_bytes(io.serialized(ir.to_proto(model), path))
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
    return path


def _write_weights(fields: Sequence[bytes], tensors: Sequence[ir.TensorProtocol], file: BinaryIO) -> None:
    for field, tensor in zip(fields, tensors, strict=True):
        file.write(field)
        file.write(io.tensor_bytes(tensor))
        if isinstance(tensor, ir.Tensor):
            forget(tensor.numpy())


def _head(external: onnx.TensorProto) -> bytes:
    """All of a tensor but its numbers."""
    head = onnx.TensorProto()
    head.CopyFrom(external)
    head.ClearField("external_data")
    head.ClearField("data_location")
    return bytes(head.SerializeToString())


def _field_of(head: bytes, size: int) -> bytes:
    """What stands before the bytes of a weight in the message of a graph."""
    raw = _key(_RAW, size)
    return _key(_INITIALIZER, len(head) + len(raw) + size) + head + raw


def _key(number: int, length: int) -> bytes:
    """Number and length of a field, as varints (Protocol Buffers, Encoding)."""
    out = bytearray()
    for given in (number << 3 | 2, length):
        rest = given
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)
