"""Nodes whose inputs are all constant are computed once; the results are bounded in size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.prepare.folding import evaluate
from onnxq.graph.prepare.folding.affine_layer import WEIGHTED

_GROWTH = 64 * 1024
"""Bytes by which a result may exceed the constants it replaces."""

_WEIGHT = 64 * 1024 * 1024
"""The same for the weight of a layer, which is quantized after."""

_FILLS = frozenset({"ConstantOfShape", "Expand", "Tile"})

_MOVES = traits.MOVING | {"Cast", "CastLike", "Concat", "Identity", "Slice", "Split"}
"""Operators that only arrange what is there: a weight behind them must become an initializer whatever its size."""


def run(model: ir.Model) -> int:
    """Fold the main graph and every body; quantized weights keep their DequantizeLinear.

    Returns:
        How many nodes were folded.
    """
    version = walk.opset(model)
    return sum(
        _fold(node, version)
        for graph in list(walk.all_graphs(model.graph))
        for node in list(graph)
        if node.graph is graph
    )


def _fold(node: ir.Node, version: int) -> bool:
    if node.domain != "" or node.op_type not in evaluate.OPERATORS or walk.subgraphs(node):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    inputs = constants_of(node)
    if inputs is None:
        return False
    allowed = sum(_freed(value) for value in node.inputs) + (_WEIGHT if _makes_a_weight(node) else _GROWTH)
    size = evaluate.result_bytes(node, inputs)
    if size is None or (size > allowed and node.op_type not in _MOVES):
        return False
    results = evaluate.evaluate(node, inputs, version)
    if results is None or not _fits(node, results):
        return False
    if sum(result.nbytes for result in results) > allowed and node.op_type not in _MOVES:
        return False
    _replace(node, results)
    return True


def _makes_a_weight(node: ir.Node) -> bool:
    """Whether a node that fills a tensor makes a layer's weight, by itself or through operators that arrange it."""
    if node.op_type not in _FILLS:
        return False
    pending = list(node.outputs)
    while pending:
        for reader, index in pending.pop().uses():
            if reader.op_type in WEIGHTED and index == 1:
                return True
            if reader.op_type in _MOVES and index == 0 and reader.op_type not in ("Concat", "CastLike"):
                pending.extend(reader.outputs)
    return False


def constants_of(node: ir.Node) -> list[Array | None] | None:
    """The contents of all inputs, None for each left out; None as a whole where an input is not constant."""
    if node.op_type == "Shape" and node.inputs:
        return _static_shape(node)
    arrays: list[Array | None] = []
    for value in node.inputs:
        array = walk.const_array(value)
        if array is None and value is not None:
            return None
        arrays.append(array)
    return arrays if arrays else None


def _static_shape(node: ir.Node) -> list[Array | None] | None:
    """A stand-in of the input's shape, of no memory, where that shape is fixed."""
    source = node.inputs[0]
    shape = walk.dims(source)
    if source is None or source.is_graph_output() or shape is None:  # of an output there is what the file claims
        return None
    fixed = tuple(dim for dim in shape if dim is not None)
    if len(fixed) < len(shape):
        return None
    try:
        return [np.broadcast_to(np.zeros((), np.int8), fixed)]
    except ValueError:  # more elements than any array can have
        return None


def _freed(value: ir.Value | None) -> int:
    """Bytes of a constant that nothing else reads."""
    if value is None or value.const_value is None or not value.is_initializer() or walk.only_use(value) is None:
        return 0
    return value.const_value.nbytes


def _fits(node: ir.Node, results: list[Array]) -> bool:
    """Whether each result has the type the model says the value has."""
    if len(results) != len(node.outputs):
        return False
    for output, result in zip(node.outputs, results, strict=True):
        try:
            found = ir.DataType.from_numpy(result.dtype)
        except TypeError:
            return False
        if output.dtype is not None and output.dtype != found:
            return False
    return True


def _replace(node: ir.Node, results: list[Array]) -> None:
    graph = node.graph
    assert graph is not None
    inputs = list(node.inputs)
    for output, result in zip(node.outputs, results, strict=True):
        if not output.uses():
            continue
        name = output.name
        assert name is not None
        output.name = None
        output.replace_all_uses_with(edit.add_initializer(graph, name, result))
    edit.remove_node(node)
    for value in inputs:
        edit.drop_unused_initializer(value)
