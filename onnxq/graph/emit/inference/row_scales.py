"""Quantize each row of an activation at inference, in plain operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.emit import common
from onnxq.graph.reading.signs import Sign, sign_of

ZERO_POINTS = {Sign.ANY: 128, Sign.HARDLY_NEGATIVE: 16, Sign.NEVER_NEGATIVE: 0}
"""Zero point of the uint8 grid by the sign of a value.

16 steps below zero and 239 above suit x · Φ(x), whose least value is −0.17, for rows that reach up to 2.5 or further.
"""

SMALLEST = 1e-30
"""Smallest scale of a row: a row of zeros has a scale, and gives zeros."""


class Row:
    """The nodes that quantize a value by row, not yet in the graph.

    Attributes:
        nodes: in order.
        integers: uint8, shape of the value.
        scale: float32, that shape with a last axis of length 1.
        zero_point: scalar uint8.
    """

    def __init__(self, builder: common.Builder, value: ir.Value, sign: Sign | None = None) -> None:
        self._builder = builder
        self._name = value.name or ""
        self.nodes: list[ir.Node] = []
        zero = ZERO_POINTS[sign_of(value) if sign is None else sign]
        if zero == 128:
            magnitude = self._add("Abs", [value], "magnitude")
            steps = [self._ends("ReduceMax", magnitude, 127)]
        else:
            steps = [self._ends("ReduceMax", value, 255 - zero)]
            if zero:
                steps.append(self._ends("ReduceMin", value, -zero))
        self.scale = self._add("Max", [*steps, self._scalar("smallest_scale", SMALLEST)], "row_scale")
        scaled = self._add("Div", [value, self.scale], "row_steps")
        self.zero_point = builder.constant(f"row_zero_point_{zero}", np.asarray(np.uint8(zero)))
        self.integers = self._add("QuantizeLinear", [scaled, self._scalar("one", 1.0), self.zero_point], "quantized")
        self.integers.type, self.integers.shape = ir.TensorType(ir.DataType.UINT8), value.shape

    def _ends(self, op_type: str, value: ir.Value, steps: int) -> ir.Value:
        """The scale at which the far end of each row is so many steps from zero."""
        attributes: list[ir.Attr] = [ir.AttrInt64("keepdims", 1)]
        inputs: list[ir.Value | None] = [value]
        if walk.opset(self._builder.graph) < 18:
            attributes.append(ir.AttrInt64s("axes", (-1,)))
        else:
            inputs.append(self._builder.constant("last_axis", np.array([-1], np.int64)))
        end = self._add(op_type, inputs, f"row_{'max' if steps > 0 else 'min'}", attributes)
        return self._add("Div", [end, self._scalar(f"steps_{abs(steps)}", steps)], "row_needs")

    def _add(
        self, op_type: str, inputs: list[ir.Value | None], what: str, attributes: list[ir.Attr] | None = None
    ) -> ir.Value:
        name = self._builder.names.value(f"{self._name}_{what}")
        node = self._builder.node(op_type, inputs, name, attributes=attributes, dtype=ir.DataType.FLOAT)
        self.nodes.append(node)
        return node.outputs[0]

    def _scalar(self, name: str, number: float) -> ir.Value:
        return self._builder.constant(name, np.asarray(np.float32(number)))
