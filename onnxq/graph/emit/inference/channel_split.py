"""Split a value by channels: a few outliers in float, and the value with zeros in their place to be quantized.

Multiplying by a mask is far cheaper than gathering the many channels that are left (and their rows of the weight stay
where they are, as zeros).

References:
    Dettmers et al., LLM.int8(), arXiv:2208.07339, section 3.2, with the channels fixed beforehand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph.emit import common


class Splits:
    """The parts of values, each made once for all its readers."""

    def __init__(self, builder: common.Builder) -> None:
        self._builder = builder
        self._rest: dict[ir.Value, ir.Value] = {}
        self._outliers: dict[ir.Value, ir.Value] = {}

    def rest(self, value: ir.Value, channels: Array, width: int) -> ir.Value:
        """The value with zeros in some channels of its last axis, of ``width``."""
        if value not in self._rest:
            mask = np.ones(width, np.float32)
            mask[channels] = 0
            constant = self._builder.constant(f"{value.name}_mask", mask)
            self._rest[value] = self._add("Mul", value, constant, "masked")
        return self._rest[value]

    def outliers(self, value: ir.Value, channels: Array) -> ir.Value:
        """These channels of the value alone."""
        if value not in self._outliers:
            places = self._builder.constant(f"{value.name}_outlier_channels", channels.astype(np.int64))
            self._outliers[value] = self._add("Gather", value, places, "outliers", [ir.AttrInt64("axis", -1)])
        return self._outliers[value]

    def _add(
        self, op_type: str, value: ir.Value, constant: ir.Value, what: str, attributes: list[ir.Attr] | None = None
    ) -> ir.Value:
        name = self._builder.names.value(f"{value.name}_{what}")
        node = self._builder.node(op_type, [value, constant], name, attributes=attributes, dtype=ir.DataType.FLOAT)
        if op_type == "Mul":
            node.outputs[0].shape = value.shape
        self._builder.place_after(value, [node])
        return node.outputs[0]
