"""The range that integers stand for, read off scales and zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk


def ends_of(scale: ir.Value | None, zero: ir.Value | None) -> list[float] | None:
    """Low and high end of a grid; None where it is not known, has many scales, or is not of integers."""
    step, middle = walk.const_array(scale), walk.const_array(zero)
    if step is None or step.size != 1 or (middle is not None and middle.dtype.kind not in "iu"):
        return None
    grid = np.iinfo(middle.dtype if middle is not None else np.uint8)
    point = int(middle.reshape(())) if middle is not None else 0
    size = float(step.reshape(()))
    return [size * (grid.min - point), size * (grid.max - point)]


def input_ranges(model: ir.Model) -> dict[str, list[float]]:
    """Low and high end of what a quantized model takes without clipping, by input: where all its readers round it."""
    found = {}
    for value in model.graph.inputs:
        readers = list(value.consumers())
        ends = [ends_of(walk.input_at(node, 1), walk.input_at(node, 2)) for node in readers]
        if readers and all(node.op_type == "QuantizeLinear" for node in readers) and ends[0] is not None:
            found[value.name or ""] = ends[0]
    return found
