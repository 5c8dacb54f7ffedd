"""Read a model as a runtime has optimized it: which of its nodes compute on integers, and which only seem to."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.graph import traits, walk
from onnxq.graph.names import scopes
from onnxq.graph.traits import Trait, having

_LAYERS = traits.LAYERS - {"ConvTranspose"} | {"FusedConv", "FusedGemm", "FusedMatMul"}
_INTEGER = having(Trait.ROUNDS_AT_INFERENCE) | {"QGemm"}
_GIVES_OTHERS = frozenset("DequantizeLinear Cast Shape Size ArgMax ArgMin".split())
"""Operators that read integers and give none of that grid."""

_QGEMM_FLOAT = 7
"""Inputs of a QGemm that gives floats; more are the parameters of its result."""

_TYPES = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
_ADDED = re.compile(r"(_token_\d+|/duplicated|/MatMulAddFusion\w*|_transformed)+$")
"""What ONNX Runtime appends to the name of a node that it replaces."""


_FLOAT8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})


def user_name(name: str) -> str:
    """The name that a node had before the runtime optimized the model."""
    return _ADDED.sub("", name)


def integer_nodes(path: Path) -> set[str]:
    """Names of the nodes that compute on 8-bit integers, or move them.

    Args:
        path: a model that ONNX Runtime saved after its optimizations.
    """
    found: set[str] = set()
    integers: set[str] = set()
    for graph in scopes(onnx.load(path, load_external_data=False).graph):
        integers |= {value.name for value in graph.input if value.type.tensor_type.elem_type in _TYPES}
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                integers |= set(node.output)
                continue
            multiplies = node.op_type.startswith("QLinear") or node.op_type in _INTEGER
            reads = bool(node.input) and node.input[0] in integers and node.op_type != "DequantizeLinear"
            if multiplies or reads:
                found.add(user_name(node.name or node.output[0]))
            if _gives_integers(node, multiplies=multiplies, reads=reads):
                integers |= set(node.output)
    return found


def _gives_integers(node: onnx.NodeProto, *, multiplies: bool, reads: bool) -> bool:
    if multiplies:
        return node.op_type.startswith("QLinear") or (node.op_type == "QGemm" and len(node.input) > _QGEMM_FLOAT)
    return reads and node.op_type not in _GIVES_OTHERS


def dequantized_layers(path: Path) -> list[str]:
    """Names of the layers whose weight is dequantized to float at every inference.

    Args:
        path: a model that ONNX Runtime saved after its optimizations.

    Returns:
        The names before the runtime renamed them, in graph order, layers in subgraphs behind those around them; an
        unnamed layer gives its output's name.
    """
    graphs = scopes(onnx.load(path, load_external_data=False).graph)
    constants = {tensor.name for graph in graphs for tensor in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    unfolded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    return [
        user_name(node.name or node.output[0])
        for node in nodes
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in unfolded
    ]


def has_float8(model: ir.Model) -> bool:
    """Whether Q and DQ of a model are of float8, which the optimizations of the CPU provider take for integers."""
    for node in walk.all_nodes(model.graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            values = (walk.input_at(node, 0), walk.input_at(node, 2))
            if any(value is not None and value.dtype in _FLOAT8 for value in values):
                return True
    return False
