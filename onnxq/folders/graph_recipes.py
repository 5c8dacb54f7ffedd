"""A recipe for one graph of a folder: patterns that are meant for another graph do not count there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from onnxq.recipe.patterns_of_names import matches
from onnxq.recipe.recipe import Recipe


def recipe_for(given: Recipe, graph: str, nodes: Mapping[str, Mapping[str, str]]) -> tuple[Recipe, str]:
    """The recipe without patterns and operator types that match nothing in a graph, but something in another.

    What matches nowhere stays, so that it is refused as in a single file.

    Args:
        given: how the folder is to be quantized.
        graph: which of its graphs.
        nodes: operators by name of the node, of each graph.

    Returns:
        The recipe, and why the graph stays float as a whole; empty where it does not.
    """

    def kept(patterns: Iterable[str]) -> tuple[str, ...]:
        return tuple(pattern for pattern in patterns if _is_for(pattern, graph, nodes))

    include, exclude = kept(given.include), kept(given.exclude)
    rules = tuple(rule for rule in given.rules if _is_for(rule.match, graph, nodes))
    here = set(nodes[graph].values())
    elsewhere = {op_type for names in nodes.values() for op_type in names.values()} - here
    op_types = tuple(op_type for op_type in given.op_types if op_type not in elsewhere)
    found = replace(given, include=include, exclude=exclude, rules=rules, op_types=op_types)
    if given.include and not include:
        return found, f"not named by --include ({_listed(given.include)})"
    if given.op_types and not op_types:
        return found, f"it has no operator that --op-type names ({_listed(given.op_types)})"
    return found, ""


def _is_for(pattern: str, graph: str, nodes: Mapping[str, Mapping[str, str]]) -> bool:
    def anywhere(names: Iterable[str]) -> bool:
        return any(matches(pattern, name) for name in names)

    return anywhere(nodes[graph]) or not any(anywhere(names) for names in nodes.values())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
