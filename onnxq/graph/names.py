"""Give nodes that have no name one that users can refer to, and make names unique in the whole model."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.files.endless import bodies


def name_unnamed(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    """Name the nodes that have no name in ``proto`` ``<OpType>_<n>``, n counting the nodes of that type from 0.

    The names that the conversion to ``onnx_ir`` gave them are replaced.

    Args:
        proto: the message that ``graph`` was made from; unchanged.
        graph: changed in place.
    """
    taken = {node.name for scope in scopes(proto) for node in scope.node if node.name}
    _name_unnamed(proto, graph, taken, Counter())


def scopes(proto: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and all subgraphs inside it, outer before inner."""
    found = [proto]
    for node in proto.node:
        for body in bodies(node):
            found.extend(scopes(body))
    return found


def _name_unnamed(proto: onnx.GraphProto, graph: ir.Graph, taken: set[str], counts: Counter[str]) -> None:
    for named, node in zip(proto.node, list(graph), strict=True):
        position = counts[node.op_type]
        counts[node.op_type] += 1
        if not named.name:
            name = f"{node.op_type}_{position}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
        for inner, (_, body) in zip(bodies(named), walk.subgraphs(node), strict=True):
            _name_unnamed(inner, body, taken, counts)


def make_unique(model: ir.Model) -> int:
    """Rename every node and value whose name an earlier one has; graph inputs and outputs keep theirs.

    ONNX lets sibling subgraphs use the same names; afterwards a name means one thing in the whole model.

    Returns:
        How many were renamed.
    """
    return _unique_values(model.graph) + _unique_nodes(model.graph)


def _unique_values(graph: ir.Graph) -> int:
    everything = list(walk.all_values(graph))
    fixed = {id(value) for value in [*graph.inputs, *graph.outputs]}
    taken = {value.name for value in [*graph.inputs, *graph.outputs] if value.name}
    known = {value.name for value in everything if value.name}
    renamed = 0
    for value in everything:
        if id(value) in fixed or value.name == "" or (value.name is None and not value.uses()):
            continue
        base = value.name or "value"
        if value.name and base not in taken:
            taken.add(base)
            continue
        value.name = _free(base, known)
        renamed += 1
    return renamed


def _unique_nodes(graph: ir.Graph) -> int:
    nodes = list(walk.all_nodes(graph))
    known = {node.name for node in nodes if node.name}
    taken: set[str] = set()
    renamed = 0
    for node in nodes:
        if node.name and node.name not in taken:
            taken.add(node.name)
            continue
        node.name = _free(node.name or f"{node.op_type}_0", known)
        renamed += 1
    return renamed


def _free(base: str, known: set[str]) -> str:
    """A name that is not known yet, and is from now on."""
    n = 1
    while f"{base}_{n}" in known:
        n += 1
    known.add(f"{base}_{n}")
    return f"{base}_{n}"
