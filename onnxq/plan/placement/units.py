"""What goes to integers together or not at all: functions that an exporter wrote as several operators."""

from __future__ import annotations

from collections.abc import Iterable

from onnxq.graph.reading.patterns import Match, find
from onnxq.graph.types import Graph
from onnxq.plan.placement.candidates import Survey
from onnxq.plan.placement.select import Selection


def units_of(graph: Graph) -> list[Match]:
    """Norms, activations, rotary embeddings and repeated heads in the main graph."""
    return find(graph)


def keep_whole(found: Survey, units: list[Match], selection: Selection) -> None:
    """Let functions of which a part has no integer kernel stay float as a whole.

    A part on integers would put a conversion into the middle, and 8 bits on a sum of squares or a product that nothing
    but the next part reads. What the user insists on by name is left to the user.
    """
    changed = True
    while changed:
        changed = False
        for unit in units:
            nodes = {node.name or "": node for node in unit.nodes if node.op_type != "Cast"}
            inside = [name for name in nodes if name in found.candidates or name in found.folded]
            if len(inside) == len(nodes) or _insisted(found, inside):
                continue
            for name in inside:
                if name in found.candidates:
                    found.keep(name, "")
                    changed = True
            for name, node in nodes.items():
                if name in found.kept and selection.of(name, node.op_type).reason is None:
                    found.kept[name] = f"{unit.reason}, which stays float"


def mixed_units(units: list[Match], found: Survey, chosen: set[str]) -> list[tuple[Match, set[str]]]:
    """The functions of which some candidates were chosen for integers and some were not, with these candidates."""
    mixed = []
    for unit in units:
        members = {name for node in unit.nodes if (name := node.name or "") in found.candidates}
        if members & chosen and members - chosen and not _insisted(found, members):
            mixed.append((unit, members))
    return mixed


def _insisted(found: Survey, names: Iterable[str]) -> bool:
    return any(found.candidates[name].choice.insisted for name in names if name in found.candidates)
