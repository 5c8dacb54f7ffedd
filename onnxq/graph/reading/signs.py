"""What the graph says of the sign of a value, whatever the data: never negative, or hardly."""

from __future__ import annotations

import enum

import numpy as np
import onnx_ir as ir

from onnxq.graph import traits, walk

_DEPTH = 12
"""Nodes that a gate may be made of; tanh approximations of GELU take nine."""

_NEVER = frozenset("Relu Sigmoid HardSigmoid Softmax Softplus Abs Exp Sqrt ReduceL1 ReduceL2 ReduceSumSquare".split())
_HARDLY = frozenset("Gelu HardSwish Mish Swish BiasGelu FastGelu QuickGelu".split())
_MOVES = traits.MOVING | {"Dropout", "Expand", "Gather", "Identity", "MaxPool", "Slice"}
_POLYNOMIAL = traits.ARITHMETIC | {"Neg", "Pow"}


class Sign(enum.Enum):
    """The sign of a value's elements."""

    ANY = "any"
    NEVER_NEGATIVE = "never negative"
    HARDLY_NEGATIVE = "hardly negative"
    """At least −0.4, while there is no bound above: x · Φ(x) and its kin."""


def sign_of(value: ir.Value) -> Sign:
    """The sign of a value as far as the operators before it settle it."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    if node is None:
        return Sign.ANY
    if node.op_type in _NEVER:
        return Sign.NEVER_NEGATIVE
    if node.op_type == "Clip":
        low = walk.const_array(walk.input_at(node, 1))
        return Sign.NEVER_NEGATIVE if low is not None and low.size == 1 and low.item() >= 0 else Sign.ANY
    if node.op_type in _HARDLY or _is_gated(value):
        return Sign.HARDLY_NEGATIVE
    return Sign.ANY


def floors(model: ir.Model) -> dict[str, float]:
    """What no element of a value of the main graph can be below, NaN aside: of what a Relu or a Clip makes, by name."""
    found: dict[str, float] = {}
    for node in model.graph:
        name = node.outputs[0].name if node.outputs else None
        if not name or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Relu":
            found[name] = 0.0
        elif node.op_type == "Clip":
            low = walk.const_array(walk.input_at(node, 1))
            if low is not None and low.size == 1 and low.dtype.kind == "f" and np.isfinite(low).all():
                found[name] = float(low.item())
    return found


def _is_gated(value: ir.Value) -> bool:
    """Whether the value is x times a gate of x: GELU in its spellings, SiLU."""
    factors = _factors(value)
    if len(factors) != 2:
        return False
    return any(_is_gate(gate, x) for x, gate in (factors, factors[::-1]))


def _factors(value: ir.Value) -> list[ir.Value]:
    """What is multiplied to give the value, positive constants left out."""
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
        return [value]
    factors: list[ir.Value] = []
    for index, operand in enumerate(node.inputs):
        if operand is None:
            return [value]
        array = walk.const_array(operand)
        if array is None and node.op_type == "Div" and index == 1:
            return [value]
        if array is None:
            factors += _factors(operand)
        elif not (array > 0).all():
            return [value]
    return factors


def _is_gate(gate: ir.Value, x: ir.Value) -> bool:
    """Whether a value is a sigmoid of x, or 1 + erf or tanh of it."""
    node = gate.producer()
    if node is None:
        return False
    if node.op_type in ("Sigmoid", "HardSigmoid"):
        return _is_made_of(node.inputs[0], x)
    if node.op_type != "Add":
        return False
    constants = [array for array in map(walk.const_array, node.inputs) if array is not None]
    bends = [value.producer() for value in node.inputs if value is not None and not walk.is_constant(value)]
    if len(constants) != 1 or len(bends) != 1 or not (constants[0] == 1).all():
        return False
    bend = bends[0]
    return bend is not None and bend.op_type in ("Erf", "Tanh") and _is_made_of(bend.inputs[0], x)


def _is_made_of(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is computed from x and constants alone, by arithmetic."""
    waiting, seen, reached = [value], set[int](), False
    while waiting:
        current = waiting.pop()
        if current is x:
            reached = True
            continue
        if current is None or walk.is_constant(current) or id(current) in seen:
            continue
        seen.add(id(current))
        node = current.producer()
        if node is None or node.op_type not in _POLYNOMIAL or len(seen) > _DEPTH:
            return False
        waiting += node.inputs
    return reached
