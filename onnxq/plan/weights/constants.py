"""Weights, operands and biases as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.rounding_error import weight_error_db
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import quantize, scale_shape
from onnxq.core.dtypes import Array, QType
from onnxq.core.mapped import Spill, expect, forget
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QParams, QTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import NodeRewrite
from onnxq.graph.reading.ops import row_in
from onnxq.graph.types import Node
from onnxq.plan.decisions import NodePlan
from onnxq.plan.weights.bias import correction
from onnxq.plan.weights.weight_algorithms import PackedWeights
from onnxq.stats.statistics import Statistics

_BIAS_LIMIT = float(1 << 30)

_FEW_BITS = 4
"""Bits up to which the range of a weight is searched."""

_SEARCH = GridConfig(steps=32, smallest=0.2)


def node_rewrite(
    node: Node,
    plan: NodePlan,
    values: dict[str, QParams],
    weights: Weights,
    statistics: Statistics | None,
    shift: Array | None = None,
) -> NodeRewrite:
    """Quantize the constants of a node that runs on integers.

    Args:
        node: the node in the prepared model.
        plan: what becomes of it.
        values: parameters of the activations.
        weights: constants that are quantized already.
        statistics: with the channel means of its input, where the bias is to be corrected; None where not.
        shift: (channels,) what to add to the bias, where that is known already.
    """
    row = row_in(node)
    source = node.inputs[0]
    assert source is not None
    name = source.name or ""
    bias = walk.const_array(walk.input_at(node, row.bias)) if row.bias is not None else None
    scale_y = _output_scale(node, plan, values)
    constants: dict[int, QTensor] = {}
    added: QTensor | None = None
    for position, spec in plan.weights.items():
        if position != row.weight or row.bias is None:
            constants[position] = weights.of(node, position, spec)
            continue
        scale_x = float(values[name].scale.reshape(()))
        exact = None if bias is None else bias.astype(np.float64).reshape(-1)
        constants[position] = weights.of(node, position, spec, exact, scale_x, plan.finest * scale_y)
        known = None if plan.trained else statistics
        added_to = shift if shift is not None else _shift(node, name, constants[position], known)
        if added_to is not None:
            exact = added_to if exact is None else exact + added_to
        if exact is not None:
            added = quantize_bias(exact, scale_x, constants[position].params.scale)
    return NodeRewrite(constants, added, plan.folds, plan.float_output, plan.adds)


def _output_scale(node: Node, plan: NodePlan, values: Mapping[str, QParams]) -> float:
    """The step of what a node gives, behind the clamp that its range replaces; 0 where that is float."""
    ends = [node.outputs[0], *(u.outputs[0] for u in node.outputs[0].consumers() if u.name == plan.folds)]
    params = values.get(ends[-1].name or "")
    return float(params.scale.reshape(())) if params is not None and params.scale.size == 1 else 0.0


def _shift(node: Node, name: str, weight: QTensor, statistics: Statistics | None) -> Array | None:
    means = statistics.means.get(name) if statistics is not None else None
    mean = means.mean if means is not None else None
    if statistics is None or mean is None:
        return None
    return correction(node, weight, mean, statistics[name].shape if name in statistics else None)


def quantize_bias(bias: Array, scale_x: float, scale_w: Array) -> QTensor:
    """A bias as int32 at ``scale_x · scale_w``, so that it is added to the accumulator as it is.

    Args:
        bias: floating point, (channels,).
        scale_x: scale of the input.
        scale_w: scale of the weight, one entry or one a channel.

    Returns:
        QTensor of shape (channels,); its scale is (channels,) or (1,).

    References:
        Jacob et al., arXiv:1712.05877, section 2.4.
    """
    scale = np.atleast_1d((np.float32(scale_x) * scale_w.astype(np.float32).reshape(-1)).astype(np.float32))
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    spec = TensorSpec(QType.INT32, PerTensor(), symmetric=True)
    params = QParams(spec, scale, np.zeros(scale.shape, np.int32))
    return QTensor(quantize(bias, params), params)


class Weights:
    """Quantized constants, each (initializer, grid) once however many nodes read it.

    Attributes:
        packed: the matrices of kernels that read packed weights.
        errors: of weights that were put into a file, as `PackedWeights.errors`.
    """

    def __init__(self, learned: Mapping[tuple[str, int], QTensor] | None = None, spill: Spill | None = None) -> None:
        """Start with what has been learned of single nodes, by (name, input).

        Args:
            learned: see there.
            spill: as of `PackedWeights`.
        """
        self._spill = spill
        self._learned = dict(learned or {})
        self.packed = PackedWeights(spill)
        self.errors = self.packed.errors
        self._known: dict[tuple[str, TensorSpec, bytes], QTensor] = {}

    def of(
        self,
        node: Node,
        position: int,
        spec: TensorSpec,
        bias: Array | None = None,
        scale_x: float = 1.0,
        finest: float = 0.0,
    ) -> QTensor:
        """Quantize the constant at an input of a node.

        Args:
            node: the reader.
            position: its input.
            spec: the grid.
            bias: (channels,) what is to be added to the products as int32; its scale must not be too fine.
            scale_x: scale of the other operand.
            finest: least step of the products, in units of the result; 0 for any.
        """
        known = self._learned.get((node.name or "", position))
        if known is not None:
            return known
        value = node.inputs[position]
        array = walk.const_array(value)
        assert value is not None and array is not None
        plain = self._rounded(value.name or "", array, spec)
        if bias is None and not finest:
            return plain
        # |bias| / (scale_x · scale_w) has to fit an int32: a channel whose weights are tiny gets a coarser grid.
        largest = np.abs(bias) if bias is not None else np.zeros(plain.params.scale.size)
        needed = np.maximum(largest / _BIAS_LIMIT, finest) / scale_x
        smallest = np.asarray(needed if plain.params.scale.size > 1 else needed.max(initial=0.0, keepdims=True))
        if not np.any(smallest > plain.params.scale.reshape(-1)):
            return plain
        return self._rounded(value.name or "", array, spec, smallest)

    def _rounded(self, name: str, array: Array, spec: TensorSpec, smallest: Array | None = None) -> QTensor:
        key = (name, spec, b"" if smallest is None else smallest.tobytes())
        if key not in self._known:
            expect(array)
            few = spec.bits <= _FEW_BITS and smallest is None and not isinstance(spec.granularity, PerBlock)
            tensor = _searched(array, spec) if few else rtn(array, spec, smallest)
            if self._spill is not None:
                error = weight_error_db(array, tensor)
                tensor = self._spill.keep_tensor(tensor)
                self.errors[id(tensor)] = error
                forget(array)
            self._known[key] = tensor
        return self._known[key]


def _searched(weight: Array, spec: TensorSpec) -> QTensor:
    """A weight on the grid of least squared error: with few levels the extrema are no good ends of a range."""
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    by_row = replace(spec, granularity=PerTensor() if axis is None else PerAxis(0))
    found = search_params(np.ascontiguousarray(rows, np.float32), by_row, _SEARCH)
    shape = scale_shape(weight.shape, spec.granularity)
    params = QParams(spec, found.scale.reshape(shape), found.zero_point.reshape(shape))
    return QTensor(quantize(weight, params), params)
