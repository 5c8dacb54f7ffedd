"""Blocks of a quantized graph that learn one after the other: from one joint of the network to the next.

A joint is a place where everything that comes later reads one value: between residual blocks or encoder layers. Where
paths run side by side for long (feature pyramids, dense blocks) a block ends where the fewest values are read later.

References:
    Li et al., BRECQ, arXiv:2102.05426, section 3.2: blocks rather than layers or the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxq.graph.views.plain_graph import PlainGraph, PlainNode


@dataclass(frozen=True)
class Block:
    """Nodes that learn together.

    Attributes:
        nodes: in order, those that only depend on constants among them.
        inputs: values from outside that they read, graph inputs included.
        outputs: values that are read after them, by the name of the float model's value that each stands for.
        layers: how many integer layers there are.
    """

    nodes: tuple[PlainNode, ...]
    inputs: tuple[str, ...]
    outputs: dict[str, str]
    layers: int


@dataclass(frozen=True)
class Facts:
    """What is known of the values.

    Attributes:
        teachers: the float model's value by the name of the quantized model's that stands for it.
        floats: values of the float model that are real numbers, with the number of their elements in a sample.
        layers: indices of the nodes that are layers with an integer weight.
    """

    teachers: Mapping[str, str]
    floats: Mapping[str, int]
    layers: frozenset[int]


def teachers_of(graph: PlainGraph, known: frozenset[str]) -> dict[str, str]:
    """The float model's value that each value of a quantized model stands for.

    A value in front of QuantizeLinear may lack a clamp that the quantization does, so that it stands for nothing where
    only QuantizeLinear reads it; the value behind DequantizeLinear does.

    Args:
        graph: the quantized model.
        known: names of the float model's values.
    """
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    readers: dict[str, set[str]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op_type)
    found = {name: name for name in graph.inputs if name in known}
    for node in graph.nodes:
        for name in node.outputs:
            if node.op_type == "DequantizeLinear" and name not in known:
                quantizer = producers.get(node.inputs[0])
                if quantizer is not None and quantizer.op_type == "Clip":  # to fewer steps than the type has
                    quantizer = producers.get(quantizer.inputs[0])
                if quantizer is not None and quantizer.op_type == "QuantizeLinear" and quantizer.inputs[0] in known:
                    found[name] = quantizer.inputs[0]
            elif name in known and (readers.get(name) != {"QuantizeLinear"} or name in graph.outputs):
                found[name] = name
    return found


def find_blocks(graph: PlainGraph, facts: Facts, least: int = 2, most: int = 8) -> list[Block]:
    """Divide a graph into blocks.

    Args:
        graph: the quantized model.
        facts: what is known of it.
        least: integer layers of a block, where a joint comes that early; fewer at the end.
        most: integer layers after which a block ends at the best place since it had ``least``.

    Returns:
        In the order of the graph; together they have every node. Some have no layers.
    """
    constant = _constant_nodes(graph)
    nodes = [node for node in graph.nodes if node.index not in constant]
    crossing = _crossing(graph, nodes)
    blocks: list[Block] = []
    start, layers, best = 0, 0, None
    for place, node in enumerate(nodes):
        layers += node.index in facts.layers
        cost = _cost(crossing[place], facts)
        if cost is None or layers < least or place == len(nodes) - 1:
            continue
        if best is None or cost <= best[0]:
            best = (cost, place, layers)
        if cost <= 1 or layers >= most:
            end, inside = best[1] + 1, best[2]
            blocks.append(_block(graph, nodes[start:end], crossing[best[1]], facts, constant, inside))
            start, layers, best = end, layers - inside, None
    if start < len(nodes):
        blocks.append(_block(graph, nodes[start:], set(graph.outputs), facts, constant, layers))
    return blocks


def _constant_nodes(graph: PlainGraph) -> dict[int, PlainNode]:
    """Nodes that read constants only, such as DequantizeLinear of weights."""
    fixed = set(graph.constants)
    found = {}
    for node in graph.nodes:
        if not node.bodies and node.inputs and all(not name or name in fixed for name in node.inputs):
            found[node.index] = node
            fixed.update(node.outputs)
    return found


def _crossing(graph: PlainGraph, nodes: list[PlainNode]) -> list[set[str]]:
    """For each node: the values, made so far, that a later node reads or that are outputs."""
    made = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    last = {name: made[name] for name in made}
    for place, node in enumerate(nodes):
        for name in (*node.inputs, *node.captured):
            if name in last:
                last[name] = max(last[name], place)
    for name in graph.outputs:
        if name in last:
            last[name] = len(nodes)
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place, []).append(name)
    live: set[str] = set()
    found = []
    for place, node in enumerate(nodes):
        live |= {name for name in node.outputs if name}
        live -= set(ends.get(place, ()))
        found.append(set(live))
    return found


def _cost(values: set[str], facts: Facts) -> int | None:
    """How many of the float model's values cross a place; None where one stands for none of them."""
    crossing = set()
    for name in values:
        teacher = facts.teachers.get(name)
        if teacher is None:
            return None
        if teacher in facts.floats:
            crossing.add(teacher)
    return len(crossing)


def _block(
    graph: PlainGraph, nodes: list[PlainNode], crossing: set[str], facts: Facts, constant: Mapping[int, PlainNode],
    layers: int,
) -> Block:  # fmt: skip
    made = {name for node in nodes for name in node.outputs if name}
    makers = {name: node for node in constant.values() for name in node.outputs}
    needed: dict[int, PlainNode] = {}
    pending = [name for node in nodes for name in (*node.inputs, *node.captured) if name in makers]
    while pending:
        maker = makers[pending.pop()]
        if maker.index not in needed:
            needed[maker.index] = maker
            pending += [name for name in maker.inputs if name in makers]
    inside = made | {name for node in needed.values() for name in node.outputs} | set(graph.constants)
    read = dict.fromkeys(
        name for node in nodes for name in (*node.inputs, *node.captured) if name and name not in inside
    )
    outputs = {
        name: facts.teachers[name]
        for name in sorted(made & crossing)
        if name in facts.teachers and facts.teachers[name] in facts.floats
    }
    ordered = sorted((*needed.values(), *nodes), key=lambda node: node.index)
    return Block(tuple(ordered), tuple(read), outputs, layers)
