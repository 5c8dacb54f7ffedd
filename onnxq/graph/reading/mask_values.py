"""Values that carry a mask: −10000, −1e9, the lowest float16 or float32, or −∞, where attention must not look."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.mapped import forget
from onnxq.graph import traits, walk

MASKING = -9000.0
"""A number from which on a constant that is added to logits, or stands in for them, is a mask."""

_MOVING = traits.MOVING | frozenset("Cast Concat Expand Gather Identity Max Min Slice Split Tile Trilu".split())


_MAKING = frozenset(("Where", "Add", "Sub", "Mul", "ConstantOfShape"))


def masked_values(graph: ir.Graph) -> dict[str, float]:
    """Find the values that hold mask numbers, and what is made from them by adding or choosing.

    Args:
        graph: a graph whose constants are folded; subgraphs inside it are not looked into.

    Returns:
        The lowest mask number by name of the value.
    """
    found: dict[str, float] = {}

    def number(value: ir.Value | None) -> float | None:
        if value is None:
            return None
        return found[value.name or ""] if value.name in found else mask_number(value)

    for node in graph:
        if node.op_type not in _MOVING | _MAKING:
            continue  # a layer's weight is not looked through for it
        lowest = _made_by(node, [number(value) for value in node.inputs])
        if lowest is not None:
            for output in node.outputs:
                if output.name:
                    found[output.name] = lowest
    return found


def mask_number(value: ir.Value | None) -> float | None:
    """The lowest number of a constant, if that is one that masks."""
    array = walk.const_array(value)
    if array is None or array.dtype.kind not in "fV" or array.size == 0:
        return None
    lowest = float(np.min(array.astype(np.float32, copy=False)))
    forget(array)
    return lowest if lowest <= MASKING else None


def _made_by(node: ir.Node, numbers: list[float | None]) -> float | None:
    """The mask number in a node's output, given those in its inputs."""
    if node.domain not in ("", "ai.onnx"):
        return None
    match node.op_type:
        case "Where":
            numbers = numbers[1:]
        case "Add" | "Sub":
            if node.op_type == "Sub" and (amount := _large(node.inputs[1])) is not None:
                numbers = [*numbers, -amount]
        case "Mul":
            amount = next((a for a in map(_large, node.inputs) if a is not None), None)
            if amount is not None and any(_is_flag_less_one(value) for value in node.inputs):
                numbers = [*numbers, -amount]
            numbers = [n for n, value in zip(numbers, node.inputs, strict=False) if _is_single(value)] + numbers[2:]
        case "ConstantOfShape":
            attribute = node.attributes.get("value")
            fill = None if attribute is None else float(attribute.as_tensor().numpy().astype(np.float32).reshape(-1)[0])
            numbers = [fill if fill is not None and fill <= MASKING else None]
        case op_type if op_type not in _MOVING:
            return None
    lowest = [n for n in numbers if n is not None]
    return min(lowest) if lowest else None


def _large(value: ir.Value | None) -> float | None:
    """A number so large that its negative masks: GPT-2 was once written w·b − 10000·(1 − b)."""
    array = walk.const_array(value)
    if array is not None and array.size == 1 and array.dtype.kind == "f":
        number = float(array.reshape(()))
        return number if number >= -MASKING else None
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Mul" and any(_is_flag(v) for v in producer.inputs):
        return next((a for v in producer.inputs if walk.is_constant(v) and (a := _large(v)) is not None), None)
    return None


def _is_flag(value: ir.Value | None) -> bool:
    """Whether a value is 1 − m."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Sub" and _is_one(producer.inputs[0])


def _is_flag_less_one(value: ir.Value | None) -> bool:
    """Whether a value is m − 1."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Sub" and _is_one(producer.inputs[1])


def _is_one(value: ir.Value | None) -> bool:
    array = walk.const_array(value)
    return array is not None and array.size == 1 and float(array.reshape(())) == 1.0


def _is_single(value: ir.Value | None) -> bool:
    array = walk.const_array(value)
    return array is None or array.size == 1
