"""Read models: bad files are one-line errors, and inputs never change. `onnxq.graph.files.saving` writes them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.mapped import expect, forget
from onnxq.errors import ModelError
from onnxq.graph import names, walk
from onnxq.graph.files import external
from onnxq.graph.files.checker import check_weights
from onnxq.graph.files.dense import dense
from onnxq.graph.files.endless import nesting, too_deep
from onnxq.graph.files.lean import without_types_of_constants
from onnxq.graph.files.saved_by_runtime import refuse_blocked
from onnxq.graph.files.sound import sound
from onnxq.graph.reading import declared

__all__ = ["Source", "check_weights", "detached", "load", "model_hash", "size_bytes", "to_bytes", "to_proto"]

Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto
"""Where a model comes from: a file, the contents of one, or a model in memory."""

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes a model file may have before its weights go to a second file: protobuf's 2 GB with some slack."""

_EXTERNAL_FROM = 1024
"""Initializers of fewer bytes stay in the model file: runtimes read shapes and axes while they load."""

_MESSAGES = 90
"""Messages within messages that protobuf reads with certainty; it stops at 100."""

_FILES = "onnxq.external_files"
"""Key of ``ir.Model.meta``: the files a loaded model maps its weights from."""


def load(source: Source) -> ir.Model:
    """Read a model without ever changing its source.

    Weights in external files are mapped, not read; those in the protobuf are copied out of it once.

    Args:
        source: path of an ``.onnx`` file, its bytes, or a model in memory.

    Returns:
        A model that the caller may change freely.

    Raises:
        ModelError: not a model file, or one that cannot be used; the message names the file and the reason.
    """
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, "model", None)
    if isinstance(source, bytes):
        return _from_proto(_parsed(source, "model"), "model", None)
    path = Path(source)
    return _from_proto(_read(path), str(path), path.parent)


def _read(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a folder, not an ONNX file; name the .onnx file in it")
        if not path.exists():
            raise ModelError(f"{path}: no such file; check the path")
        if not path.is_file():
            raise ModelError(f"{path}: is not a regular file; save the model to one first")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; check the file's permissions") from None
    return _parsed(content, path)


def _parsed(content: bytes, path: Path | str) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{path}: the file is empty; export or download the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:  # protobuf's implementations differ in what they raise
        if (depth := nesting(content)) * 3 > _MESSAGES:
            raise ModelError(f"{path}: {too_deep(depth)}") from None
        raise ModelError(
            f"{path}: not an ONNX model, or a truncated one ({len(content)} bytes do not parse as protobuf); "
            "export or download it again"
        ) from None
    return proto


def _from_proto(proto: onnx.ModelProto, where: str, folder: Path | None) -> ir.Model:
    if proto.ir_version < 1 and not proto.HasField("graph"):
        raise ModelError(f"{where}: not an ONNX model: it has neither an IR version nor a graph")
    if not proto.HasField("graph"):
        raise ModelError(f"{where}: the model has no graph, so it is truncated or damaged; export it again")
    if not proto.opset_import:
        raise ModelError(
            f"{where}: the model imports no operator set, so its operators have no meaning; it is truncated or its "
            "exporter is broken: add opset_import, or export it again"
        )
    if not proto.graph.output:
        raise ModelError(f"{where}: the graph has no outputs; export the model again")
    if not proto.graph.node:
        raise ModelError(f"{where}: the graph has no nodes, so there is nothing to quantize")
    _refuse_maps(proto, where)
    proto = sound(dense(proto, where), where)
    try:
        model = ir.from_proto(proto)
        model.ir_version = max(model.ir_version, 1)
        files = _own_tensors(model, where, folder)
        declared.settle(model)
        names.name_unnamed(proto.graph, model.graph)
        _refuse_dangling(model, where)
        refuse_blocked(model, where)
    except ModelError:
        raise
    except Exception as error:  # onnx_ir raises whatever the damage leads to
        raise ModelError(f"{where}: the model is damaged: {_root_cause(error)}; export it again") from error
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    model.meta[_FILES] = files
    return model


def _refuse_dangling(model: ir.Model, where: str) -> None:
    for node in walk.all_nodes(model.graph):
        for value in node.inputs:
            if value is not None and value.producer() is None and not value.is_graph_input():
                if value.is_initializer():
                    continue
                raise ModelError(
                    f"{where}: node {node.name!r} reads {value.name!r}, which nothing writes; export it again"
                )


def _root_cause(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error) or type(error).__name__).strip().rstrip(".")


def _refuse_maps(proto: onnx.ModelProto, where: str) -> None:
    """onnx_ir has no map types; they come from ZipMap, at the end of classifiers that scikit-learn exports."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
        if kind.HasField("map_type"):
            raise ModelError(
                f"{where}: value '{value.name}' is a map, as ZipMap makes it, and only tensors and sequences are "
                "supported; export the model without ZipMap (skl2onnx: options={'zipmap': False})"
            )


def _own_tensors(model: ir.Model, where: str, folder: Path | None) -> set[Path]:
    """Let no tensor refer to the protobuf, and map external ones; returns the mapped files."""
    data = external.DataFiles(where, folder)

    def own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor):
            return data.tensor(tensor)
        if isinstance(tensor, ir.StringTensor):
            return tensor
        try:
            array = tensor.numpy()
        except (ValueError, TypeError, AssertionError) as error:
            raise ModelError(f"{where}: tensor '{tensor.name}' is damaged: {_root_cause(error)}") from error
        owned = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
        owned.metadata_props.update(tensor.metadata_props)
        return owned

    graphs = list(walk.all_graphs(model.graph))
    for function in model.functions.values():
        graphs.extend(walk.all_graphs(function.graph))
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = own(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.Attr(name, attribute.type, own(attribute.value))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(name, [own(t) for t in attribute.as_tensors()])
    return data.files


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf message with all weights inside; it shares nothing with ``model``."""
    return without_types_of_constants(ir.to_proto(model))


def to_bytes(model: ir.Model) -> bytes:
    """The model as the bytes of a file.

    Raises:
        ModelError: it is larger than protobuf allows (2 GB).
    """
    weights = weights_bytes(model)
    if weights > PROTOBUF_LIMIT:
        raise ModelError(f"model: {weights} bytes of weights exceed protobuf's 2 GB; save it to a file instead")
    return serialized(to_proto(model), "model")


def weights_bytes(model: ir.Model) -> int:
    """Bytes of the weights that may stand in a file of their own."""
    return sum(tensor.nbytes for tensor in large_tensors(model).values())


def model_hash(model: ir.Model) -> str:
    """SHA-256 over structure and weights, in hexadecimal; the same however the weights are stored."""
    with detached(model, "weights") as (proto, tensors):
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes() if tensor.dtype.bitwidth < 8 else tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """A weight as it stands in a file; not copied where that is not needed."""
    return tensor.tobytes() if tensor.dtype.bitwidth < 8 else bytes_of(tensor.numpy())


def bytes_of(array: Array) -> memoryview:
    """The contents of an array, which is not copied where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def large_tensors(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """The weights that may stand in a file of their own."""
    return {
        value: value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= _EXTERNAL_FROM
    }


@contextlib.contextmanager
def detached(model: ir.Model, location: str) -> Iterator[tuple[onnx.ModelProto, list[ir.TensorProtocol]]]:
    """The model as a message whose large weights are references into the file ``location``, and those weights."""
    tensors = large_tensors(model)
    offset = 0
    try:
        for value, tensor in tensors.items():
            value.const_value = ir.ExternalTensor(
                location,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
            offset += tensor.nbytes
        yield without_types_of_constants(ir.to_proto(model)), list(tensors.values())
    finally:
        for value, tensor in tensors.items():
            value.const_value = tensor


def forget_weights(model: ir.Model) -> None:
    """Give the memory back that reading mapped weights took; they are read again where they are needed again."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.Tensor) and value.const_value.nbytes >= _EXTERNAL_FROM:
            forget(value.const_value.numpy())


def expect_weights(node: ir.Node) -> None:
    """Let the system read the mapped weights of a node ahead."""
    for value in node.inputs:
        array = walk.const_array(value)
        if array is not None:
            expect(array)


def mapped_files(model: ir.Model) -> set[Path]:
    """The files that a loaded model reads its weights from, resolved."""
    return set(model.meta.get(_FILES, ()))


def serialized(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> bytes:
    """A message as bytes.

    Raises:
        ModelError: they are more than protobuf allows.
    """
    try:
        return bytes(proto.SerializeToString())
    except Exception:  # protobuf's implementations differ in what they raise
        raise ModelError(f"{path}: more than 2 GB even without its large weights; it cannot be saved as ONNX") from None


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files beside a model that hold its weights, resolved.

    Raises:
        ModelError: as for `load`.
    """
    file = Path(path)
    model = ir.from_proto(_read(file))
    locations = set()
    for graph in walk.all_graphs(model.graph):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                locations.add(str(value.const_value.location))
    data = external.DataFiles(str(path), file.parent)
    return [data.resolve(location) for location in sorted(locations)]


def size_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that a model takes on the disk, its external files included.

    Raises:
        ModelError: as for `load`.
    """
    return sum(file.stat().st_size for file in {Path(path).resolve(), *weight_files(path)})


def size_of(model: bytes | str | os.PathLike[str]) -> int:
    """Bytes of a model that is in memory or on the disk; see `size_bytes`."""
    return len(model) if isinstance(model, bytes) else size_bytes(model)
