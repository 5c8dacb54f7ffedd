"""The part of a value's range that its readers tell apart.

Below −3 a HardSwish is zero, and a HardSigmoid below and above where it bends says the same whatever it is given. Where
nothing else reads a value, its grid need not reach further: the levels go to where they count.
"""

from __future__ import annotations

import math

from onnxq.graph import walk
from onnxq.graph.types import Node, Value

Bounds = tuple[float, float]

EVERYTHING: Bounds = (-math.inf, math.inf)
"""No part of a range is level."""

_LEVEL = {
    "Sigmoid": (-8.0, 8.0),
    "Tanh": (-4.0, 4.0),
    "Gelu": (-5.0, math.inf),
}
"""Where a function is level to less than a fifth of the 8-bit step of what it gives: 1 − σ(8) = 3·10⁻⁴."""

_SIGMOID_GATED = -8.0
"""The same of x · σ(x), which is −0.003 there."""

_STANDARD = ("", "ai.onnx", "com.microsoft")


def told_apart(value: Value) -> Bounds:
    """(low, high) outside which all elements of a value are the same to those that read it; infinite where open."""
    users = value.consumers()
    if value.is_graph_output() or not users:
        return EVERYTHING
    found = [_by_reader(user, value) for user in users]
    return min(low for low, _ in found), max(high for _, high in found)


def _by_reader(node: Node, value: Value) -> Bounds:
    if node.domain not in _STANDARD or (node.graph is not value.graph and value.graph is not None):
        return EVERYTHING
    if node.op_type == "HardSigmoid":
        return _bends(node)
    if node.op_type == "Mul":
        gates = [other.producer() for other in node.inputs if other is not None and other is not value]
        gate = gates[0] if len(gates) == 1 else None
        if gate is not None and gate.inputs and gate.inputs[0] is value:
            if gate.op_type == "HardSigmoid":
                return _bends(gate)[0], math.inf
            if gate.op_type == "Sigmoid":
                return _SIGMOID_GATED, math.inf
        return EVERYTHING
    return _LEVEL.get(node.op_type, EVERYTHING)


def _bends(node: Node) -> Bounds:
    """Where a HardSigmoid, max(0, min(1, α·x + β)), reaches 0 and 1."""
    alpha, beta = walk.attr_float(node, "alpha", 0.2), walk.attr_float(node, "beta", 0.5)
    if not (alpha > 0 and 0 < beta < 1):
        return EVERYTHING  # a grid has to hold zero
    return -beta / alpha, (1.0 - beta) / alpha
