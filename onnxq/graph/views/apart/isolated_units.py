"""What a quantized model is taken apart into: units, each of which computes one value of the float model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk


@dataclass(frozen=True)
class ActivationGrid:
    """Where a QuantizeLinear puts an activation: (low, high) are the ends of its range, units of the value."""

    scale: float
    zero_point: int
    low: float
    high: float


@dataclass
class Unit:
    """One quantized node.

    Attributes:
        name: of the float model's node that it stands for.
        op_type: that node's operator.
        value: the float model's value that it computes.
        output: the output of the isolated model with its quantized form.
        arriving: the quantized model's value that stands for it; integers on ``grid`` or floats.
        grid: of its output; None where the output stays float.
        rounds_inputs: it also quantizes values that come from float nodes or from outside.
        weight: (float, quantized) weights where both are known and of one shape.
    """

    name: str
    op_type: str
    value: str
    output: str
    arriving: str
    grid: ActivationGrid | None = None
    rounds_inputs: bool = False
    weight: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Isolated:
    """The units of a quantized model.

    Attributes:
        model: takes float values by their names in ``sources``, gives each unit's ``output``.
        units: in graph order.
        sources: input of ``model`` by name of the float value that it takes.
        quantized: the quantized model as it came, constants lifted.
    """

    model: ir.Model
    units: list[Unit]
    sources: dict[str, str]
    quantized: ir.Model


def grid_of(node: ir.Node | None) -> ActivationGrid | None:
    """The grid of a QuantizeLinear or DequantizeLinear with one scale."""
    if node is None:
        return None
    scale = walk.const_array(walk.input_at(node, 1))
    zero = walk.const_array(walk.input_at(node, 2))
    if scale is None or scale.size != 1:
        return None
    dtype = zero.dtype if zero is not None else np.dtype(np.uint8)
    if dtype.kind not in "iu":
        return None
    ends = np.iinfo(dtype)
    step, middle = float(scale.reshape(())), int(zero.reshape(())) if zero is not None else 0
    return ActivationGrid(step, middle, step * (ends.min - middle), step * (ends.max - middle))
