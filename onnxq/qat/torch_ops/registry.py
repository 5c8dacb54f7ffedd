"""All operators that have a torch function."""

from __future__ import annotations

from onnxq.graph.views.plain_graph import PlainNode
from onnxq.qat.torch_ops import attention_ops, elementwise, integers, layer_ops, moving, recurrent, reducing
from onnxq.qat.torch_ops.call import Function

OPERATORS: dict[tuple[str, str], Function] = {
    **elementwise.OPERATORS,
    **moving.OPERATORS,
    **layer_ops.OPERATORS,
    **reducing.OPERATORS,
    **recurrent.OPERATORS,
    **integers.OPERATORS,
    **attention_ops.OPERATORS,
}
"""By domain and operator; QuantizeLinear and DequantizeLinear are the module's own."""


def function_of(node: PlainNode) -> Function | None:
    """The function of a node; None where there is none, as for those that hold graphs (If, Loop)."""
    return None if node.bodies else OPERATORS.get((node.domain, node.op_type))
