"""Rows of the operator table for engines that run every operator on integers, whether or not the CPU has a kernel.

Most operators have no row of their own there: whatever they read and write as float32 stands between Q and DQ.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import onnx_ir as ir

from onnxq.graph import traits, walk
from onnxq.graph.reading.ops import OPS, ROW, Kind, OpRow, has_bias_by_column

_LAYERS = {
    "ConvTranspose": OpRow(Kind.WEIGHTED, weight=1, bias=2),
    "InstanceNormalization": OpRow(Kind.WEIGHTED, weight=1, bias=2),
    "LayerNormalization": OpRow(Kind.WEIGHTED, weight=1, bias=2),
    "GroupNormalization": OpRow(Kind.WEIGHTED, weight=1, bias=2),
}
_FIXED = {"HardSigmoid": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
_MOVING = frozenset("GatherND Identity ScatterND Trilu TopK".split())
"""Operators without a row that give numbers which they read; their first output shares the grid of the first input."""

_NEVER = traits.STRUCTURAL - {"Constant"} | {"Cast", "CastLike", "ConstantOfShape", "Dropout"}
"""Operators that are never wrapped: they change types, make constants or hold subgraphs."""


def mark_rows(model: ir.Model, op_types: Container[str]) -> int:
    """Give the nodes of the main graph rows under which everything that they read and write gets Q and DQ.

    Args:
        model: only the metadata of its nodes changes.
        op_types: a container of the operators that the engine runs.

    Returns:
        How many nodes have such a row.
    """
    count = 0
    for node in model.graph:
        row = row_for(node) if node.op_type in op_types else None
        if row is not None:
            node.meta[ROW] = row
            count += 1
    return count


def row_for(node: ir.Node) -> OpRow | None:
    """The row under which all that a node reads and writes gets Q and DQ; None for what is never wrapped."""
    floats = tuple(i for i, value in enumerate(node.inputs) if value is not None and value.dtype == ir.DataType.FLOAT)
    if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER or not floats:
        return None
    known = OPS.get(node.op_type) or _LAYERS.get(node.op_type)
    if known is not None and known.kind is Kind.WEIGHTED:
        if known.bias is not None and not _is_plain(node, known.bias):
            known = replace(known, bias=None)
        weight = walk.const_array(walk.input_at(node, known.weight or 0))
        if known.weight is not None and weight is None and node.op_type != "MatMul":
            return replace(known, kind=Kind.REQUANTIZING, activations=floats, weight=None, bias=None)
        return replace(known, refuse=None)
    if node.op_type == "Resize":
        nearest = walk.attr_str(node, "mode", "nearest") == "nearest"
        return OpRow(Kind.PASSING if nearest else Kind.REQUANTIZING, activations=(0,))
    if known is not None:
        activations = known.activations if known.activations is not None else floats
        return replace(known, activations=activations, native=False, refuse=None)
    if node.op_type in _MOVING:
        return OpRow(Kind.PASSING, activations=floats)
    if not any(output.dtype == ir.DataType.FLOAT for output in node.outputs):
        return OpRow(Kind.READING, activations=floats)
    return OpRow(Kind.REQUANTIZING, activations=floats, fixed_range=_FIXED.get(node.op_type))


def _is_plain(node: ir.Node, position: int) -> bool:
    """Whether a bias is left out, or constant with one value for each channel."""
    value = walk.input_at(node, position)
    if value is None:
        return True
    return walk.const_array(value) is not None and (node.op_type != "Gemm" or has_bias_by_column(node))
