"""What can be made right without data: grids that cover what was covered, biases, copies, domains, operator sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, PerTensor, QParams, TensorSpec
from onnxq.graph import edit, walk
from onnxq.graph.emit.common import Builder, channel_axis_of
from onnxq.graph.prepare.whole import lower_opset
from onnxq.graph.prepare.whole import opset as raising
from onnxq.graph.prepare.whole.fix_dims import fix_dims
from onnxq.graph.reading.ops import channel_axis
from onnxq.graph.types import Model, Node
from onnxq.plan.weights.constants import quantize_bias
from onnxq.targets import Target
from onnxq.verify.lint.findings import GridNode, LintFinding, dequantizer, pairs_of, readers

_BIAS = 2


class Fixer:
    """Makes findings right, one after the other, in place."""

    def __init__(self, model: Model, target: Target, sizes: Mapping[str, int]) -> None:
        self._model, self._target, self._sizes = model, target, sizes
        self._builder = Builder(model, joins_equal=False)
        self.notes: list[str] = []

    def fix(self, finding: LintFinding) -> bool:
        """Whether a finding could be made right."""
        makers: dict[str, Callable[[LintFinding], bool]] = {
            "activation-zero-point": self._zero_point,
            "weight-type": self._weight,
            "weight-zero-point": self._weight,
            "weight-granularity": self._weight,
            "saturation": self._weight,
            "bias": self._bias,
            "placement": self._placement,
            "opset": self._opset,
            "shapes": self._shapes,
            "shared-integers": self._copy,
        }
        return finding.fixable and finding.rule in makers and makers[finding.rule](finding)

    def _pair(self, finding: LintFinding) -> GridNode | None:
        return next((pair for pair in pairs_of(self._model) if pair.node.name == finding.node), None)

    def _zero_point(self, finding: LintFinding) -> bool:
        """A grid around zero that reaches as far as the one that is there, for all that have these parameters."""
        pair = self._pair(finding)
        if pair is None or pair.scale is None or pair.zero_point is None or pair.scale.size != 1:
            return False
        zero = int(pair.zero_point.reshape(-1)[0])
        if not zero:
            return True
        reach = max(zero + 128, 127 - zero)
        old = pair.node.inputs[1:3]
        scale = np.asarray(pair.scale.reshape(()) * np.float32(reach / 127), np.float32)
        names = self._builder.names
        values = [
            edit.add_initializer(self._model.graph, names.value("scale"), scale),
            edit.add_initializer(self._model.graph, names.value("zero_point"), np.zeros((), np.int8)),
        ]
        for other in list(pairs_of(self._model)):
            if list(other.node.inputs[1:3]) == list(old):
                for position, value in enumerate(values, 1):
                    other.node.replace_input_with(position, value)
        return True

    def _weight(self, finding: LintFinding) -> bool:
        """The weight rounded once more, on the grid that the target takes."""
        pair = self._pair(finding)
        array = _unfolded(pair) if pair is not None else None
        if pair is None or array is None:
            return False
        user = readers(pair.node)[0][0]
        axis = channel_axis(user, array.ndim) if user.op_type in self._target.per_channel else None
        if pair.scale is not None and pair.scale.size == 1:
            axis = None
        bits = self._target.weight_bits
        spec = TensorSpec(
            QType.INT8,
            PerTensor() if axis is None else PerAxis(axis),
            symmetric=True,
            narrow_range=True,
            grid_bits=bits if bits < 8 else None,
        )
        tensor = rtn(array, spec)
        self._replace(pair.node, self._dequantizer(pair.node, tensor, channel_axis_of(tensor)))
        return True

    def _dequantizer(self, old: Node, tensor: object, axis: int | None) -> Node:
        base = old.inputs[0].name or "weight" if old.inputs[0] is not None else "weight"
        integers = self._builder.integers(base, tensor)  # type: ignore[arg-type]
        output = self._builder.names.value(f"{base}_DequantizeLinear_Output")
        made = self._builder.dequantize(integers, tensor.params, output, base, axis)  # type: ignore[attr-defined]
        made.outputs[0].shape = old.outputs[0].shape
        return made

    def _replace(self, old: Node, new: Node) -> None:
        assert old.graph is not None
        old.graph.insert_before(old, [new])
        old.outputs[0].replace_all_uses_with(new.outputs[0])
        inputs = list(old.inputs)
        old.graph.remove(old, safe=True)
        for value in inputs:
            edit.drop_unused_initializer(value)

    def _bias(self, finding: LintFinding) -> bool:
        node = next((n for n in walk.all_nodes(self._model.graph) if n.name == finding.node), None)
        value = walk.input_at(node, _BIAS) if node is not None else None
        if node is None or value is None or node.graph is None:
            return False
        own = dequantizer(value)
        array = walk.const_array(value) if own is None else _bias_of(own)
        if array is None:
            return False
        if self._target.float_bias:
            name = self._builder.names.value(f"{node.name}_bias")
            edit.set_input(node, _BIAS, edit.add_initializer(self._model.graph, name, array.astype(np.float32)))
        else:
            sides = [dequantizer(walk.input_at(node, i)) for i in (0, 1)]
            scales = [walk.const_array(walk.input_at(side, 1)) if side is not None else None for side in sides]
            if scales[0] is None or scales[1] is None or scales[0].size != 1 or scales[1].ndim > 1:
                return False
            tensor = quantize_bias(array.reshape(-1), float(scales[0].reshape(())), scales[1])
            integers = self._builder.integers(f"{node.name}_bias", tensor)
            output = self._builder.names.value(f"{node.name}_bias_DequantizeLinear_Output")
            axis = 0 if tensor.params.scale.size > 1 else None
            made = self._builder.dequantize(integers, tensor.params, output, f"{node.name}_bias", axis)
            node.graph.insert_before(node, [made])
            edit.set_input(node, _BIAS, made.outputs[0])
        if own is not None and not own.outputs[0].uses() and own.graph is not None:
            inputs = list(own.inputs)
            own.graph.remove(own, safe=True)
            for old in inputs:
                edit.drop_unused_initializer(old)
        edit.drop_unused_initializer(value)
        return True

    def _placement(self, finding: LintFinding) -> bool:
        """Q and DQ with the grid of its input behind what only moves numbers."""
        node = next((n for n in self._model.graph if n.name == finding.node), None)
        source = dequantizer(walk.input_at(node, 0)) if node is not None else None
        if node is None or source is None or node.graph is None:
            return False
        output, names = node.outputs[0], self._builder.names
        kind = source.inputs[0].dtype if source.inputs[0] is not None else None
        q, dq = (
            self._builder.node(
                op_type, [], names.value(f"{output.name}_{op_type}_Output"), domain=source.domain,
                dtype=dtype, shape=output.shape,
            )
            for op_type, dtype in (("QuantizeLinear", kind), ("DequantizeLinear", output.dtype))
        )  # fmt: skip
        node.graph.insert_after(node, [q, dq])
        is_output, name = output.is_graph_output(), output.name
        output.replace_all_uses_with(dq.outputs[0], replace_graph_outputs=True)
        for made, value in ((q, output), (dq, q.outputs[0])):
            made.resize_inputs(3)
            for position, entry in enumerate([value, *source.inputs[1:3]]):
                made.replace_input_with(position, entry)
        if is_output:
            output.name = names.value(f"{name}_float")
            dq.outputs[0].name = name
        return True

    def _opset(self, finding: LintFinding) -> bool:
        if finding.op_type:
            pair = self._pair(finding)
            if pair is None:
                return False
            pair.node.domain = "com.microsoft"
            for graph in walk.all_graphs(self._model.graph):
                graph.opset_imports.setdefault("com.microsoft", 1)
            self._model.opset_imports.setdefault("com.microsoft", 1)
            return True
        if walk.opset(self._model) > self._target.max_opset:
            return lower_opset.run(self._model, self._target.max_opset)
        return raising.raise_to(self._model, self._target.min_opset, self.notes)

    def _shapes(self, finding: LintFinding) -> bool:
        if not self._sizes:
            return False
        fix_dims(self._model, self._sizes)
        self._sizes = {}
        return True

    def _copy(self, finding: LintFinding) -> bool:
        pair = self._pair(finding)
        array = walk.const_array(pair.node.inputs[0]) if pair is not None else None
        if pair is None or array is None or pair.node.inputs[0] is None:
            return False
        old = pair.node.inputs[0]
        name = self._builder.names.value(f"{old.name}_copy")
        pair.node.replace_input_with(0, edit.add_initializer(self._model.graph, name, array, old.dtype))
        return True


def _unfolded(pair: GridNode) -> Array | None:
    """The real numbers that a DQ makes of a constant; None for what is not one scale, or one a channel or block."""
    integers = walk.const_array(pair.node.inputs[0])
    if integers is None or pair.scale is None:
        return None
    scale = pair.scale.astype(np.float32)
    zero = pair.zero_point if pair.zero_point is not None else np.zeros(scale.shape, integers.dtype)
    block = walk.attr_int(pair.node, "block_size")
    axis = walk.attr_int(pair.node, "axis", 1) % max(integers.ndim, 1)
    if block:
        scale, zero = (np.repeat(a, block, axis=axis)[tuple(map(slice, integers.shape))] for a in (scale, zero))
    elif scale.size > 1:
        shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((integers.astype(np.float32) - zero.astype(np.float32)) * scale, np.float32)


def _bias_of(node: Node) -> Array | None:
    integers, scale = walk.const_array(walk.input_at(node, 0)), walk.const_array(walk.input_at(node, 1))
    if integers is None or scale is None:
        return None
    spec = TensorSpec(QType.INT32, PerTensor(), symmetric=True)
    return np.asarray(dequantize(integers, QParams(spec, scale, np.zeros(scale.shape, np.int32))))
