"""Models of a few nodes, cut out of a larger one with their constants: what a kernel is timed and tried on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk


def extract(model: ir.Model, names: Sequence[str], arrays: Mapping[str, Array]) -> ir.Model | None:
    """Copy nodes of the main graph into a model of their own.

    Args:
        model: unchanged; constants are shared with it.
        names: the nodes, in graph order.
        arrays: contents of the values that they read from outside, whose types and shapes the new inputs get.

    Returns:
        The model, which keeps all names; None where a node has a body, or a value that it reads is not in ``arrays``.
    """
    wanted = set(names)
    nodes = [node for node in model.graph if node.name in wanted]
    made = {id(output) for node in nodes for output in node.outputs}
    values: dict[int, ir.Value] = {}
    inputs: list[ir.Value] = []
    constants: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        if walk.subgraphs(node):
            return None
        for value in node.inputs:
            if value is None or id(value) in values:
                continue
            array = walk.const_array(value)
            if array is not None:
                values[id(value)] = _constant(value, array)
                constants.append(values[id(value)])
            elif id(value) not in made:
                given = arrays.get(value.name or "")
                if given is None:
                    return None
                values[id(value)] = _input(value, given)
                inputs.append(values[id(value)])
        outputs = []
        for output in node.outputs:
            copy = ir.Value(name=output.name or "", type=output.type, shape=output.shape)
            values[id(output)] = copy
            outputs.append(copy)
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else values[id(value)] for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                outputs=outputs,
                name=node.name,
            )
        )
    ends = [values[id(output)] for node in nodes for output in node.outputs if _leaves(output, nodes)]
    graph = ir.Graph(
        inputs, ends, nodes=copies, initializers=constants, opset_imports=dict(model.graph.opset_imports), name="part"
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _constant(value: ir.Value, array: Array) -> ir.Value:
    tensor = value.const_value if value.const_value is not None else ir.Tensor(array, name=value.name)
    shape = ir.Shape(array.shape, frozen=True)
    return ir.Value(name=value.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def _input(value: ir.Value, array: Array) -> ir.Value:
    dtype = ir.DataType.from_numpy(np.asarray(array).dtype)
    return ir.Value(name=value.name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))


def _leaves(output: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Whether something outside the nodes reads the value."""
    if not output.name:
        return False
    inside = {id(node) for node in nodes}
    return output.is_graph_output() or any(id(user) not in inside for user in output.consumers())


def signature(node: ir.Node, arrays: Mapping[str, Array]) -> str:
    """What the time of a node's kernel depends on: operator, attributes, and types and shapes of what it reads."""
    attributes = [
        f"{name}={attribute.value!r}"
        for name, attribute in sorted(node.attributes.items())
        if not attribute.is_ref() and attribute.type not in (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH)
    ]
    read = []
    for value in node.inputs:
        constant = walk.const_array(value)
        array = constant if constant is not None else arrays.get(value.name or "") if value is not None else None
        kind = "w" if constant is not None else "x"
        read.append("-" if array is None else f"{kind}{np.asarray(array).dtype}{list(array.shape)}")
    return f"{node.domain}:{node.op_type}({', '.join(read)}; {', '.join(attributes)})"
