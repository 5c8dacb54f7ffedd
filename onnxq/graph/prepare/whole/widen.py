"""float16 and bfloat16 become float32 inside a model, which is exact; float64 becomes float32, which is compared after.

Inputs and outputs of the graph keep their types: a Cast stands behind each input and before each output. Weights that
come through quantization as they were go back to their own type in the file (`narrow`), so that it does not grow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.reading.ops import EDGE

WIDE = ir.DataType.FLOAT
HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types whose every value float32 holds."""

BFLOAT16 = frozenset({ir.DataType.BFLOAT16})

EVERY = HALVES | {ir.DataType.DOUBLE}

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})
"""Attributes that name an element type."""

_BITS = frozenset({"BitCast"})
"""Operators that see the bits of a number, not its value."""

_SMALLEST = 1024
"""Bytes below which a weight is not worth a Cast."""

_STORED = "onnxq.stored_as"
"""Key of ``ir.Model.meta``: the narrow type that the weights of the file had."""


def run(model: ir.Model, kinds: Collection[ir.DataType]) -> int:
    """Let a model compute in float32.

    Args:
        model: changed in place; functions are inlined, constants are initializers, names are unique.
        kinds: the element types that become float32.

    Returns:
        How many values, constants and attributes were changed; 0 where the model has none of these types, and where an
        input or output of such a type is no tensor, or an operator sees the bits of its numbers.
    """
    graph = model.graph
    edges = _Edges.of(graph, kinds)
    inner = [value for value in walk.all_values(graph) if value not in edges.given]
    found = any(_kind(value.type) in kinds for value in inner if value not in edges.casts)
    if not found and not edges.inputs and not _attributes(graph, kinds, edges, change=False):
        return 0
    if not edges.are_tensors or any(node.op_type in _BITS for node in walk.all_nodes(graph)):
        return 0
    names = walk.Names(model)
    stored = {v.const_value.dtype for v in inner if v.const_value is not None} & HALVES & set(kinds)
    types = {value: value.dtype for value in edges.outputs}
    changed = sum(_widen_value(value, kinds) for value in inner if value not in edges.casts)
    changed += _attributes(graph, kinds, edges, change=True)
    for value in edges.outputs:
        _cast_output(graph, value, types[value], names)
    for value in edges.inputs:
        _cast_input(graph, value, names)
    if len(stored) == 1:
        model.meta[_STORED] = next(iter(stored))
    return changed + len(edges.outputs) + len(edges.inputs)


@dataclass(frozen=True)
class _Edges:
    """The inputs and outputs of a graph that have a narrow type.

    Attributes:
        given: all inputs.
        inputs: those that are read by more than a Cast to float32.
        outputs: outputs that something else than a Cast from float32 makes.
        casts: outputs that such a Cast makes.
    """

    given: frozenset[ir.Value]
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    casts: frozenset[ir.Value]

    @classmethod
    def of(cls, graph: ir.Graph, kinds: Collection[ir.DataType]) -> _Edges:
        given = frozenset(value for value in graph.inputs if _kind(value.type) in kinds)
        outputs = [value for value in graph.outputs if _kind(value.type) in kinds and value not in given]
        casts = frozenset(value for value in outputs if _is_cast_back(value))
        inputs = [v for v in graph.inputs if v in given and not all(_is_cast(use.node) for use in v.uses())]
        return cls(given, inputs, [value for value in dict.fromkeys(outputs) if value not in casts], casts)

    @property
    def are_tensors(self) -> bool:
        """Whether a Cast can stand at each."""
        tensors = all(isinstance(value.type, ir.TensorType) for value in (*self.inputs, *self.outputs))
        return tensors and all(value.producer() is not None for value in self.outputs)


def _is_cast(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Cast" and walk.attr_int(node, "to") == WIDE


def _is_cast_back(value: ir.Value) -> bool:
    """Whether a Cast from float32 makes the value, for the caller alone."""
    node = value.producer()
    if node is None or node.op_type != "Cast" or value.uses():
        return False
    return node.inputs[0] is not None and node.inputs[0].dtype == WIDE


def edge_of(model: ir.Model, kinds: Collection[ir.DataType]) -> str | None:
    """The name of an input or output of such a type; None where there is none."""
    edges = (*model.graph.inputs, *model.graph.outputs)
    return next((value.name for value in edges if _kind(value.type) in kinds), None)


def narrow(model: ir.Model, kind: ir.DataType | None = None, *, exact: bool = True, but: Collection[int] = ()) -> int:
    """Store float32 weights that a narrower type holds in it, with a Cast behind them, which runtimes fold.

    Args:
        model: changed in place.
        kind: the type; None takes that which `run` found, and does nothing where it found none.
        exact: only weights that the type holds exactly; else all that it holds at all.
        but: ids of the values that stay as they are.

    Returns:
        How many weights were changed.
    """
    kind = kind or model.meta.get(_STORED)
    if kind is None:
        return 0
    names = walk.Names(model)
    found = [(g, value) for g in walk.all_graphs(model.graph) for value in g.initializers.values()]
    return sum(_narrow(graph, value, kind, names, exact) for graph, value in found if id(value) not in but)


def _narrow(graph: ir.Graph, value: ir.Value, kind: ir.DataType, names: walk.Names, exact: bool) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != WIDE or tensor.nbytes < _SMALLEST or not value.uses() or value.name is None:
        return False
    if value.is_graph_output() or value.is_graph_input() or _packs(value):
        return False
    array = tensor.numpy()
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(kind.numpy())
        if exact and not np.array_equal(small.astype(np.float32), array, equal_nan=True):
            return False
    if not exact and why_not(array, kind):
        return False
    wide = ir.Value(name=names.value(f"{value.name}_float32"), type=ir.TensorType(WIDE), shape=value.shape)
    value.replace_all_uses_with(wide)
    value.const_value = ir.Tensor(small, dtype=kind, name=value.name)
    value.type = ir.TensorType(kind)
    cast = _cast(value, wide, WIDE, names)
    first = next(iter(graph), None)
    if first is None:
        graph.append(cast)
    else:
        graph.insert_before(first, cast)
    return True


def _packs(value: ir.Value) -> bool:
    """Whether a kernel packs a constant as it loads: with optimizations off, what comes from a Cast is no constant."""
    return any(
        use.node.op_type == "MatMulNBits" and walk.attr_int(use.node, "accuracy_level", 0) for use in value.uses()
    )


_LOST = 1e-2
"""Share of a constant's length that rounding may take. A normal number loses a thousandth at most."""


def why_not(array: Array, kind: ir.DataType) -> str:
    """Why a 16-bit type cannot stand for a float32 constant; empty where it can.

    Args:
        array: float32.
        kind: float16 or bfloat16.
    """
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(kind.numpy()).astype(np.float64)
    finite = np.isfinite(array)
    name = kind.name.lower()
    if not np.isfinite(small[finite]).all():
        largest = float(np.abs(array[finite]).max())
        return f"holds {largest:.4g}, which is more than {name} reaches"
    length = float(np.linalg.norm(array[finite].astype(np.float64)))
    lost = float(np.linalg.norm(small[finite] - array[finite]))
    if lost > _LOST * length:
        least = float(np.abs(array[array != 0]).min())
        return f"holds numbers as small as {least:.2g}, of which {name} keeps too little"
    return ""


def _kind(kind: ir.TypeProtocol | None) -> ir.DataType | None:
    """The element type of a tensor, or of what a sequence or an optional value holds."""
    while isinstance(kind, ir.SequenceType | ir.OptionalType):
        kind = kind.elem_type
    return kind.dtype if isinstance(kind, ir.TensorType | ir.SparseTensorType) else None


def _widened(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    match kind:
        case ir.SequenceType():
            return ir.SequenceType(_widened(kind.elem_type))
        case ir.OptionalType():
            return ir.OptionalType(_widened(kind.elem_type))
        case ir.SparseTensorType():
            return ir.SparseTensorType(WIDE)
    return ir.TensorType(WIDE)


def _widen_value(value: ir.Value, kinds: Collection[ir.DataType]) -> bool:
    if value.type is None or _kind(value.type) not in kinds:
        return False
    value.type = _widened(value.type)
    if value.const_value is not None:
        value.const_value = _wide_tensor(value.const_value)
    return True


def _wide_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name, doc_string=tensor.doc_string)


def _attributes(graph: ir.Graph, kinds: Collection[ir.DataType], edges: _Edges, *, change: bool) -> int:
    """Attributes that name such a type or hold a tensor of it."""
    found = 0
    for node in walk.all_nodes(graph):
        if node.outputs and node.outputs[0] in edges.casts:
            continue
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and attribute.as_int() in kinds:
                found += 1
                if change:
                    node.attributes[name] = ir.AttrInt64(name, int(WIDE))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in kinds:
                found += 1
                if change:
                    node.attributes[name] = ir.AttrTensor(name, _wide_tensor(attribute.value))
    return found


def _cast(source: ir.Value, result: ir.Value, kind: ir.DataType, names: walk.Names) -> ir.Node:
    attributes = [ir.AttrInt64("to", int(kind))]
    node = ir.Node("", "Cast", [source], attributes, outputs=[result], name=names.node(f"{result.name}_cast"))
    node.meta[EDGE] = True
    return node


def _cast_input(graph: ir.Graph, value: ir.Value, names: walk.Names) -> None:
    readers = list(value.uses())
    if not readers:
        return
    wide = ir.Value(name=names.value(f"{value.name}_float32"), type=ir.TensorType(WIDE), shape=value.shape)
    for use in readers:
        use.node.replace_input_with(use.idx, wide)
    graph.insert_before(graph[0], _cast(value, wide, WIDE, names))


def _cast_output(graph: ir.Graph, value: ir.Value, kind: ir.DataType | None, names: walk.Names) -> None:
    assert kind is not None
    result = ir.Value(name=value.name, type=ir.TensorType(kind), shape=value.shape)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
    value.name = names.value(f"{result.name}_float32")
    graph.append(_cast(value, result, kind, names))
