"""PRelu as the larger of a value and its product with the slopes.

ONNX Runtime's PRelu chooses element by element, and where channels lie last, as between integer layers, it looks up the
slope for each: four such layers on integers take 2 to 3 times as long as with Mul and Max, which are vectorized.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk

_SMALLEST = 1 << 11
"""Elements below which one node more costs what the faster kernels save."""

_UNKNOWN_LENGTH = 32
"""Length of an axis that is not known, the first aside."""


def write_as_max(model: ir.Model) -> int:
    """Write PRelu of slopes that are constant and at most 1 as Max(x, slopes · x), where the value is large.

    Exact: the product is what PRelu gives below zero, and there the larger one; above zero the value is. The Max has
    the name of the PRelu. This comes last: other passes know PRelu as one operator.

    Returns:
        How many were rewritten.
    """
    names = walk.Names(model)
    return sum(_rewrite(node, names) for node in walk.nodes_to_rewrite(model, "PRelu"))


def _rewrite(node: ir.Node, names: walk.Names) -> bool:
    source, slopes = walk.input_at(node, 0), walk.const_array(walk.input_at(node, 1))
    dims, graph = walk.dims(source), node.graph
    if source is None or slopes is None or dims is None or graph is None or slopes.dtype != np.float32:
        return False
    if not (slopes <= 1).all() or slopes.ndim > len(dims) or _elements(dims) < _SMALLEST:
        return False
    product = ir.Node("", "Mul", list(node.inputs), num_outputs=1, name=names.node(f"{node.name}_slopes"))
    product.outputs[0].name = names.value(f"{node.outputs[0].name}_slopes")
    product.outputs[0].type, product.outputs[0].shape = source.type, source.shape
    larger = ir.Node("", "Max", [source, product.outputs[0]], num_outputs=1, name=node.name)
    graph.insert_before(node, [product, larger])
    old, new = node.outputs[0], larger.outputs[0]
    name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name
    graph.remove(node, safe=True)
    return True


def _elements(dims: tuple[int | None, ...]) -> int:
    return math.prod((1 if i == 0 else _UNKNOWN_LENGTH) if dim is None else dim for i, dim in enumerate(dims))
