"""Which of the user's nodes each prepared node stands for, so that the user's names keep their meaning."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph import walk

_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Origin:
    """The nodes of a graph before it is prepared.

    Attributes:
        outputs: names of the values each named node writes, subgraphs included.
        followers: names of the nodes that read them.
        op_types: operator of each named node.
        repeated: names that several nodes have, such as nodes in the two branches of an If.
    """

    outputs: dict[str, tuple[str, ...]]
    followers: dict[str, tuple[str, ...]]
    op_types: dict[str, str]
    repeated: frozenset[str] = frozenset()


def remember(model: ir.Model) -> Origin:
    """Note the names of a model that is about to be prepared."""
    outputs: dict[str, tuple[str, ...]] = {}
    followers: dict[str, tuple[str, ...]] = {}
    op_types: dict[str, str] = {}
    for node in walk.all_nodes(model.graph):
        if node.name:
            outputs[node.name] = tuple(value.name for value in node.outputs if value.name)
            readers = (reader.name for value in node.outputs for reader in value.consumers())
            followers[node.name] = tuple(dict.fromkeys(name for name in readers if name))
            op_types[node.name] = node.op_type
    names = Counter(node.name for node in walk.all_nodes(model.graph) if node.name)
    repeated = frozenset(name for name, count in names.items() if count > 1)
    return Origin(outputs, followers, op_types, repeated)


def sources(origin: Origin, model: ir.Model) -> dict[str, tuple[str, ...]]:
    """For each node of the prepared model, its own name and the user's names it stands for.

    A node that is gone was folded into the one that writes what it, or the next surviving node after it, wrote. A node
    that was renamed because several had its name (see `onnxq.graph.names.make_unique`) has that name still.
    """
    producers = {value.name: node for node in walk.all_nodes(model.graph) for value in node.outputs if value.name}
    alive = {node.name for node in walk.all_nodes(model.graph)}
    found: dict[str, list[str]] = {node.name or "": [node.name or ""] for node in walk.all_nodes(model.graph)}
    for name, names in found.items():
        given = _NUMBER.sub("", name)
        if name not in origin.outputs and given in origin.repeated:
            names.append(given)
    heirs: dict[str, ir.Node | None] = {}
    for name in origin.outputs:
        if name in alive:
            continue
        heir = _heir(name, origin, producers, heirs)
        if heir is not None and heir.name is not None:
            found[heir.name].append(name)
    return {name: tuple(names) for name, names in found.items()}


def _heir(name: str, origin: Origin, producers: dict[str, ir.Node], heirs: dict[str, ir.Node | None]) -> ir.Node | None:
    """The first node that is left where a node was, or behind it; ``heirs`` remembers those found on the way."""
    passed: dict[str, None] = {}
    heir: ir.Node | None = None
    while name not in passed:
        if name in heirs:
            heir = heirs[name]
            break
        passed[name] = None
        written = next((value for value in origin.outputs.get(name, ()) if value in producers), None)
        if written is not None:
            heir = producers[written]
            break
        following = origin.followers.get(name, ())
        if len(following) != 1:
            break
        name = following[0]
    heirs.update(dict.fromkeys(passed, heir))
    return heir
