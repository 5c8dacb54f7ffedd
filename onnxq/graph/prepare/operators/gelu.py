"""Gelu in the order that runtimes recognise, or as one operator."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, walk
from onnxq.graph.reading import patterns


def run(model: ir.Model) -> int:
    """Write x · (½ · gate) as (x · gate) · ½, which ONNX Runtime joins into one kernel.

    A product with ½ is exact, so that the result keeps its bits (unless it is subnormal). Where something else reads
    the product inside, nothing is changed.

    Returns:
        How many were rewritten.
    """
    done = 0
    for graph in walk.all_graphs(model.graph):
        for match in patterns.find(graph, (patterns.GELU,)):
            done += not match.shared and _reorder(match)
    return done


OPSET = 20
"""The operator set that Gelu is in."""


def join(model: ir.Model) -> int:
    """Write x · (1 + erf(x / √2)) / 2 as Gelu, where the operator set has it.

    For engines that have a kernel for Gelu and none for Erf. On integers that is one rounding instead of five.

    Returns:
        How many were rewritten.
    """
    if walk.opset(model) < OPSET:
        return 0
    done = 0
    for graph in walk.all_graphs(model.graph):
        for match in patterns.find(graph, (patterns.GELU,)):
            done += not match.shared and _join(graph, match)
    return done


def _join(graph: ir.Graph, match: patterns.Match) -> bool:
    x, output = match.values["x"], match.nodes[-1].outputs[0]
    kinds = {node.op_type for node in match.nodes}
    same = x.dtype is not None and x.dtype == output.dtype and walk.rank(x) == walk.rank(output)
    if "Erf" not in kinds or "Cast" in kinds or not same:
        return False
    joined = ir.Node("", "Gelu", [x], num_outputs=1, name=match.nodes[-1].name)
    graph.insert_before(match.nodes[-1], joined)
    edit.take_over(output, joined.outputs[0])
    read = [value for node in match.nodes for value in node.inputs]
    graph.remove(match.nodes, safe=True)
    for value in read:
        edit.drop_unused_initializer(value)
    return True


def _reorder(match: patterns.Match) -> bool:
    outer, x = match.nodes[-1], match.values["x"]
    inner = next((v.producer() for v in outer.inputs if v is not None and v is not x and not walk.is_constant(v)), None)
    if outer.inputs[0] is not x and outer.inputs[1] is not x:
        return False
    if inner is None or inner.op_type != "Mul" or not any(walk.is_constant(v) for v in inner.inputs):
        return False
    half = next(i for i, v in enumerate(inner.inputs) if walk.is_constant(v))
    constant, gate, product = inner.inputs[half], inner.inputs[1 - half], inner.outputs[0]
    if walk.rank(constant) != 0 and walk.rank(product) != walk.rank(x):
        return False  # ½ of a higher rank would lift the result's
    edit.set_input(inner, 0, x)
    edit.set_input(inner, 1, gate)
    edit.set_input(outer, 0, product)
    edit.set_input(outer, 1, constant)
    product.shape = outer.outputs[0].shape
    return True
