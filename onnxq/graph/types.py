"""The types of graphs by the names that packages outside this one use."""

from __future__ import annotations

import onnx
import onnx_ir as ir

Model = ir.Model
Graph = ir.Graph
Node = ir.Node
Value = ir.Value
Proto = onnx.ModelProto
ElementType = ir.DataType

FLOAT32 = ir.DataType.FLOAT
"""Element type of ordinary real numbers."""

FLOAT16 = ir.DataType.FLOAT16
"""Element type of half precision."""
