"""Model-local functions are inlined, so that the operators inside them are seen."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxq.graph import walk

_RENAMED = 20_000_000
"""Names that may be tried for the nodes of functions: every further copy tries those of all before it."""


def inline(model: ir.Model, notes: list[str]) -> int:
    """Replace every call of a function of the model by its nodes.

    Functions written for another version of the operator sets than the model's stay calls, with a note.

    Args:
        model: changed in place.
        notes: gets a sentence where it cannot be done.

    Returns:
        How many functions there were.
    """
    found = len(model.functions)
    if not found:
        return 0
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            if model.opset_imports.setdefault(domain, version) != version:
                notes.append(
                    f"functions are not inlined: '{function.name}' needs operator set {version} of "
                    f"'{domain or 'ai.onnx'}', the model {model.opset_imports[domain]}"
                )
                return 0
    copies = _copies(model)
    if sum(len(model.functions[key]) * count * count for key, count in copies.items()) > _RENAMED:
        notes.append(
            f"functions are not inlined: they are called {sum(copies.values())} times, those from others included, and "
            "stay calls, whose weights stay float"
        )
        return 0
    domains = {function.domain for function in model.functions.values()}
    try:
        InlinePass()(model)
    except Exception as error:  # recursion, missing attributes: the model stays as it is
        notes.append(f"functions are not inlined: {error}".replace("\n", " "))
        return 0
    left = {node.domain for node in walk.all_nodes(model.graph)}
    for domain in domains - left:
        model.opset_imports.pop(domain, None)
    return found


def _copies(model: ir.Model) -> Counter[ir.OperatorIdentifier]:
    """How often each function would be written out; functions that call themselves are refused before."""
    calls = {
        key: Counter(node.op_identifier() for node in walk.all_nodes(function.graph))
        for key, function in model.functions.items()
    }
    total = Counter(
        {
            key: n
            for key, n in Counter(node.op_identifier() for node in walk.all_nodes(model.graph)).items()
            if key in calls
        }
    )
    level = total
    while level:
        below = Counter[ir.OperatorIdentifier]()
        for key, count in level.items():
            for callee, times in calls[key].items():
                if callee in calls:
                    below[callee] += count * times
        total, level = total + below, below
    return total
