"""Why a quantized file is larger than the float one."""

from __future__ import annotations

from onnxq.graph import walk
from onnxq.graph.types import Model


def larger(size_before: int, size_after: int, before: Model, after: Model) -> str:
    """What to tell the user of a file that grew.

    Args:
        size_before: bytes of the float file.
        size_after: bytes of the quantized one.
        before: the float model, prepared.
        after: the quantized model.
    """
    weights, integers = constant_bytes(before), constant_bytes(after)
    said = f"larger than float: {size_after} bytes against {size_before}; "
    if weights > size_before:
        return said + (
            f"the float model computes weights of {weights} bytes when it is loaded, and here they "
            f"are stored, in {integers} bytes"
        )
    if integers >= weights:
        return said + f"constants take {integers} bytes for {weights}, scales among them"
    conversions = max(size_after - integers - (size_before - weights), 0)
    saved = weights - integers
    return said + f"constants became {saved} bytes smaller, and the nodes and names of conversions take {conversions}"


def constant_bytes(model: Model) -> int:
    """Bytes of all constants of a model, those in subgraphs among them."""
    graphs = walk.all_graphs(model.graph)
    values = [value for graph in graphs for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)
