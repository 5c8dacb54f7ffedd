"""Give symbolic dimensions of a model fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.errors import RecipeError, there_are
from onnxq.graph import walk


def fix_dims(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Replace named dimensions in the shapes of all values, subgraphs included.

    The shape of an output that has other symbols too is forgotten, so that it is inferred from what is fixed.

    Args:
        model: changed in place.
        sizes: by the name of the dimension, or ``input:axis`` for one of an input that has no name, or shares its name
            with one of another length.

    Returns:
        How many dimensions were fixed.

    Raises:
        RecipeError: no input or output of the model has a dimension of that name.
    """
    signature = (*model.graph.inputs, *model.graph.outputs)
    known = {name: None for value in signature for name in _symbols(value)}
    single = {f"{value.name}:{axis}": (value, axis) for value in model.graph.inputs for axis in _open(value)}
    known |= {f"{value.name}:{axis}": None for value in model.graph.inputs for axis in _unnamed(value)}
    for name in sizes:
        if name not in known and name not in single:
            there = there_are(name, known) if known else "all of its dimensions are fixed, or have no name"
            raise RecipeError(f"--fix-dim {name}: no input or output of the model has such a dimension; {there}")
    fixed = 0
    for name, (value, axis) in single.items():
        if name in sizes and value.shape is not None:
            value.shape = ir.Shape([sizes[name] if i == axis else dim for i, dim in enumerate(value.shape)])
            fixed += 1
    values = dict.fromkeys((*walk.all_values(model.graph), *model.graph.outputs))
    for value in values:
        if value.shape is None or not any(name in sizes for name in _symbols(value)):
            continue
        dims: list[int | ir.SymbolicDim] = []
        for dim in value.shape:
            size = sizes.get(dim.value or "") if isinstance(dim, ir.SymbolicDim) else None
            fixed += size is not None
            dims.append(dim if size is None else size)
        value.shape = ir.Shape(dims)
    for output in model.graph.outputs:
        if (_symbols(output) or _unnamed(output)) and output.producer() is not None:
            output.shape = None  # sizes that follow from those that are fixed now
    return fixed


def _symbols(value: ir.Value) -> list[str]:
    if value.shape is None:
        return []
    return [dim.value for dim in value.shape if isinstance(dim, ir.SymbolicDim) and isinstance(dim.value, str)]


def _open(value: ir.Value) -> list[int]:
    """The axes whose length is no number."""
    return [] if value.shape is None else [i for i, dim in enumerate(value.shape) if isinstance(dim, ir.SymbolicDim)]


def _unnamed(value: ir.Value) -> list[int]:
    """The axes whose length has neither a number nor a name."""
    if value.shape is None:
        return []
    return [i for i, dim in enumerate(value.shape) if isinstance(dim, ir.SymbolicDim) and not dim.value]
