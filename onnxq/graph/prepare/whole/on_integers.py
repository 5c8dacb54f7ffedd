"""Forms of what engines that compute on integers alone would get wrong."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.reading.mask_values import MASKING

NARROW = -256.0
"""What masks instead of a lower number: e^(−256 + x) is 0 in float32 for all logits x that differ by less than 150, and
16 bits still tell them apart by 0.004."""

_MASKING_OPS = frozenset("Add Mul Sub Where".split())
_ON_THE_WAY = _MASKING_OPS | traits.MOVING - {"Flatten"} | {"Cast", "Div", "Expand", "Identity", "Max", "Slice"}


def run(model: ir.Model) -> int:
    """Narrow masks, and write Reciprocal as a division.

    Returns:
        How many nodes were rewritten.
    """
    names = walk.Names(model)
    return _narrow_masks(model, names) + _divide(model, names)


def _narrow_masks(model: ir.Model, names: walk.Names) -> int:
    """Let constants that mask logits end at `NARROW`: beside −3e38 no grid has levels left for the logits."""
    count = 0
    for node in list(model.graph):
        if node.op_type not in _MASKING_OPS or not _ends_in_softmax(node.outputs[0]):
            continue
        for index in range(1 if node.op_type == "Where" else 0, len(node.inputs)):
            array = walk.const_array(node.inputs[index])
            if array is not None and _masks(array):
                edit.set_constant(node, index, np.maximum(array, array.dtype.type(NARROW)), names, f"{node.name}_mask")
                count += 1
    return count


def _masks(array: Array) -> bool:
    """Whether a constant holds zeros and mask numbers, or those alone."""
    low = array <= MASKING if array.dtype == np.float32 and array.size else np.zeros(1, bool)
    return bool(low.any()) and bool((low | (array == 0)).all())


def _ends_in_softmax(value: ir.Value) -> bool:
    """Whether everything that reads a value, past what adds and moves, is a Softmax."""
    seen, todo = {id(value)}, [value]
    while todo:
        current = todo.pop()
        users = walk.consumers(current)
        if current.is_graph_output() or not users:
            return False
        for user in users:
            if user.op_type in ("LogSoftmax", "Softmax"):
                continue
            if user.op_type not in _ON_THE_WAY:
                return False
            todo += [output for output in user.outputs if id(output) not in seen]
            seen.update(map(id, user.outputs))
    return True


def _divide(model: ir.Model, names: walk.Names) -> int:
    """Write Reciprocal as one divided by its input.

    QNN's provider (onnxruntime-qnn 2.7) divides a 1 that it puts on the grid of the input: 0.2 / x where that ends at
    0.2.
    """
    count = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Reciprocal" else None
        if source is None or source.dtype != ir.DataType.FLOAT or walk.is_constant(source):
            continue
        one = edit.add_initializer(model.graph, names.value(f"{node.name}_one"), np.ones((), np.float32))
        quotient = ir.Node("", "Div", [one, source], num_outputs=1, name=node.name)
        model.graph.insert_before(node, quotient)
        edit.take_over(node.outputs[0], quotient.outputs[0])
        model.graph.remove(node, safe=True)
        count += 1
    return count
