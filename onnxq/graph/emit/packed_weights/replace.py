"""Put a node with packed weights in the place of another, and keep each packed constant once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.mapped import forget_tensor
from onnxq.core.spec import QTensor
from onnxq.graph import walk
from onnxq.graph.emit.common import Builder
from onnxq.graph.reading.ops import MICROSOFT


class Replacer:
    """Changes nodes in place, so that their names and their outputs stay the user's.

    Attributes:
        builder: of the model.
        made: what was added for a quantized weight, by its identity, its part and a variant of that.
    """

    def __init__(self, model: ir.Model) -> None:
        self.builder = Builder(model)
        self.made: dict[tuple[int, str, str], ir.Value] = {}

    def once(
        self,
        tensor: object,
        what: str,
        original: ir.Value,
        make: Callable[[], Array],
        variant: str = "1.0",
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """An initializer that all readers of a quantized weight share."""
        key = (id(tensor), what, variant)
        if key not in self.made:
            self.made[key] = self.new(f"{original.name or 'weight'}_{what}", make(), dtype)
            if isinstance(tensor, QTensor):
                forget_tensor(tensor)
        return self.made[key]

    def new(self, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of the main graph, which subgraphs see too."""
        plain = np.require(array, requirements="C")
        return self.builder.initializer(name, plain, dtype)

    def bias(self, node: ir.Node, outputs: int) -> tuple[ir.Value | None, ir.Value | None]:
        """(what a kernel can add as one value a column, what has to be added behind it), beta included."""
        value = walk.input_at(node, 2) if node.op_type == "Gemm" else None
        array = walk.const_array(value)
        if value is None or array is None:
            return None, value
        beta = walk.attr_float(node, "beta", 1.0)
        scaled = (array.astype(np.float32) * np.float32(beta)).astype(array.dtype) if beta != 1.0 else array
        if scaled.ndim <= 1 or all(length == 1 for length in scaled.shape[:-1]):
            if beta == 1.0 and scaled.shape == (outputs,):
                return value, None
            return self.new(f"{value.name}_row", np.broadcast_to(scaled.reshape(-1), (outputs,)), value.dtype), None
        return None, value if beta == 1.0 else self.new(f"{value.name}_scaled", scaled, value.dtype)

    def replace(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: list[ir.Attr],
        rest: ir.Value | None,
        domain: str = MICROSOFT,
    ) -> None:
        """Make a node another one in its place, with an Add behind it where something is left to be added."""
        builder, output = self.builder, node.outputs[0]
        assert node.graph is not None
        if domain:
            builder.graph.opset_imports.setdefault(domain, 1)
        if rest is not None:
            product = builder.node(
                op_type,
                inputs,
                builder.names.value(f"{output.name}_product"),
                name=node.name,
                domain=domain,
                attributes=attributes,
                dtype=output.dtype,
                shape=output.shape,
            )
            node.graph.insert_before(node, [product])
            node.name = builder.names.node(f"{node.name}_Add")
            op_type, domain, attributes, inputs = "Add", "", [], [product.outputs[0], rest]
        node.op_type, node.domain, node.version = op_type, domain, None
        node.attributes.clear()
        for attribute in attributes:
            node.attributes[attribute.name] = attribute
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)


def alpha_of(node: ir.Node) -> float:
    """What the products of a node are multiplied with."""
    return walk.attr_float(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
