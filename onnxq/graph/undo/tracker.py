"""Walk through a quantized model and write the float operator in the place of each integer one.

Every value of integers stands for real numbers, ``(integers − zero point) · scale``; once the node that makes them is
rewritten, `Tracker.real` knows the float value that they stand for. What only moves integers moves floats afterwards;
where integers become floats again, the float value is there already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.prepare.folding import evaluate
from onnxq.graph.reading.ops import MICROSOFT
from onnxq.graph.reading.signs import Sign, sign_of
from onnxq.graph.undo.real_weights import dequantized, grid_of
from onnxq.graph.views.counterparts import bare_name

Param = ir.Value | None

FLOAT_TYPE = ir.TensorType(ir.DataType.FLOAT)

SMALL = frozenset(
    ir.DataType[name]
    for name in "INT8 UINT8 INT4 UINT4 INT16 UINT16 INT2 UINT2".split()
    if name in ir.DataType.__members__
)
"""Element types that weights and activations are quantized to."""

_CLAMP_AT, _NEAR = 6.0, 1e-3
"""Relu6 is the clamp that quantizers fold into ranges beside Relu; its range ends there, within a thousandth."""


@dataclass(frozen=True)
class Real:
    """What integers stand for.

    Attributes:
        value: the float value.
        scale: of the integers.
        zero: their zero point.
        product: the integers are a sum of products, at the scale of the first factor times that of a constant or of
            ``other``.
        other: scale of the second factor, where that is found at inference too.
    """

    value: ir.Value
    scale: Param
    zero: Param
    product: bool = False
    other: Param = None


class Tracker:
    """What is known of the values of a model on its way back to float."""

    def __init__(self, model: ir.Model) -> None:
        """Start with nothing known."""
        self.model, self.names = model, walk.Names(model)
        self.real: dict[int, Real] = {}
        self.kept: list[ir.Value] = []  # ids stay valid while their values live
        self.done = 0
        self._folded: dict[tuple[object, ...], ir.Value] = {}
        self._arrays: dict[int, Array] = {}

    # Constants.

    def array(self, value: ir.Value | None) -> Array | None:
        """The contents of a constant, also behind nodes that turn or shape one; None for anything else."""
        if value is None:
            return None
        if (array := walk.const_array(value)) is not None:
            return array
        if id(value) in self._arrays:
            return self._arrays[id(value)]
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in evaluate.OPERATORS or walk.subgraphs(node):
            return None
        inputs = [self.array(source) for source in node.inputs]
        if not inputs or any(a is None and s is not None for a, s in zip(inputs, node.inputs, strict=True)):
            return None
        found = evaluate.evaluate(node, inputs, walk.opset(self.model))
        if found is None:
            return None
        for output, result in zip(node.outputs, found, strict=False):
            self._arrays[id(output)] = result
            self.kept.append(output)
        return self._arrays.get(id(value))

    def constant(self, name: str, array: Array) -> ir.Value:
        """A new initializer of the main graph, named after what it was before it was quantized."""
        return edit.add_initializer(self.model.graph, self.free(name or "weight"), np.ascontiguousarray(array))

    def free(self, name: str) -> str:
        """A name for a value: without the endings of quantizers where that is free."""
        return self.names.value(bare_name(name))

    def shared(self, value: ir.Value, more: object, make: Callable[[], Array]) -> ir.Value:
        """A float constant in the place of constant integers, made once for all who read it alike.

        Args:
            value: the integers.
            more: what else it depends on.
            make: gives its contents.
        """
        key = (id(value), more)
        if key not in self._folded:
            self.kept.append(value)
            self._folded[key] = self.constant(value.name or "", make())
        return self._folded[key]

    def weight(self, source: ir.Value, scale: Param, zero: Param, axis: int = 1, block: int = 0) -> ir.Value | None:
        """The float constant that constant integers stand for, made once; None where one of the three is not known."""
        integers, scales, zeros = self.array(source), self.array(scale), self.array(zero)
        if integers is None or scales is None or (zero is not None and zeros is None):
            return None
        key = (id(source), id(scale), id(zero), axis, block)
        if key not in self._folded:
            self.kept += [value for value in (source, scale, zero) if value is not None]
            self._folded[key] = self.constant(source.name or "", dequantized(integers, scales, zeros, axis, block))
        return self._folded[key]

    # Values.

    def stand_for(self, value: ir.Value, real: Real) -> None:
        """Note what the integers of a value stand for."""
        self.real[id(value)] = real
        self.kept.append(value)

    def known(self, value: ir.Value | None) -> Real | None:
        """What the integers of a value stand for, where that is known."""
        return None if value is None else self.real.get(id(value))

    def floats(self, node: ir.Node, value: ir.Value, scale: Param, zero: Param, axis: int = 1) -> ir.Value:
        """The float value of integers that a node reads with a scale: known, constant, or computed in front of it."""
        known = self.known(value)
        if known is not None:
            return self._on_grid(node, known, scale, zero, axis)
        constant = self.weight(value, scale, zero, axis)
        if constant is not None:
            return constant
        rows = self._rows(value, scale, zero)
        return rows if rows is not None else self._computed(node, value, scale, zero, axis)

    def _on_grid(self, node: ir.Node, known: Real, scale: Param, zero: Param, axis: int) -> ir.Value:
        """The known value, scaled and moved where it is read with parameters other than it was written with."""
        if known.scale is scale and known.zero is zero:
            return known.value
        arrays = [self.array(value) for value in (known.scale, scale, known.zero, zero)]
        before, after = arrays[0], arrays[1]
        if before is None or after is None:
            return known.value
        middle_before, middle_after = (0.0 if a is None else a.astype(np.float32) for a in arrays[2:])
        moved = (np.asarray(middle_before - middle_after) * after.astype(np.float32)).astype(np.float32)
        ratio = (after.astype(np.float32) / before.astype(np.float32)).astype(np.float32)
        value = known.value
        for op_type, factor, neutral in (("Mul", ratio, 1.0), ("Add", moved, 0.0)):
            if (factor == neutral).all():
                continue
            shaped = self._beside(value, factor, axis)
            value = self.before(node, op_type, [value, self.constant(f"{value.name}_ratio", shaped)], f"{value.name}")
        return value

    @staticmethod
    def _beside(value: ir.Value, factor: Array, axis: int) -> Array:
        rank = walk.rank(value)
        if factor.ndim != 1 or factor.size == 1:
            return factor.reshape(()) if factor.size == 1 else factor
        behind = (rank - 1 - axis % rank) if rank is not None else 2  # channels of images, where nothing is said
        return factor.reshape(-1, *(1,) * behind)

    def _rows(self, value: ir.Value, scale: Param, zero: Param) -> ir.Value | None:
        """Rows of a float table in the place of rows of integers; None where they are not gathered, or have scales."""
        node, step = value.producer(), self.array(scale)
        if node is None or node.op_type != "Gather" or node.inputs[0] is None or step is None or step.size != 1:
            return None
        table = self.weight(node.inputs[0], scale, zero)
        if table is None or node.inputs[0].dtype not in SMALL or node.graph is None:
            return None
        name, node.name = node.name, None
        made = ir.Node(
            "", "Gather", [table, node.inputs[1]], list(node.attributes.values()), name=name,
            outputs=[ir.Value(name=self.free(value.name or ""))],
        )  # fmt: skip
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        node.graph.insert_before(node, made)
        self.stand_for(value, Real(made.outputs[0], scale, zero))
        return made.outputs[0]

    def _computed(self, node: ir.Node, value: ir.Value, scale: Param, zero: Param, axis: int) -> ir.Value:
        """``(integers − zero) · scale`` in float operators: of integers that come from outside."""
        base = value.name or "x"
        real = self.before(node, "Cast", [value], f"{base}_float", [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
        for op_type, parameter in (("Sub", zero), ("Mul", scale)):
            array = self.array(parameter)
            if array is not None and array.size:
                shaped = self._beside(value, array.astype(np.float32), axis)
                other: ir.Value | None = self.constant(f"{base}_{op_type.lower()}", shaped)
            elif parameter is None:
                continue
            elif op_type == "Sub":
                other = self.before(
                    node, "Cast", [parameter], f"{base}_zero", [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
                )
            else:
                other = parameter
            real = self.before(node, op_type, [real, other], f"{base}_{'moved' if op_type == 'Sub' else 'real'}")
        return real

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        output: str,
        attributes: list[ir.Attr] | None = None,
    ) -> ir.Value:
        """A float operator in front of a node."""
        name = self.names.value(output)
        made = ir.Node(
            "", op_type, inputs, attributes or [],
            outputs=[ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))],
            name=self.names.node(f"{output}_{op_type}"),
        )  # fmt: skip
        assert node.graph is not None
        node.graph.insert_before(node, made)
        return made.outputs[0]

    def take_over(self, node: ir.Node, output: ir.Value, value: ir.Value) -> None:
        """Let the readers of a float output read another value, which gets the name of an output of the graph."""
        if output.is_graph_output():
            graph = node.graph
            assert graph is not None
            if not edit.can_be_output(value, graph):
                value = self.before(node, "Identity", [value], f"{output.name}_same")
            edit.take_over(output, value)
        else:
            output.replace_all_uses_with(value)
        self.done += 1

    def instead(
        self,
        node: ir.Node,
        domain: str,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: list[ir.Attr],
    ) -> ir.Value:
        """A float operator in front of a node, under its name; its first output."""
        if domain == MICROSOFT:
            self.model.graph.opset_imports.setdefault(MICROSOFT, 1)
        name = node.name
        node.name = None
        bare = bare_name(name or "")
        if bare != (name or ""):
            bare = self.names.node(bare)
        outputs = []
        for output in node.outputs:
            made = ir.Value(name=self.free(output.name) if output.name else "", type=FLOAT_TYPE, shape=output.shape)
            outputs.append(made)
        made_node = ir.Node(domain, op_type, inputs, attributes, outputs=outputs, name=bare or None)
        made_node.metadata_props.update(node.metadata_props)
        assert node.graph is not None
        node.graph.insert_before(node, made_node)
        for old, new in list(zip(node.outputs, outputs, strict=True))[1:]:
            if old.name:
                edit.take_over(old, new) if old.is_graph_output() else old.replace_all_uses_with(new)
        return outputs[0]

    def clamped(self, node: ir.Node, value: ir.Value, scale: Param, zero: Param) -> ir.Value:
        """The value, behind the Relu or Clip whose work the grid of its integers did.

        Args:
            node: a node in front of which it may stand, behind the one that makes the value.
            value: the float value.
            scale: of the grid.
            zero: of the grid.
        """
        step, middle = self.array(scale), self.array(zero)
        if step is None or step.size != 1 or (zero is not None and middle is None) or value.producer() is None:
            return value
        with contextlib.suppress(ValueError):
            low, high = grid_of(middle.dtype if middle is not None else np.dtype(np.uint8))
            point = 0 if middle is None else int(middle.reshape(()))
            if point != low or sign_of(value) is Sign.NEVER_NEGATIVE or _is_never_negative(value):
                return value
            top = float(step.reshape(())) * (high - point)
            output = f"{value.name}_clamped"
            if abs(top - _CLAMP_AT) < _NEAR and walk.opset(self.model) >= 11:
                ends = [self.constant(f"{output}_{e}", np.asarray(e, np.float32)) for e in (0.0, _CLAMP_AT)]
                return self.before(node, "Clip", [value, *ends], output)
            return self.before(node, "Relu", [value], output)
        return value


def _is_never_negative(value: ir.Value) -> bool:
    """What `onnxq.graph.reading.signs` does not look through: a clamp behind a sum, a pool of clamped values."""
    node = value.producer()
    for _ in range(8):
        if node is None or not node.inputs or node.inputs[0] is None:
            return False
        if sign_of(node.outputs[0]) is Sign.NEVER_NEGATIVE:
            return True
        if node.op_type in ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Max", "DepthToSpace"):
            node = node.inputs[0].producer()
        elif node.op_type in ("Add", "Mul", "Concat", "Sum"):
            return all(source is not None and _made_never_negative(source) for source in node.inputs)
        else:
            return False
    return False


def _made_never_negative(value: ir.Value) -> bool:
    array = walk.const_array(value)
    if array is not None:
        return bool(array.size) and float(array.min()) >= 0.0
    return value.producer() is not None and (sign_of(value) is Sign.NEVER_NEGATIVE or _is_never_negative(value))
