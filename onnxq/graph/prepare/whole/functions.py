"""Model-local functions are inlined, so that the operators inside them are seen."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxq.graph import walk


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
