"""Layers as matrices: what a layer with a constant weight multiplies with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerTensor, TensorSpec
from onnxq.graph import walk


@dataclass(frozen=True)
class Matrices:
    """A layer's weight as one matrix a group, and the window its input is seen through.

    Attributes:
        groups: groups of a convolution; 1 elsewhere.
        outputs: output channels of a group.
        inputs: inputs of an output: channels of a group times the window.
        kernel: the window; empty for Gemm and MatMul.
        strides: of the window.
        dilations: of the window.
        pads: zeros around the image, begins then ends.
        transposed: the weight is stored as (inputs, outputs).
    """

    groups: int
    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    transposed: bool = False

    def split(self, weight: Array) -> Array:
        """(groups, outputs, inputs) of a weight."""
        if self.transposed:
            return np.ascontiguousarray(weight.T)[None]
        return weight.reshape(self.groups, self.outputs, self.inputs)

    def join(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The weight, in its own shape, of (groups, outputs, inputs)."""
        if self.transposed:
            return np.ascontiguousarray(matrices[0].T)
        return matrices.reshape(shape)

    def spec(self, spec: TensorSpec) -> TensorSpec:
        """A specification of the weight for one of its matrices."""
        per_row = isinstance(spec.granularity, PerAxis)
        return TensorSpec(
            spec.dtype, PerAxis(0) if per_row else PerTensor(), spec.symmetric, spec.narrow_range, spec.grid_bits
        )

    def rows(self, values: Array, limit: int) -> Array | None:
        """Inputs as the layer sees them, a row for each output position.

        Args:
            values: the input; float, (N, C, spatial …) for a Conv, (…, inputs) elsewhere.
            limit: rows at most; evenly spaced ones are taken.

        Returns:
            float32, (groups, rows, inputs); None where the input does not fit.
        """
        if not self.kernel:
            flat = values.reshape(-1, values.shape[-1])
            return flat[_some(len(flat), limit)].astype(np.float32)[None] if flat.shape[1] == self.inputs else None
        rank = len(self.kernel)
        channels = self.inputs // int(np.prod(self.kernel)) * self.groups
        if values.ndim != rank + 2 or values.shape[1] != channels:
            return None
        begins, ends = self.pads[:rank], self.pads[rank:]
        padded = np.pad(values, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        if any(length < span for length, span in zip(padded.shape[2:], spans, strict=True)):
            return None
        axes = tuple(range(2, rank + 2))
        seen = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        step = tuple(slice(None, None, s) for s in self.strides)
        inner = tuple(slice(None, None, d) for d in self.dilations)
        every: tuple[slice, ...] = (slice(None), slice(None))
        seen = seen[every + step + inner]
        places = (len(values), *seen.shape[2 : rank + 2])
        chosen = np.unravel_index(_some(int(np.prod(places)), limit), places)
        index: tuple[Any, ...] = (chosen[0], slice(None), *chosen[1:])
        taken = seen[index]  # (rows, channels, window …)
        grouped = taken.reshape(len(chosen[0]), self.groups, self.inputs)
        return np.ascontiguousarray(np.moveaxis(grouped, 1, 0), np.float32)


def _some(count: int, limit: int) -> Array:
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).astype(np.int64)


def matrices_of(node: ir.Node) -> Matrices | None:
    """How a Conv, Gemm or MatMul with a constant weight multiplies; None for anything else."""
    weight = walk.const_array(walk.input_at(node, 1))
    if weight is None or node.domain != "":
        return None
    match node.op_type:
        case "Gemm" if weight.ndim == 2 and not walk.attr_int(node, "transA", 0):
            if walk.outputs_first(node):
                return Matrices(1, weight.shape[0], weight.shape[1])
            return Matrices(1, weight.shape[1], weight.shape[0], transposed=True)
        case "MatMul" if weight.ndim == 2:
            return Matrices(1, weight.shape[1], weight.shape[0], transposed=True)
        case "Conv" if weight.ndim >= 3:
            rank = weight.ndim - 2
            if walk.attr_str(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
                return None
            groups = walk.attr_int(node, "group", 1)
            ones = (1,) * rank
            return Matrices(
                groups,
                weight.shape[0] // groups,
                int(np.prod(weight.shape[1:])),
                tuple(weight.shape[2:]),
                walk.attr_ints(node, "strides", ones),
                walk.attr_ints(node, "dilations", ones),
                walk.attr_ints(node, "pads", (0,) * 2 * rank),
            )
    return None


_THIN = 4
"""Times that both sides of a layer are larger than the rank of a branch beside it."""

_SCALING = frozenset({"Mul", "Div", "Identity", "Cast", "Dropout"})
"""What may stand between the two products of a branch, before and behind them: a factor, or nothing."""


def low_rank_branches(graph: ir.Graph) -> set[str]:
    """The products of LoRA branches (2106.09685): x·A·B beside x·W, added to it, with a rank far below both sides of W.

    They are known by shape: A takes what W takes, B gives what W gives, and between them the values are few.

    Returns:
        Names of the nodes that multiply with A and with B.
    """
    found: set[str] = set()
    for node in walk.all_nodes(graph):
        first = matrices_of(node)
        second = _next_product(node.outputs[0]) if first is not None and not first.kernel else None
        behind = matrices_of(second) if second is not None else None
        if first is None or second is None or behind is None or behind.inputs != first.outputs:
            continue
        if _THIN * first.outputs > min(first.inputs, behind.outputs):
            continue
        joined = _next_of(second.outputs[0], "Add")
        if joined is not None and any(_is_beside(value, node, first, behind) for value in joined.inputs):
            found |= {node.name or "", second.name or ""}
    return found - {""}


def _next_product(value: ir.Value) -> ir.Node | None:
    return _next_of(value, "MatMul") or _next_of(value, "Gemm")


def _next_of(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only reader of a value, if it is such an operator; factors on the way are passed over."""
    while (user := walk.only_use(value)) is not None:
        if user.op_type == op_type:
            return user
        if user.op_type not in _SCALING or _source(user) is not value:
            return None
        value = user.outputs[0]
    return None


def _source(node: ir.Node) -> ir.Value | None:
    """What a factor scales; None where it joins two values."""
    moving = [value for value in node.inputs if value is not None and not walk.is_constant(value)]
    constants = [walk.const_array(value) for value in node.inputs if value is not None and walk.is_constant(value)]
    scalars = all(array is not None and array.size == 1 for array in constants)
    return moving[0] if len(moving) == 1 and scalars else None


def _unscaled(value: ir.Value | None) -> ir.Value | None:
    """What a value is but for factors."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _SCALING:
        source = _source(node)
        if source is None:
            break
        value = source
    return value


def _is_beside(value: ir.Value | None, branch: ir.Node, first: Matrices, behind: Matrices) -> bool:
    """Whether a value is what a large layer makes of a branch's input, with or without a bias."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and any(walk.is_constant(read) for read in node.inputs):
        moving = next((read for read in node.inputs if not walk.is_constant(read)), None)
        node = moving.producer() if moving is not None else None
    layer = matrices_of(node) if node is not None else None
    if node is None or layer is None or (layer.inputs, layer.outputs) != (first.inputs, behind.outputs):
        return False
    return _unscaled(walk.input_at(node, 0)) is _unscaled(walk.input_at(branch, 0))
