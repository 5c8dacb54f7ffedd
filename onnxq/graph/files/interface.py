"""What a model file takes, gives and holds, by what it declares, without a runtime."""

from __future__ import annotations

import os

import numpy as np
import onnx_ir as ir

from onnxq.data.feeds import InputSpec
from onnxq.graph import walk
from onnxq.graph.files import io


def interface_of(path: str | os.PathLike[str]) -> tuple[list[InputSpec], list[InputSpec]]:
    """Inputs and outputs of a model file; types that are not declared count as float32.

    Raises:
        ModelError: the file cannot be read.
    """
    graph = io.load(path).graph
    inputs = [_spec(value) for value in graph.inputs if not value.is_initializer()]
    return inputs, [_spec(value) for value in graph.outputs]


def _spec(value: ir.Value) -> InputSpec:
    dtype = np.dtype(np.float32) if value.dtype is None else _numpy(value.dtype)
    shape = () if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return InputSpec(value.name or "", dtype, shape)


def _numpy(dtype: ir.DataType) -> np.dtype[np.generic]:
    return np.dtype(np.str_) if dtype == ir.DataType.STRING else dtype.numpy()


def nodes_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The operator of each node of a model file, those in subgraphs too, by name.

    Raises:
        ModelError: the file cannot be read.
    """
    return {node.name or "": node.op_type for node in walk.all_nodes(io.load(path).graph)}
