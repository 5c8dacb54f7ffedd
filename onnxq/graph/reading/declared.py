"""What a file declares of its values may be wrong; runtimes hardly look at it, so neither does onnxq rely on it.

A dimension that no tensor can have is unknown, and initializers have the type and shape of their contents.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk

_LARGEST = 2**40
"""No tensor has a dimension of this size."""


def settle(model: ir.Model) -> int:
    """Make unknown what is impossible, in the main graph, its subgraphs and the functions.

    Returns:
        How many values were changed.
    """
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    return sum(_settle(value) for graph in graphs for value in walk.all_values(graph))


def _settle(value: ir.Value) -> bool:
    tensor = value.const_value
    if value.is_initializer() and tensor is not None:
        return _settle_initializer(value, tensor)
    if value.shape is None or not any(_impossible(dim) for dim in value.shape):
        return False
    value.shape = ir.Shape([None if _impossible(dim) else dim for dim in value.shape])
    return True


def _settle_initializer(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    shape = ir.Shape(tensor.shape.numpy(), frozen=True)
    if value.shape == shape and value.dtype == tensor.dtype:
        return False
    value.type, value.shape = ir.TensorType(tensor.dtype), shape
    return True


def _impossible(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) and not 0 <= dim < _LARGEST
