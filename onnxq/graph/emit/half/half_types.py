"""Where an operator takes a 16-bit float type instead of float32, by its schema."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

from onnxq.graph import walk

_OF_THE_RUNTIME = frozenset(
    "Attention BiasGelu BiasSoftmax BiasSplitGelu FastGelu FusedConv FusedGemm FusedMatMul GatherBlockQuantized Gelu "
    "GemmFastGelu GroupQueryAttention LongformerAttention MatMulNBits MultiHeadAttention NhwcConv QuickGelu "
    "RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization".split()
)
"""Operators of ONNX Runtime whose float inputs and outputs are all of one type, which may have 16 bits."""

_FLOAT32_INPUTS = {"GroupQueryAttention": frozenset({12, 13})}
"""Inputs of these that are float32 whatever the rest is: the scales of an integer cache."""

_TYPED_BY_ATTRIBUTE = frozenset(
    "Bernoulli BlackmanWindow EyeLike HammingWindow HannWindow MelWeightMatrix Multinomial RandomNormal "
    "RandomNormalLike RandomUniform RandomUniformLike SequenceEmpty".split()
)
"""Operators whose attribute says what they give; it is left as it is."""


@dataclass(frozen=True)
class HalfPlaces:
    """Which inputs and outputs of a node can have a 16-bit float type, by position."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def half_places(node: ir.Node, version: int, kind: str) -> HalfPlaces | None:
    """Where a node could read and write a type instead of float32.

    Args:
        node: any node.
        version: default operator set of the model.
        kind: "float16" or "bfloat16".

    Returns:
        None where the operator is defined for float32 alone, is not known, holds subgraphs, touches sequences, or is a
        QuantizeLinear or DequantizeLinear of an activation, whose kernels give and take float32.
    """
    if walk.subgraphs(node) or node.op_type in _TYPED_BY_ATTRIBUTE or any(map(_is_no_tensor, _values(node))):
        return None
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not walk.is_constant(node.inputs[0]):
        return None
    if node.op_type in _OF_THE_RUNTIME and node.domain in ("", "com.microsoft"):
        wide = _FLOAT32_INPUTS.get(node.op_type, frozenset())
        every = HalfPlaces(frozenset(range(len(node.inputs))) - wide, frozenset(range(len(node.outputs))))
        return (
            every if node.domain or node.op_type == "SimplifiedLayerNormalization" else _by_schema(node, version, kind)
        )
    return _by_schema(node, version, kind)


def _by_schema(node: ir.Node, version: int, kind: str) -> HalfPlaces | None:
    found = _schema(node.domain, node.op_type, version, kind)
    if found is None:
        return None
    inputs, outputs = ({i for i in range(len(values)) if takes[min(i, len(takes) - 1)]} if takes else set()
                       for values, takes in zip((node.inputs, node.outputs), found, strict=True))  # fmt: skip
    return HalfPlaces(frozenset(inputs), frozenset(outputs)) if inputs or outputs else None


@cache
def _schema(domain: str, op_type: str, version: int, kind: str) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    """Whether each input and output takes the type; the last one stands for all that follow."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    types = {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints}

    def allowed(parameter: onnx.defs.OpSchema.FormalParameter) -> frozenset[str]:
        return types.get(parameter.type_str, frozenset({parameter.type_str}))

    def takes(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
        return {f"tensor({kind})", "tensor(float)"} <= allowed(parameter)

    if not all(any(name.startswith("tensor") for name in allowed(p)) for p in (*schema.inputs, *schema.outputs)):
        return None  # it makes sequences, or reads them
    return tuple(map(takes, schema.inputs)), tuple(map(takes, schema.outputs))


def _values(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *node.outputs) if value is not None]


def _is_no_tensor(value: ir.Value) -> bool:
    return value.type is not None and not isinstance(value.type, ir.TensorType)
