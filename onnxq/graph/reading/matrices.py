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
