"""PRelu as the larger of a value and its product with the slopes, or as a sum of products where slopes exceed 1.

ONNX Runtime's PRelu chooses element by element, and where channels lie last, as between integer layers, it looks up the
slope for each: four such layers on integers take 2 to 3 times as long as with Mul and Max, which are vectorized. With a
slope above 1 the product is not always the smaller one; Relu, two Muls and an Add still take half of PRelu's time.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, walk

_SMALLEST = 1 << 11
"""Elements below which one node more costs what the faster kernels save."""

_STEEPEST = 8.0
"""Size of slopes up to which the difference of two products keeps the accuracy of float32."""

_UNKNOWN_LENGTH = 32
"""Length of an axis that is not known, the first aside."""


def write_as_max(model: ir.Model) -> int:
    """Write PRelu of constant slopes as Max(x, slopes · x), or (1 − slopes) · Relu(x) + slopes · x, where x is large.

    Where no slope exceeds 1 it is the first, which is exact: the product is what PRelu gives below zero, and there the
    larger one; above zero the value is. The second is exact below zero, and rounds in float32 above it. The last node
    has the name of the PRelu. This comes last: other passes know PRelu as one operator.

    Returns:
        How many were rewritten.
    """
    names = walk.Names(model)
    return sum(_rewrite(node, names, model.graph) for node in walk.nodes_to_rewrite(model, "PRelu"))


def _rewrite(node: ir.Node, names: walk.Names, main: ir.Graph) -> bool:
    source, slopes = walk.input_at(node, 0), walk.const_array(walk.input_at(node, 1))
    dims, graph = walk.dims(source), node.graph
    if source is None or slopes is None or dims is None or graph is None or slopes.dtype != np.float32:
        return False
    if not (np.abs(slopes[slopes > 1]) <= _STEEPEST).all() or np.isnan(slopes).any():
        return False
    if slopes.ndim > len(dims) or _elements(dims) < _SMALLEST:
        return False

    def part(op_type: str, inputs: list[ir.Value | None], what: str) -> ir.Node:
        made = ir.Node("", op_type, inputs, num_outputs=1, name=names.node(f"{node.name}_{what}"))
        made.outputs[0].name = names.value(f"{node.outputs[0].name}_{what}")
        made.outputs[0].type, made.outputs[0].shape = source.type, source.shape
        return made

    product = part("Mul", list(node.inputs), "slopes")
    if (slopes <= 1).all():
        last = ir.Node("", "Max", [source, product.outputs[0]], num_outputs=1, name=node.name)
        graph.insert_before(node, [product, last])
    else:
        rest = edit.add_initializer(main, names.value(f"{node.outputs[0].name}_rest"), (1 - slopes).astype(np.float32))
        above = part("Relu", [source], "above")
        scaled = part("Mul", [above.outputs[0], rest], "scaled")
        last = ir.Node("", "Add", [scaled.outputs[0], product.outputs[0]], num_outputs=1, name=node.name)
        graph.insert_before(node, [product, above, scaled, last])
    old, new = node.outputs[0], last.outputs[0]
    name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name
    graph.remove(node, safe=True)
    return True


def _elements(dims: tuple[int | None, ...]) -> int:
    return math.prod((1 if i == 0 else _UNKNOWN_LENGTH) if dim is None else dim for i, dim in enumerate(dims))
