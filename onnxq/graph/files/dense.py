"""Sparse constants become dense ones, which is all that the rest of onnxq knows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from onnxq.errors import ModelError
from onnxq.graph import names

_LARGEST = 2**31
"""Bytes that one constant may take when it is dense."""


def dense(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Write sparse initializers, and Constant nodes with a ``sparse_value``, as dense tensors.

    Args:
        proto: unchanged.
        where: what messages call the model.

    Returns:
        The message itself where it has none of them, else a copy.

    Raises:
        ModelError: indices that do not fit the shape, a type of elements that numpy does not know, or too many of them.
    """
    if not any(scope.sparse_initializer for scope in names.scopes(proto.graph)) and not any(_sparse_constants(proto)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for scope in names.scopes(copy.graph):
        for sparse in scope.sparse_initializer:
            scope.initializer.append(_dense(sparse, sparse.values.name, where))
        del scope.sparse_initializer[:]
    for attribute in _sparse_constants(copy):
        tensor = _dense(attribute.sparse_tensor, "", where)
        attribute.Clear()
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return copy


def _sparse_constants(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    nodes = [*(node for scope in names.scopes(proto.graph) for node in scope.node)]
    nodes += [node for function in proto.functions for node in function.node]
    for node in nodes:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            yield from (entry for entry in node.attribute if entry.type == onnx.AttributeProto.SPARSE_TENSOR)


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    """Indices are numbers into the flat tensor, (count,), or coordinates, (count, rank)."""
    label = f"{where}: sparse constant '{name}'"
    shape = tuple(sparse.dims)
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        if min(shape, default=0) < 0 or math.prod(shape) * values.itemsize > _LARGEST:
            raise ModelError(f"{label}: shape {list(shape)} is too large to be stored densely; export the model again")
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        if indices.size and not 0 <= indices.min() <= indices.max() < math.prod(shape):
            raise ValueError("an index is outside of its shape")
        array = np.zeros(math.prod(shape), values.dtype)
        array[indices] = values
    except ModelError:
        raise
    except Exception as error:  # whatever damaged indices, types or shapes lead to
        raise ModelError(f"{label}: is damaged: {error}; export the model again") from error
    tensor = onnx.numpy_helper.from_array(array.reshape(shape), name)
    tensor.doc_string = sparse.values.doc_string
    return tensor
