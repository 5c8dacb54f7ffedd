"""What of a quantized graph learns end to end, in groups with rates of their own."""

from __future__ import annotations

import math
from typing import Any

import torch

from onnxq.qat.block_parts import FEW_BITS
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.torch_ops.call import Tensor

_MANY = 256
"""Samples from which on integers of 8 bits learn too: with fewer they learn the samples by heart."""

_CACHE_SCALES = 12
"""Inputs of attention behind which the scales of rounded caches come; what makes keys and values then learns too."""


_GAINS = frozenset(
    "Add Mul Sum LayerNormalization SimplifiedLayerNormalization SkipLayerNormalization MatMulIntegerToFloat".split()
)
"""Operators whose vectors of floats are biases and gains."""


def parameter_groups(student: GraphModule, rate: float, samples: int) -> tuple[list[dict[str, Any]], int]:
    """Groups of parameters for an optimizer, and how many weights' integers are among them.

    Args:
        student: the quantized graph; what learns is told so.
        rate: of scales, as a share of them.
        samples: to learn from: with many of them integers of 8 bits learn too.
    """
    groups: list[dict[str, Any]] = []

    def add(parameter: torch.nn.Parameter, step: float) -> None:
        if not any(parameter is p for group in groups for p in group["params"]):
            parameter.requires_grad_(True)
            groups.append({"params": [parameter], "lr": step})

    for grid in student.grids.values():
        add(grid.scale.shift, rate)
        if grid.zero is not None and not any(grid.zero.at_end):
            add(grid.zero.shift, 64.0 * rate)
    for bias in student.biases.values():
        add(bias.real, rate * _size(bias.real))
    learned = 0
    many = samples >= _MANY
    caches = any(n.op_type == "GroupQueryAttention" and len(n.inputs) > _CACHE_SCALES for n in student.graph.nodes)
    for weight in student.weights.values():
        levels = weight.integers.high - weight.integers.low + 1
        if weight.scale is not None:
            add(weight.scale.shift, rate)
        if levels <= 1 << FEW_BITS or many or caches:
            learned += 1
            add(weight.integers.latent, rate * math.sqrt(levels))
    readers = {name: node for node in student.graph.nodes for name in node.inputs}
    for name, value in student.floats.items():
        node = readers.get(name)
        if value.ndim == 1 and value.numel() > 1 and node is not None and node.op_type in _GAINS:
            add(value, rate * _size(value))
        elif caches and value.ndim == 2 and node is not None and node.op_type in ("MatMul", "Gemm"):
            learned += 1
            add(value, rate * _size(value))
    return groups, learned


def _size(parameter: Tensor) -> float:
    return max(float(parameter.detach().abs().mean()), 1e-3)
