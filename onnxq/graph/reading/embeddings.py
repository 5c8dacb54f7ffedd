"""Which outputs of a model are embeddings or hidden states: vectors that are compared by their angle."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import traits, walk

_NORMALIZATIONS = frozenset(
    "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization "
    "RMSNormalization LpNormalization EmbedLayerNormalization".split()
)
_MOVING = traits.MOVING | {"Cast", "Gather", "Identity", "Slice"}
_POOLING = frozenset("ReduceMean ReduceSum".split())
_ROOTS = frozenset("Sqrt Reciprocal ReduceL2 Pow".split())
_STEPS = 40
"""Nodes looked at before an output: pooling and a normalization written out in plain operators take fewer."""


def embedding_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the outputs that are normalized vectors, pooled or not, or what a BERT-like pooler (Tanh) makes of one.

    The normalization may be one operator or written out: a product with, or a quotient by, the root of a mean.
    """
    return frozenset(value.name for value in model.graph.outputs if value.name and _is_embedding(value))


def _is_embedding(output: ir.Value) -> bool:
    shape = output.shape
    last = output.producer()
    if last is not None and last.op_type == "Tanh" and shape is not None and len(shape) == 2:
        return True
    value: ir.Value | None = output
    for _ in range(_STEPS):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if node.op_type in _NORMALIZATIONS:
            return True
        operands = [read for read in node.inputs if read is not None]
        if node.op_type in ("Mul", "Div") and any(_is_root(read) for read in operands):
            return True
        if node.op_type in ("Add", "Mul", "Div"):
            moving = [read for read in operands if not walk.is_constant(read)]
            if node.op_type == "Add" and len(moving) != 1:
                return False  # a residual stream, or scores with a bias that is computed
            value = moving[0] if moving else None
        elif node.op_type in _MOVING or node.op_type in _POOLING:
            value = operands[0] if operands else None
        else:
            return False
    return False


def _is_root(value: ir.Value) -> bool:
    """Whether the value is a root, or a bounded or broadcast one."""
    for _ in range(4):
        node = value.producer()
        if node is None:
            return False
        if node.op_type in _ROOTS:
            return True
        if node.op_type not in ("Clip", "Max", "Expand", "Add") or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False
