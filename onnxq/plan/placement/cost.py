"""Estimated times of float and integer kernels, from a target's measured rates and the shapes of one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxq.graph import walk
from onnxq.graph.reading.ops import OpRow, activation_positions
from onnxq.graph.types import Node, Value
from onnxq.targets import Costs, MacRates, Rate

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each value in one sample."""

_WINDOWS = ("AveragePool", "MaxPool")
"""Operators whose rates are per element of each window."""

_ROWS = "Transpose rows"
"""A Transpose that leaves the last axis in its place copies row by row, and integers gain it little."""

_IMAGE_RANK = 4


def elements(value: Value | None, shapes: Shapes) -> int | None:
    """Number of elements of a value in one sample; None where its shape is not known."""
    if value is None:
        return None
    shape = shapes.get(value.name or "")
    if shape is None:
        known = walk.dims(value)
        if known is None:
            return None
        shape = tuple(1 if dim is None else dim for dim in known)
    return math.prod(shape)


def node_costs(node: Node, row: OpRow, shapes: Shapes, costs: Costs) -> tuple[float, float]:
    """(float, integer) microseconds of a node's kernel; (0, 0) where a shape it depends on is not known."""
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        work = _Work.of(node, shapes)
        if work is None:
            return 0.0, 0.0
        return work.us(costs.float_macs), work.us(costs.int_macs)
    sizes = [elements(node.inputs[i], shapes) for i in activation_positions(node, row)]
    sizes += [elements(output, shapes) for output in node.outputs]
    size = max((s for s in sizes if s is not None), default=0)
    if node.op_type in _WINDOWS:
        size = _window_elements(node, shapes)
    kind = _ROWS if node.op_type == "Transpose" and _keeps_rows(node) else node.op_type
    as_float = costs.float_ops.get(kind, costs.float_default)
    as_int = costs.int_ops.get(kind, as_float)
    return as_float.us(size), as_int.us(size)


def _keeps_rows(node: Node) -> bool:
    order = walk.attr_ints(node, "perm", ())
    return bool(order) and order[-1] == len(order) - 1


def layout_us(node: Node, shapes: Shapes, rates: Mapping[str, Rate]) -> float:
    """Microseconds that a node on images loses beside a Q; see `onnxq.targets.target.Costs`."""
    rate = rates.get(node.op_type)
    shape = shapes.get(node.outputs[0].name or "")
    if rate is None or shape is None or len(shape) < _IMAGE_RANK:
        return 0.0
    return rate.us(_window_elements(node, shapes) if node.op_type in _WINDOWS else math.prod(shape))


def _window_elements(node: Node, shapes: Shapes) -> int:
    return (elements(node.outputs[0], shapes) or 0) * math.prod(walk.attr_ints(node, "kernel_shape", ()))


def kernel_is_slower(node: Node, shapes: Shapes, costs: Costs) -> bool:
    """Whether the integer kernel of a Conv, Gemm or MatMul takes longer than the float one, calls aside."""
    work = _Work.of(node, shapes)
    if work is None:
        return False
    as_float, as_int = work.us(costs.float_macs), work.us(costs.int_macs)
    return as_int - costs.int_macs.fixed_us > as_float - costs.float_macs.fixed_us


class _Work:
    """How much a multiply-accumulate kernel has to do.

    Attributes:
        macs: multiply-accumulates.
        columns: output channels of a Conv; 0 elsewhere.
        rows: rows of input windows that are gathered, 0 where the input is used as it lies.
        channels: input channels that lie side by side.
        weight_elements: elements of the weight.
        groups: groups of a convolution.
        outputs: output elements.
        packed: the weight is constant, so that its kernel finds it laid out as it needs it.
    """

    def __init__(
        self,
        macs: float,
        columns: int,
        *,
        outputs: int,
        weight_elements: int,
        rows: float = 0.0,
        channels: int = 64,
        groups: int = 1,
        packed: bool = True,
    ) -> None:
        self.macs, self.columns, self.outputs, self.weight_elements = macs, columns, outputs, weight_elements
        self.rows, self.channels, self.groups, self.packed = rows, channels, groups, packed

    def us(self, rates: MacRates) -> float:
        """Microseconds at the given rates."""
        written = self.outputs * rates.output_ns / 1000.0
        if self.groups > 1 and self.channels == 1:
            padded = math.ceil(self.groups / rates.depthwise_width) * rates.depthwise_width / self.groups
            return rates.fixed_us + self.macs * padded / rates.depthwise
        if self.groups > 1:
            return rates.fixed_us + self.macs / rates.grouped
        padded = 1.0
        if self.columns:
            padded = math.ceil(self.columns / rates.min_columns) * rates.min_columns / self.columns
        row_ns = rates.thin_row_ns if self.channels < 4 else rates.row_ns
        dense = rates.dense if self.packed else rates.products
        compute = self.macs * padded / dense + self.rows * row_ns / 1000.0
        return rates.fixed_us + written + max(compute, self.weight_elements / rates.weights_per_us)

    @classmethod
    def of(cls, node: Node, shapes: Shapes) -> _Work | None:
        output = elements(node.outputs[0], shapes)
        if output is None or len(node.inputs) < 2 or node.inputs[1] is None:
            return None
        weight = node.inputs[1]
        shape = shapes.get(weight.name or "") or walk.dims(weight)
        if shape is None or None in shape or not shape:
            return None
        dims = [int(d) for d in shape if d is not None]
        size = math.prod(dims)
        if node.op_type == "Conv":
            groups = walk.attr_int(node, "group", 1)
            window = math.prod(dims[2:])
            pixels = output / max(dims[0], 1)
            unfolded = window > 1 and groups == 1
            rows = pixels * window / max(dims[-1], 1) if unfolded else 0.0
            macs = float(output * dims[1] * window)
            columns = dims[0] // max(groups, 1)
            return cls(macs, columns, outputs=output, weight_elements=size, rows=rows, channels=dims[1], groups=groups)
        if node.op_type == "Gemm":
            depth = dims[1] if walk.outputs_first(node) else dims[0]
            return cls(float(output * depth), 0, outputs=output, weight_elements=size)
        depth = dims[-2] if len(dims) > 1 else dims[0]
        packed = walk.is_constant(weight)
        return cls(float(output * depth), 0, outputs=output, weight_elements=size, packed=packed)
