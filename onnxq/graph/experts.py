"""Mixtures of experts: nodes that hold a stack of matrices, one an expert, and the layers that choose among experts."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.reading.matrices import low_rank_branches, matrices_of
from onnxq.graph.reading.ops import MICROSOFT

STACKS = (2, 4, 6)
"""Inputs of MoE (com.microsoft) with the matrices of all experts, (experts, out, in); biases stand behind each."""

_SCORES = (1, 14)
"""Inputs of MoE and QMoE with the scores of experts."""

_POINTWISE = traits.ARITHMETIC | {"Cast", "Identity", "Sigmoid", "Softmax"}
"""What may stand between a layer and the choice of the largest of its outputs."""

_SHAPING = traits.RESHAPING


def holds_experts(node: ir.Node) -> bool:
    """Whether a node is a mixture of experts in one."""
    return (node.domain, node.op_type) == (MICROSOFT, "MoE")


def stacks_of(node: ir.Node) -> dict[int, Array] | str:
    """The matrices of a mixture by input position, the experts' rows one below the other; else why it has none.

    Float arrays are not copied.

    Args:
        node: an MoE of com.microsoft.

    Returns:
        (experts · out, in) each.
    """
    found = {}
    for position in STACKS:
        value = walk.input_at(node, position)
        if value is None:
            continue
        array = walk.const_array(value)
        if array is None:
            return "its experts are not constant"
        if array.ndim != 3 or not array.size:
            return f"its experts of shape {array.shape} are no stack of matrices"
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return "its experts are neither float32 nor float16"
        found[position] = array.reshape(-1, array.shape[-1])
    return found


def small_layers(graph: ir.Graph) -> dict[str, str]:
    """Layers that stay float unless the user names them, and why: they are small, and much hangs on them."""
    branches = dict.fromkeys(low_rank_branches(graph), "a LoRA branch: small, and trained beside a quantized layer")
    return branches | dict.fromkeys(routers(graph), "it chooses among experts: small, and rounded it may choose others")


def routers(graph: ir.Graph) -> set[str]:
    """Layers whose outputs say which experts a token goes to: rounding them could send it to others.

    They are known by what reads them: the scores of an MoE or QMoE, or a TopK along their outputs, fewer than inputs,
    whose choice the model itself uses.

    Returns:
        Names of the nodes.
    """
    found = set()
    for node in walk.all_nodes(graph):
        layer = matrices_of(node)
        if layer is None or layer.kernel or node.op_type not in ("MatMul", "Gemm"):
            continue
        if _chooses(node.outputs[0], narrow=layer.outputs < layer.inputs):
            found.add(node.name or "")
    return found - {""}


def _chooses(value: ir.Value, *, narrow: bool) -> bool:
    """Whether a value is a score of experts: ``narrow`` says that it has fewer channels than what it is made of."""
    pending, seen = [(value, False)], {id(value)}
    while pending:
        current, reshaped = pending.pop()
        for use in current.uses():
            user = use.node
            if user.op_type in ("MoE", "QMoE") and user.domain == MICROSOFT and use.idx in _SCORES:
                return True
            if user.op_type == "TopK" and narrow and not reshaped and use.idx == 0 and _decides(user):
                return True
            if user.op_type in _POINTWISE or user.op_type in _SHAPING:
                pending += [
                    (output, reshaped or user.op_type in _SHAPING) for output in user.outputs if id(output) not in seen
                ]
                seen |= {id(output) for output in user.outputs}
    return False


def _decides(node: ir.Node) -> bool:
    """Whether a TopK along the last axis is used inside: the model's own answer may be one, too."""
    rank = walk.rank(node.inputs[0])
    axis = walk.attr_int(node, "axis", -1)
    return axis in (-1, (rank or 0) - 1) and not any(_leaves(output) for output in node.outputs) and _used(node.outputs)


def _used(values: Iterable[ir.Value]) -> bool:
    return any(value.uses() for value in values)


def _leaves(value: ir.Value) -> bool:
    if value.is_graph_output():
        return True
    return any(
        _leaves(use.node.outputs[0]) for use in value.uses() if use.node.op_type in ("Cast", "Identity", "Squeeze")
    )
