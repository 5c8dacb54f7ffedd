"""Float models some of whose constants are integers with a DequantizeLinear behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.wishes import literal
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.reading.ops import row_of
from onnxq.graph.types import Node
from onnxq.graph.undo.operators import QUANTIZED
from onnxq.graph.undo.undoing import undo
from onnxq.pipeline.float_model import Source


def floats_of(model: Source) -> tuple[Source, list[dict[str, Any]]]:
    """The model with these constants as floats, and rules that give them their grids again.

    A model that quantizes anything else is given back as it is.

    Returns:
        The model, and for each weight of int8 with zero points of 0 a rule with its scales.
    """
    loaded = io.load(model)
    nodes = [node for node in walk.all_nodes(loaded.graph) if _is_quantized(node)]
    if not nodes or not all(node.op_type == "DequantizeLinear" and _is_constant(node) for node in nodes):
        return model, []
    grids: dict[tuple[str | None, int], dict[str, Any]] = {}
    for node in nodes:
        grid = _grid(node)
        for user, position in node.outputs[0].uses() if grid else ():
            row = row_of(user)
            if row is not None and position == row.weight:
                grids[(user.name, position)] = grid
    undo(loaded, "quantize_static")
    rules = []
    for node in walk.all_nodes(loaded.graph):
        for position, value in enumerate(node.inputs):
            found = grids.get((node.name, position))
            if found and value is not None and value.name and walk.is_constant(value):
                rules.append({"match": literal(value.name), **found})
    return io.to_proto(loaded), rules


def _is_quantized(node: Node) -> bool:
    return node.op_type in QUANTIZED or node.op_type.startswith("QLinear")


def _is_constant(node: Node) -> bool:
    return walk.const_array(walk.input_at(node, 0)) is not None


def _grid(node: Node) -> dict[str, Any]:
    """The keys of a rule for the integers of a DequantizeLinear; none for what weights of layers are not."""
    integers, scale, zero = (walk.const_array(walk.input_at(node, index)) for index in range(3))
    if integers is None or scale is None or integers.dtype != np.int8 or scale.ndim > 1:
        return {}
    if zero is not None and zero.any():
        return {}
    scales = scale.astype(np.float64).reshape(-1).tolist()
    several = len(scales) > 1
    return {"scale": scales if several else scales[0], "zero_point": [0] * len(scales) if several else 0}
