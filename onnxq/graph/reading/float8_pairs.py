"""Whether a model has Q and DQ of float8, which the optimizations of ONNX Runtime's CPU provider take for integers."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk

_FLOAT8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})


def has_float8(model: ir.Model) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has a zero point of float8, or reads it."""
    for node in walk.all_nodes(model.graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            values = (walk.input_at(node, 0), walk.input_at(node, 2))
            if any(value is not None and value.dtype in _FLOAT8 for value in values):
                return True
    return False
