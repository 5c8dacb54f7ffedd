"""Nodes that draw random numbers, and copies of a model that draw the same ones whatever runs them."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.traits import Trait, having

_LIKE = having(Trait.DRAWS_LIKE)
_SHAPED = having(Trait.DRAWS)
_DRAWING = _LIKE | _SHAPED | {"Bernoulli", "Multinomial"}
_DROPOUT = "Dropout"
_NAMES = (b"RandomNormal", b"RandomUniform", b"Bernoulli", b"Multinomial", b"Dropout")

_TABLE = 65521
"""Numbers that are drawn once and read from a place of its own by each node; a prime, so that rows do not repeat."""

_LEAST_OPSET = {"Multinomial": 13}
_LEAST = 11
"""The operator sets from which there are the operators that read a table."""


def may_draw(model: bytes | Path) -> bool:
    """Whether a model file names an operator that draws; a quick look that spares reading the others.

    Args:
        model: contents of a model file, or its path.
    """
    if isinstance(model, bytes):
        return any(name in model for name in _NAMES)
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(name) >= 0 for name in _NAMES)
    except (OSError, ValueError):
        return False


def drawing_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that draw random numbers, also in subgraphs and functions; Dropout left in training mode is one."""
    return [node for graph in _graphs(model) for node in graph if _draws(node)]


def without_draws(model: ir.Model) -> ir.Model:
    """Copy a model and let its drawing nodes read numbers of the same distribution from a table.

    The numbers depend on the name of a node's output and the shape alone: two copies whose names agree get the same, in
    each run. Nodes of an operator set that is too old for that are left as they are.

    Args:
        model: unchanged.
    """
    copy = model.clone()
    for node in drawing_nodes(copy):
        if (copy.opset_imports.get("") or 0) >= _LEAST_OPSET.get(node.op_type, _LEAST):
            _replace(node)
    return copy


def still_copy(source: bytes | Path) -> tuple[ir.Model, str] | None:
    """The same of a model file.

    Args:
        source: its contents, or its path.

    Returns:
        (copy, node): the name and operator of a node that draws; None where none does.

    Raises:
        ModelError: the file cannot be read.
    """
    model = io.load(onnx.load_model_from_string(source) if isinstance(source, bytes) else source)
    nodes = drawing_nodes(model)
    if not nodes:
        return None
    return without_draws(model), f"{nodes[0].op_type} {nodes[0].name or nodes[0].outputs[0].name!r}"


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from walk.all_graphs(model.graph)
    for function in model.functions.values():
        yield from walk.all_graphs(function.graph)


def _draws(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == _DROPOUT:
        training = walk.input_at(node, 2)
        array = walk.const_array(training)
        return training is not None and (array is None or bool(np.any(array)))
    return node.op_type in _DRAWING


class _Writer:
    """Appends nodes in front of one that they take the place of."""

    def __init__(self, node: ir.Node) -> None:
        graph = node.graph
        assert graph is not None
        self._graph, self._node, self._count = graph, node, 0
        self.base = node.outputs[0].name or node.name or "draw"

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A new node's only output."""
        node = ir.node(op_type, list(inputs), attributes=attributes)
        self._count += 1
        node.name = node.outputs[0].name = f"{self.base}.draw.{self._count}"
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def constant(self, array: Array) -> ir.Value:
        """A new constant."""
        return self.op("Constant", value=ir.tensor(array))

    def numbers(self, shape: ir.Value, table: Array) -> ir.Value:
        """As many numbers of a table as a shape asks for, from the node's own place on."""
        start = np.int64(zlib.crc32(self.base.encode()) % _TABLE)
        size = self.op("ReduceProd", shape, keepdims=0)
        places = self.op("Range", self.constant(start), self.op("Add", size, self.constant(start)), self._one())
        found = self.op("Gather", self.constant(table), self.op("Mod", places, self.constant(np.int64(_TABLE))))
        return self.op("Reshape", found, shape, allowzero=1) if self._allows_zero else self.op("Reshape", found, shape)

    def _one(self) -> ir.Value:
        return self.constant(np.int64(1))

    @property
    def _allows_zero(self) -> bool:
        return (self._graph.opset_imports.get("") or 0) >= 14


def _replace(node: ir.Node) -> None:
    writer = _Writer(node)
    generator = np.random.default_rng(0)
    uniform = generator.random(_TABLE, np.float32)
    given = [value for value in node.inputs if value is not None]
    if node.op_type == _DROPOUT:
        results = _dropout(writer, node, given[0], uniform)
    elif node.op_type == "Multinomial":
        results = [_multinomial(writer, node, given[0], uniform)]
    elif node.op_type == "Bernoulli":
        drawn = writer.op("Less", writer.numbers(writer.op("Shape", given[0]), uniform), _as_float(writer, given[0]))
        results = [_as_asked(writer, node, drawn, given[0])]
    else:
        normal = node.op_type.startswith("RandomNormal")
        table = generator.standard_normal(_TABLE, np.float32) if normal else uniform
        names = ("scale", "mean") if normal else ("high", "low")
        first, second = (_number(node, name, default) for name, default in zip(names, (1.0, 0.0), strict=True))
        scale = first if normal else first - second
        like = node.op_type in _LIKE
        shape = (
            writer.op("Shape", given[0])
            if like
            else writer.constant(np.asarray(node.attributes["shape"].as_ints(), np.int64))
        )
        numbers = writer.numbers(shape, np.asarray(table * np.float32(scale) + np.float32(second), np.float32))
        results = [_as_asked(writer, node, numbers, given[0] if like else None)]
    graph = node.graph
    assert graph is not None
    for old, new in zip(node.outputs, results, strict=False):
        name, kind = old.name, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name
        new.type = kind if kind is not None else new.type
        new.shape = old.shape if old.shape is not None else new.shape
    graph.remove(node, safe=True)


def _number(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.as_float())


def _as_float(writer: _Writer, value: ir.Value) -> ir.Value:
    return writer.op("Cast", value, to=int(ir.DataType.FLOAT))


def _as_asked(writer: _Writer, node: ir.Node, value: ir.Value, like: ir.Value | None) -> ir.Value:
    """The numbers in the type that the node's attribute asks for, or its input has."""
    asked = node.attributes.get("dtype")
    kind = int(asked.as_int()) if asked is not None else int(like.dtype) if like is not None and like.dtype else None
    if kind is None and like is not None and (node.graph is None or _opset(node) >= 15):
        return writer.op("CastLike", value, like)
    return writer.op("Cast", value, to=kind or int(ir.DataType.FLOAT))


def _opset(node: ir.Node) -> int:
    graph = node.graph
    return (graph.opset_imports.get("") or 0) if graph is not None else 0


def _dropout(writer: _Writer, node: ir.Node, value: ir.Value, uniform: Array) -> list[ir.Value]:
    given = walk.input_at(node, 1)
    ratio = _as_float(writer, given) if given is not None else writer.constant(np.float32(0.5))
    training = walk.input_at(node, 2)
    assert training is not None
    drawn = writer.op("GreaterOrEqual", writer.numbers(writer.op("Shape", value), uniform), ratio)
    kept = writer.op("Or", drawn, writer.op("Not", training))
    share = writer.op(
        "Where", training, writer.op("Sub", writer.constant(np.float32(1)), ratio), writer.constant(np.float32(1))
    )
    scaled = writer.op("Div", writer.op("Mul", _as_float(writer, value), _as_float(writer, kept)), share)
    back = writer.op("Cast", scaled, to=int(value.dtype)) if value.dtype else scaled
    return [back, kept]


def _multinomial(writer: _Writer, node: ir.Node, value: ir.Value, uniform: Array) -> ir.Value:
    """The first class whose sum of probabilities exceeds the number drawn."""
    asked = node.attributes.get("sample_size")
    count = int(asked.as_int()) if asked is not None else 1
    sums = writer.op("CumSum", writer.op("Softmax", _as_float(writer, value), axis=1), writer.constant(np.int64(1)))
    items = writer.op("Gather", writer.op("Shape", value), writer.constant(np.array([0], np.int64)))
    drawn = writer.numbers(writer.op("Concat", items, writer.constant(np.array([count], np.int64)), axis=0), uniform)
    passed = writer.op(
        "Less",
        writer.op("Unsqueeze", sums, writer.constant(np.array([1], np.int64))),
        writer.op("Unsqueeze", drawn, writer.constant(np.array([2], np.int64))),
    )
    classes = writer.op(
        "Sub", writer.op("Gather", writer.op("Shape", value), writer.constant(np.int64(1))), writer._one()
    )
    chosen = writer.op(
        "Min",
        writer.op(
            "ReduceSum",
            writer.op("Cast", passed, to=int(ir.DataType.INT64)),
            writer.constant(np.array([2], np.int64)),
            keepdims=0,
        ),
        classes,
    )
    kind = node.attributes.get("dtype")
    return writer.op("Cast", chosen, to=int(kind.as_int()) if kind is not None else int(ir.DataType.INT32))
