"""Resize before operator set 11 and Upsample: onnx's converter drops how they map coordinates, so it is put back.

References:
    ONNX operator Resize, versions 10 and 11; onnxruntime computes version 10 with ``asymmetric`` coordinates and, for
    ``nearest``, rounds up where it shrinks and down where it grows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk

CHANGED_IN = 11
"""The operator set whose Resize has attributes for the mapping."""


def coordinates(model: ir.Model) -> dict[str, dict[str, str]]:
    """The attributes that each old Resize and Upsample needs in version 11, by the name of its output.

    Raises:
        ValueError: a node has no equivalent, with the reason.
    """
    found: dict[str, dict[str, str]] = {}
    if walk.opset(model) >= CHANGED_IN:
        return found
    for node in walk.all_nodes(model.graph):
        if node.domain == "" and node.op_type in ("Resize", "Upsample"):
            attributes = {"coordinate_transformation_mode": "asymmetric"}
            if walk.attr_str(node, "mode", "nearest") == "nearest":
                attributes["nearest_mode"] = _rounding(node)
            found[node.outputs[0].name or ""] = attributes
    return found


def rename_upsample(model: ir.Model) -> int:
    """Call Upsample what it is in operator set 10: Resize, which took its place there with the same inputs.

    onnx counts Upsample as gone from that set on and converts it no more, while files of exporters that had not heard
    of it are run all the same.

    Args:
        model: changed in place.

    Returns:
        How many nodes were renamed.
    """
    nodes = walk.nodes_to_rewrite(model, "Upsample") if walk.opset(model) == CHANGED_IN - 1 else []
    renamed = [node for node in nodes if node.domain == "" and len(node.inputs) == 2]
    for node in renamed:
        node.op_type = "Resize"
    return len(renamed)


def restore(model_graph: ir.Graph, attributes: dict[str, dict[str, str]]) -> None:
    """Set the attributes on the converted nodes."""
    for node in walk.all_nodes(model_graph):
        for name, value in attributes.get(node.outputs[0].name or "", {}).items():
            if node.op_type == "Resize":
                node.attributes[name] = ir.AttrString(name, value)


def _rounding(node: ir.Node) -> str:
    given = walk.attr_floats(node, "scales")
    scales: Array | None = np.array(given) if given else walk.const_array(walk.input_at(node, 1))
    if scales is None:
        raise ValueError(f"{node.op_type} '{node.name}' has scales that are computed")
    if (scales >= 1).all():
        return "floor"
    if (scales <= 1).all():
        return "ceil"
    raise ValueError(f"{node.op_type} '{node.name}' grows one axis and shrinks another")
