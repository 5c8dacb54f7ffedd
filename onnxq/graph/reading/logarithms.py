"""Layers of a signal-processing front end: what they compute goes into a logarithm, and nothing has rounded it before.

A spectrogram by Conv, mel filters by MatMul, constant-Q transforms: behind the Log a hundredth of the signal counts as
much as the signal, so that relative error matters, and one scale for quiet and loud has too few steps for the quiet.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import traits, walk

_LINEAR_OR_POWER = frozenset(
    "Abs Add Cast Clip Concat Conv Div Flatten Gather Gemm Identity MatMul Max Mul Neg Pad Pow ReduceL2 ReduceSum "
    "ReduceSumSquare Reciprocal Reshape Slice Split Sqrt Squeeze Sub Sum Transpose Unsqueeze Where".split()
)
"""What may stand between a layer and the Log: sums, products and powers, and what moves elements.

An activation ends the search: behind one lies a network that was trained, whose numbers are of one size.
"""

_LAYERS = traits.LAYERS - {"ConvTranspose"}


def before_logs(graph: ir.Graph) -> set[str]:
    """Names of the Conv, Gemm and MatMul nodes with a constant weight whose results reach a Log in this way.

    Args:
        graph: the main graph; those in subgraphs are looked at too.
    """
    reached = ahead_of_logs(graph)
    return {node.name or "" for node in reached if node.op_type in _LAYERS and walk.is_constant(walk.input_at(node, 1))}


def ahead_of_logs(graph: ir.Graph) -> list[ir.Node]:
    """All nodes from which a Log is reached in this way, nearest first; the Log itself is not among them."""
    found: list[ir.Node] = []
    seen: set[int] = set()
    pending = [node for node in walk.all_nodes(graph) if node.op_type == "Log" and node.domain == ""]
    while pending:
        node = pending.pop()
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None or id(producer) in seen or producer.domain != "":
                continue
            seen.add(id(producer))
            if producer.op_type not in _LINEAR_OR_POWER:
                continue
            found.append(producer)
            pending.append(producer)
    return found
