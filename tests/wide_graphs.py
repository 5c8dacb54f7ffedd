"""Random models with what exporters write beside plain layers.

Activations and norms in parts, shapes that are computed, recurrent layers, functions, old operator sets, sequences, and
weights that are shared, computed, inputs or outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.random_graphs import SHAPES, RandomGraph

IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
IR_VERSIONS |= {22: 10, 23: 11}
_NAMES = ("/model/layers.0/{}", "{}:0", "a b {}", "é{}", "{}.weight", "onnx::{}", "0{}")
_ACTIVATIONS = (
    "Relu LeakyRelu Sigmoid Tanh Elu Selu Celu HardSigmoid HardSwish Gelu Erf Mish Softplus Softsign ThresholdedRelu "
    "Exp Abs Neg Sign Ceil Floor Round Sin Cos Swish Reciprocal Sqrt LpNormalization MeanVarianceNormalization"
).split()


class WideGraph(RandomGraph):
    """As `RandomGraph`, with more kinds of everything."""

    SHAPES = (*SHAPES, (2, 3, 64), (4, 96), (1, 32, 5, 5))

    def __init__(self, rng: random.Random, steps: int) -> None:
        self.functions: list[onnx.FunctionProto] = []
        super().__init__(rng, steps)

    def builders(self) -> list[Callable[[], None]]:
        self.opset = self.rng.choice([*range(7, 24), 17, 18, 13, 11])
        found = super().builders()
        found += [self.activation, self.activation, self.written_activation, self.prelu, self.transposed_conv]
        found += [self.shared, self.shared, self.computed_weight, self.computed_weight, self.norm, self.norm]
        found += [self.attention, self.attention, self.recurrent, self.recurrent, self.computed_shape]
        found += [self.indexed, self.double, self.half_layers, self.function, self.integers_too, self.scan]
        found += [self.constants_in_bodies, self.uneven_split, self.attributes_of_old, self.einsum, self.empty]
        found += [self.sequence, self.runtime_operators, self.reduced, self.selected, self.outer_layers]
        return found

    def name(self, base: str) -> str:
        name = super().name(base)
        if self.coin(0.05):
            name = self.rng.choice(_NAMES).format(name)
        return name

    def _model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("my", 1)]
        version = max(IR_VERSIONS[self.opset], 8 if self.functions else 0)
        return helper.make_model(graph, opset_imports=imports, ir_version=version, functions=self.functions)

    def axes(self, op_type: str, x: str, axes: Sequence[int], since: int = 13, **attributes: Any) -> list[str]:
        """A node whose axes are an input since some operator set, an attribute before."""
        if self.opset < since:
            return self.node(op_type, [x], axes=list(axes), **attributes)
        return self.node(op_type, [x, self.integers(*axes)], **attributes)

    def chain(self, first: str, *steps: tuple[Any, ...]) -> str:
        """Nodes one behind the other; a step's inputs are names, or None for what came before."""
        made = first
        for op_type, *rest in steps:
            attributes = rest.pop() if rest and isinstance(rest[-1], dict) else {}
            inputs = [made if name is None else name for name in (rest or [None])]
            found = self.node(op_type, inputs, **attributes)
            if not found:
                return made
            made = found[0]
        return made

    def number(self, value: float, rank: int = 0) -> str:
        return self.constant(np.full((1,) * rank, value, np.float32))

    def layer(self, x: str, weight: str | None = None) -> str | None:
        width = self.values[x].shape[-1]
        made = self.node("MatMul", [x, weight or self.weight(width, width, fan=width)])
        return made[0] if made else None

    # Activations and norms.

    def activation(self) -> None:
        if (x := self.float()) is not None:
            self.node(self.rng.choice(_ACTIVATIONS), [x])

    def written_activation(self) -> None:
        if (x := self.float()) is None:
            return
        match self.rng.randrange(7):
            case 0:  # Gelu
                y = self.chain(
                    x, ("Div", None, self.number(2**0.5)), ("Erf",), ("Add", None, self.number(1)), ("Mul", None, x)
                )
                self.node("Mul", [y, self.number(0.5)])
            case 1:  # Gelu by tanh
                cube = self.chain(x, ("Pow", None, self.number(3)), ("Mul", None, self.number(0.044715)))
                y = self.chain(cube, ("Add", x, None), ("Mul", None, self.number(0.7978846)), ("Tanh",))
                self.chain(y, ("Add", None, self.number(1)), ("Mul", x, None), ("Mul", self.number(0.5), None))
            case 2:  # HardSwish
                y = self.chain(x, ("Add", None, self.number(3)))
                if self.opset < 11:
                    y = self.chain(y, ("Clip", None, {"min": 0.0, "max": 6.0}))
                else:
                    y = self.chain(y, ("Clip", None, self.number(0), self.number(6)))
                self.chain(y, ("Mul", x, None), ("Div", None, self.number(6)))
            case 3:  # Mish
                self.chain(x, ("Softplus",), ("Tanh",), ("Mul", None, x))
            case 4:  # Swish, with a factor
                self.chain(x, ("Mul", None, self.number(1.7)), ("Sigmoid",), ("Mul", x, None))
            case 5:  # a softmax in parts
                top = self.axes("ReduceMax", x, [-1], since=18, keepdims=1)
                y = self.chain(x, ("Sub", None, top[0]), ("Exp",)) if top else x
                if top and (s := self.axes("ReduceSum", y, [-1], keepdims=1)):
                    self.node("Div", [y, s[0]])
            case 6:  # standardized by constants, and a residual
                y = self.chain(x, ("Sub", None, self.number(0.4)), ("Div", None, self.number(0.3)), ("Relu",))
                self.node("Add", [y, x])

    def prelu(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        array = self.values[x]
        shapes = [(1,), array.shape[-1:], (array.shape[min(1, array.ndim - 1)], *(1,) * (array.ndim - 2)), array.shape]
        slope = self.constant(self._data.uniform(-0.2, 0.5, self.rng.choice(shapes)).astype(np.float32))
        self.node("PRelu", [x, slope])

    def norm(self) -> None:
        if (x := self.float(at_least=2)) is None:
            return
        array = self.values[x]
        width, channels = array.shape[-1], array.shape[1]
        match self.rng.randrange(7):
            case 0:
                scale, bias = self.weight(width), self.weight(width)
                self.node("LayerNormalization", [x, scale, *self.rng.choice([[], [bias]])], axis=-1)
            case 1 | 2:
                if mean := self.axes("ReduceMean", x, [-1], since=18):
                    centred = self.chain(x, ("Sub", None, mean[0]))
                    square = self.rng.choice([("Mul", centred, centred), ("Pow", centred, self.number(2))])
                    if v := self.axes("ReduceMean", self.chain(centred, square), [-1], since=18):
                        root = self.chain(v[0], ("Add", None, self.number(1e-5)), ("Sqrt",))
                        y = self.chain(centred, ("Div", None, root), ("Mul", None, self.weight(width)))
                        self.layer(self.chain(y, ("Add", self.weight(width), None)))
            case 3:  # by the root of the mean square
                square = self.chain(x, self.rng.choice([("Pow", x, self.number(2)), ("Mul", x, x)]))
                if v := self.axes("ReduceMean", square, [-1], since=18):
                    root = self.chain(v[0], ("Add", None, self.number(1e-6)), ("Sqrt",), ("Reciprocal",))
                    self.layer(self.chain(x, ("Mul", None, root), ("Mul", self.weight(width), None)))
            case 4:
                self.node("InstanceNormalization", [x, self.weight(channels), self.weight(channels)])
            case 5:
                size = channels if self.opset >= 21 else 1
                self.node("GroupNormalization", [x, self.weight(size), self.weight(size)], num_groups=1)
            case 6:
                self.node("LRN", [x], size=3)

    # Layers.

    def transposed_conv(self) -> None:
        if (x := self.float(3, 4, 5)) is None:
            return
        channels, rank = self.values[x].shape[1], self.values[x].ndim - 2
        kernel = [self.rng.randint(1, 3) for _ in range(rank)]
        group = self.rng.choice([1, 1, channels])
        attributes: dict[str, Any] = {"group": group, "strides": [self.rng.randint(1, 2) for _ in range(rank)]}
        if self.coin(0.3):
            attributes["auto_pad"] = self.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        elif self.coin(0.5):
            attributes["pads"] = [self.rng.randint(0, 1) for _ in range(2 * rank)]
        if self.coin(0.4):
            attributes["output_padding"] = [s - 1 for s in attributes["strides"]]
        if self.coin(0.2):
            attributes["dilations"] = [self.rng.randint(1, 2) for _ in range(rank)]
        if self.coin(0.2):
            attributes["output_shape"] = [s * 2 for s in self.values[x].shape[2:]]
        columns = self.rng.randint(1, 4)
        inputs = [x, self.weight(channels, columns, *kernel, fan=channels)]
        inputs += [self.weight(columns * group)] if self.coin() else []
        if y := self.node("ConvTranspose", inputs, **attributes):
            self._behind(y[0])

    def shared(self) -> None:
        """A weight of several layers, used otherwise too."""
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight = self.weight(width, width, fan=width)
        y = self.chain(x, ("MatMul", None, weight), ("Relu",), ("MatMul", None, weight))
        match self.rng.randrange(6):
            case 0 if self.values[y].ndim == 2:
                self.node("Gemm", [y, weight, *self.rng.choice([[], [self.weight(width)]])], transB=1)
            case 1:
                self.node("Gather", [weight, self.constant(np.array([0, width - 1]))])
            case 2:
                self.node("Transpose", [weight], perm=[1, 0])
            case 3:
                self.node("Add", [y, weight])
            case 4 if turned := self.node("Transpose", [weight], perm=[1, 0]):
                self.node("MatMul", [y, turned[0]])
            case 5:
                self.node("MatMul", [weight, y])

    def computed_weight(self) -> None:
        """A weight that constants are computed into, or that is computed from the data."""
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight = self.weight(width, width, fan=width)
        match self.rng.randrange(9):
            case 0:
                weight = self.chain(weight, ("Transpose", None, {"perm": [1, 0]}))
            case 1:
                weight = self.chain(self.weight(width * width, fan=width), ("Reshape", None, self.integers(width, -1)))
            case 2:
                halves = self.constant((self._data.normal(size=(width, width)) / width**0.5).astype(np.float16))
                weight = self.chain(halves, ("Cast", None, {"to": TensorProto.FLOAT}))
            case 3:
                weight = self.chain(weight, ("Mul", None, self.number(0.7)), ("Identity",))
            case 4:
                norm = self.node("ReduceL2", [weight], axes=[0]) if self.opset < 18 else None
                weight = self.chain(weight, ("Div", None, norm[0])) if norm else weight
            case 5:
                integers = self.constant(self._data.integers(-127, 127, (width, width)).astype(np.int8))
                scale = self.constant(np.float32(0.02))
                weight = self.chain(integers, ("DequantizeLinear", None, scale))
            case 6:
                square = self.node("Slice", [x, *(self.integers(n) for n in (0, 1, 0))])
                if square and (flat := self.node("Reshape", [square[0], self.integers(-1, 1)])):
                    self.node("MatMul", [self.weight(3, self.values[flat[0]].shape[0], fan=9), flat[0]])
            case 7:
                weight = self.chain(
                    weight, ("Unsqueeze", None, {"axes": [0]}) if self.opset < 13 else ("Identity",), ("Identity",)
                )
            case 8:
                parts = [self.weight(width, 1, fan=width) for _ in range(width)]
                weight = self.chain(weight, ("Concat", *parts, {"axis": 1}))
        y = self.layer(x, weight)
        if y and self.coin():
            self.layer(y, weight)

    def attention(self) -> None:
        if (x := self.float(3)) is None:
            return
        _, length, width = self.values[x].shape
        heads = self.rng.choice([h for h in (1, 2, 4) if width % h == 0])
        if self.coin(0.2):
            x = self.chain(x, ("Identity",))
        shape = self.integers(0, self.rng.choice([-1, length]), heads, width // heads)
        turned: list[str] = []
        if self.coin(0.2):  # one product for queries, keys and values
            y = self.chain(x, ("MatMul", None, self.weight(width, 3 * width, fan=width)))
            sizes = [self.integers(*[width] * 3)] if self.opset >= 13 else []
            parts = self.node("Split", [y, *sizes], 3, axis=2)
        else:
            parts = [p for _ in range(3) if (p := self.layer(x))]
            parts = [self.chain(p, ("Add", self.weight(width), None)) if self.coin() else p for p in parts]
        last = [0, 2, 1, 3] if self.coin(0.15) else [0, 2, 3, 1]
        for part, perm in zip(parts, ([0, 2, 1, 3], last, [0, 2, 1, 3]), strict=False):
            turned.append(self.chain(part, ("Reshape", None, shape), ("Transpose", None, {"perm": perm})))
        if len(turned) < 3 or any(self.values[t].ndim != 4 for t in turned):
            return
        query, key, value = turned
        if self.values[key].shape[2] != width // heads:
            key = self.chain(key, ("Transpose", None, {"perm": [0, 1, 3, 2]}))
        root = self.number((width / heads) ** 0.5)
        early = self.coin()
        scores = self.chain(self.chain(query, ("Div", None, root)) if early else query, ("MatMul", None, key))
        if not early:
            scores = self.chain(scores, self.rng.choice([("Div", None, root), ("Mul", None, self.number(0.5))]))
        if self.coin(0.4):
            least = self.rng.choice([-1e4, -65504.0, float(np.finfo(np.float32).min), -float("inf")])
            mask = np.triu(np.full((length, length), least if np.isfinite(least) else -1e9), 1).astype(np.float32)
            if self.coin():
                scores = self.chain(scores, ("Add", None, self.constant(mask)))
            else:
                scores = self.chain(scores, ("Where", self.constant(mask == 0), None, self.constant(np.float32(least))))
        y = self.chain(scores, ("Softmax", None, {"axis": -1}), ("MatMul", None, value))
        y = self.chain(y, ("Transpose", None, {"perm": [0, 2, 1, 3]}), ("Reshape", None, self.integers(0, 0, width)))
        if self.values[y].ndim == 3 and (z := self.layer(y)):
            self.node("Add", [z, x])

    def recurrent(self) -> None:
        if (x := self.float(3)) is None:
            return
        length, batch, width = self.values[x].shape
        op_type, gates = self.rng.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
        direction = self.rng.choice(["forward", "reverse", "bidirectional"])
        ways, hidden = 2 if direction == "bidirectional" else 1, self.rng.choice([1, 3, 8])
        weight = self.weight(ways, gates * hidden, width, fan=width)
        again = self.weight(ways, gates * hidden, hidden, fan=hidden)
        bias = self.weight(ways, 2 * gates * hidden) if self.coin() else ""
        lengths = np.minimum(self._data.integers(1, length + 1, batch), length).astype(np.int32)
        if lengths.max() < length and self.coin():
            lengths[0] = length
        inputs = [x, weight, again, bias, self.constant(lengths) if self.coin(0.3) else ""]
        if self.coin(0.4):
            inputs.append(self.weight(ways, batch, hidden))
            if op_type == "LSTM" and self.coin():
                inputs.append(self.weight(ways, batch, hidden))
                if self.coin(0.3):
                    inputs.append(self.weight(ways, 3 * hidden))
        while inputs[-1] == "":
            inputs.pop()
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        if op_type == "GRU" and self.coin():
            attributes["linear_before_reset"] = 1
        if self.coin(0.1):
            attributes["clip"] = 2.0
        made = self.node(op_type, inputs, self.rng.choice([1, 2, 3 if op_type == "LSTM" else 2]), **attributes)
        if not made:
            return
        if self.coin():
            y = self.chain(made[0], ("Transpose", None, {"perm": [0, 2, 1, 3]}))
            y = self.chain(y, ("Reshape", None, self.integers(0, 0, -1)))
            self.layer(y)
            if self.coin(0.3):  # the same weights again
                self.node(op_type, inputs, 1, **attributes)

    def einsum(self) -> None:
        if (x := self.float(3)) is None:
            return
        width = self.values[x].shape[-1]
        match self.rng.randrange(3):
            case 0:
                self.node("Einsum", [x, self.weight(width, 5, fan=width)], equation="bti,io->bto")
            case 1:
                self.node("Einsum", [x, x], equation="bti,bsi->bts")
            case 2:
                self.node("Einsum", [x, self.weight(5, width, fan=width)], equation="...i,oi->...o")

    # Shapes and indices.

    def computed_shape(self) -> None:
        if (x := self.float(at_least=2)) is None or not (shape := self.node("Shape", [x])):
            return
        array = self.values[x]
        match self.rng.randrange(6):
            case 0:  # view(x.size(0), -1)
                size = self.chain(shape[0], ("Gather", None, self.constant(np.array(0))))
                if one := self.axes("Unsqueeze", size, [0]):
                    y = self.chain(one[0], ("Concat", None, self.integers(-1), {"axis": 0}), ("Reshape", x, None))
                    if self.values[y].dtype == np.float32:
                        self.layer(y)
            case 1:  # flatten of the last two
                if self.opset >= 10:
                    first = self.chain(shape[0], ("Slice", None, self.integers(0), self.integers(array.ndim - 2)))
                    self.chain(first, ("Concat", None, self.integers(-1), {"axis": 0}), ("Reshape", x, None))
            case 2:
                self.chain(shape[0], ("ConstantOfShape",), ("Add", x, None))
            case 3:
                self.chain(self.weight(*array.shape[1:]), ("Expand", None, shape[0]), ("Mul", x, None))
            case 4:
                self.chain(shape[0], ("Cast", None, {"to": TensorProto.FLOAT}), ("Mul", None, self.number(0.5)))
            case 5:  # the last dimension as a factor
                size = self.chain(shape[0], ("Gather", None, self.constant(np.array(-1))))
                root = self.chain(size, ("Cast", None, {"to": TensorProto.FLOAT}), ("Sqrt",))
                if self.values[root].dtype == np.float32:
                    self.layer(self.chain(x, ("Div", None, root)))

    def indexed(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        array = self.values[x]
        width, rows = array.shape[-1], array.shape[0]
        match self.rng.randrange(9):
            case 0:
                self.node("GatherND", [x, self.constant(np.array([[0], [rows - 1]]))])
            case 1:
                updates = self.weight(1, *array.shape[1:])
                self.node("ScatterND", [x, self.constant(np.array([[rows - 1]])), updates])
            case 2:
                indices = self._data.integers(0, width, (*array.shape[:-1], 2))
                self.node("GatherElements", [x, self.constant(indices)], axis=-1)
            case 3:
                indices = np.zeros((*array.shape[:-1], 1), np.int64)
                self.node("ScatterElements", [x, self.constant(indices), self.weight(*indices.shape)], axis=-1)
            case 4:
                inputs = [x] if self.opset < 10 else [x, self.integers(max(width // 2, 1))]
                self.node("TopK", inputs, 2, **({"k": max(width // 2, 1)} if self.opset < 10 else {}), axis=-1)
            case 5:
                self.node("CumSum", [x, self.constant(np.array(self.axis(array), np.int32))])
            case 6:
                self.node("Trilu", [x], upper=int(self.coin()))
            case 7:  # an embedding, and a layer behind it
                ids = self.input(self._data.integers(0, 7, (2, 3)))
                table = self.weight(7, 8)
                if y := self.node("Gather", [table, ids]):
                    self.layer(y[0])
                    if self.coin():  # the table is the weight of the last layer too
                        self.chain(table, ("Transpose", None, {"perm": [1, 0]}), ("MatMul", y[0], None))
            case 8:
                flags = self.constant(self._data.random(rows) < 0.7)
                self.node("Compress", [x, flags], axis=0)

    def uneven_split(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        axis, length = self.axis(self.values[x]), 0
        length = self.values[x].shape[axis]
        sizes = self.rng.choice([[length], [0, length], [1, 0, length - 1], [length // 2, length - length // 2]])
        if self.opset >= 18 and self.coin(0.4):
            self.node("Split", [x], 3, axis=axis, num_outputs=3)
        elif self.opset >= 13:
            self.node("Split", [x, self.integers(*sizes)], len(sizes), axis=axis)
        else:
            self.node("Split", [x], len(sizes), axis=axis, split=sizes)

    def selected(self) -> None:
        """What is chosen by the data: comparisons, masks, positions of what is not zero."""
        if (x := self.float(at_least=1)) is None or not (large := self.node("Greater", [x, self.number(0)])):
            return
        match self.rng.randrange(4):
            case 0:
                self.node("Where", [large[0], x, self.number(0)])
            case 1:
                self.chain(large[0], ("Cast", None, {"to": TensorProto.FLOAT}), ("Mul", x, None))
            case 2:
                self.chain(large[0], ("Not",), ("Where", None, self.number(-1e4), x), ("Softmax", None, {"axis": -1}))
            case 3:
                self.node("NonZero", [large[0]])

    def reduced(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        op_type = self.rng.choice(
            ["ReduceSum", "ReduceMean", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "ArgMin"]
        )
        if op_type == "ArgMin" or self.coin(0.2):
            self.node(op_type, [x])
        else:
            self.axes(op_type, x, [self.axis(self.values[x])], 13 if op_type == "ReduceSum" else 18, keepdims=1)

    def empty(self) -> None:
        """Values without elements, which are joined to others again."""
        if (x := self.float(at_least=1)) is None or self.opset < 10:
            return
        axis = self.axis(self.values[x])
        ends = [self.integers(n) for n in (0, 0, axis)]
        shape = list(self.values[x].shape)
        shape[axis] = 0
        nothing = self.constant(np.zeros(shape, np.float32))
        if self.coin():
            nothing = next(iter(self.node("Slice", [x, *ends])), nothing)
        self.node("Concat", self.rng.choice([[x, nothing], [nothing, x]]), axis=axis)

    # Types.

    def double(self) -> None:
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight = self.constant(self._data.normal(size=(width, 3)) / width**0.5)
        steps: list[tuple[Any, ...]] = [("Cast", None, {"to": TensorProto.DOUBLE}), ("MatMul", None, weight), ("Tanh",)]
        y = self.chain(x, *steps)
        if self.values[y].dtype == np.float64 and self.coin(0.8):
            self.node("Cast", [y], to=TensorProto.FLOAT)

    def half_layers(self) -> None:
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight = self.constant((self._data.normal(size=(width, width)) / width**0.5).astype(np.float16))
        y = self.chain(x, ("Cast", None, {"to": TensorProto.FLOAT16}), ("MatMul", None, weight), ("Relu",))
        if self.values[y].dtype == np.float16 and self.coin(0.8):
            self.node("Cast", [y], to=TensorProto.FLOAT)

    def integers_too(self) -> None:
        """Pixels: bytes that become floats, and floats that become bytes."""
        pixels = self.input(self._data.integers(0, 256, (1, 3, 5, 5)).astype(np.uint8))
        y = self.chain(pixels, ("Cast", None, {"to": TensorProto.FLOAT}), ("Div", None, self.number(255)))
        if self.values[y].dtype == np.float32 and (z := self.node("Conv", [y, self.weight(4, 3, 3, 3, fan=27)])):
            self._behind(z[0])
            if self.coin():
                self.node("Cast", self.node("Abs", z) or z, to=TensorProto.INT32)

    # Graphs in graphs.

    def function(self) -> None:
        if (x := self.float(at_least=2)) is None or self.opset < 15:
            return
        width = self.values[x].shape[-1]
        name = f"Layer{len(self.functions)}"
        body = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="inside"),
            helper.make_node(self.rng.choice(["Relu", "Tanh"]), ["a"], ["b"]),
            helper.make_node("Add", ["b", "x"], ["y"]),
        ]
        if self.coin():
            last = body.pop()
            body += [
                helper.make_node("Constant", [], ["k"], value_float=0.5),
                helper.make_node("Mul", ["b", "k"], ["c"]),
            ]
            body.append(helper.make_node(last.op_type, ["c", "x"], ["y"]))
        imports = [helper.make_opsetid("", self.opset)]
        self.functions.append(helper.make_function("my", name, ["x", "w"], ["y"], body, imports))
        weight = self.weight(width, width, fan=width)
        y = self.node(name, [x, weight], domain="my")
        if y and self.coin():
            self.node(name, [y[0], self.rng.choice([weight, self.weight(width, width, fan=width)])], domain="my")

    def scan(self) -> None:
        if (x := self.float(3)) is None or self.opset < 9:
            return
        width, batch = self.values[x].shape[-1], self.values[x].shape[1]
        square = self._square(x)
        body = helper.make_graph(
            [
                helper.make_node("Add", ["state", "now"], ["a"]),
                helper.make_node("MatMul", ["a", square], ["b"]),
                helper.make_node("Tanh", ["b"], ["next"]),
                helper.make_node("Identity", ["next"], ["out"]),
            ],
            "body",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, width]) for n in ("state", "now")],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, width]) for n in ("next", "out")],
        )
        first = self.constant(np.zeros((batch, width), np.float32))
        self.node("Scan", [first, x], outputs=2, captures=[square], body=body, num_scan_inputs=1)

    def constants_in_bodies(self) -> None:
        """An If whose branches have weights of their own, give constants, and give what is outside as it is."""
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        arrays = [(self._data.normal(size=(width, width)) / width**0.5).astype(np.float32) for _ in range(2)]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("first", "second")]
        then = helper.make_graph(
            [helper.make_node("MatMul", [x, "w"], ["first"]), helper.make_node("Relu", ["first"], ["second"])],
            "then",
            [],
            outputs,
            [numpy_helper.from_array(arrays[0], "w")],
        )
        other = helper.make_graph(
            [
                helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(arrays[1])),
                helper.make_node("MatMul", [x, "w"], ["first"]),
                helper.make_node("Identity", [self.rng.choice([x, "w", "first"])], ["second"]),
            ],
            "other",
            [],
            outputs,
        )
        flag = self.rng.choice([self.input, self.constant])(np.asarray(self.coin()))
        self.node("If", [flag], 2, captures=[x], then_branch=then, else_branch=other)

    def outer_layers(self) -> None:
        """A layer outside whose value, bias and weight a body reads too."""
        if (x := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight, bias = self.weight(width, width, fan=width), self.weight(width)
        y = self.chain(x, ("MatMul", None, weight), ("Add", None, bias))
        y = self.chain(y, (self.rng.choice(["Relu", "Sigmoid", "Identity"]),))
        given = [helper.make_tensor_value_info("given", TensorProto.FLOAT, None)]
        then = [helper.make_node("Add", [y, bias], ["given"])]
        other = [helper.make_node("MatMul", [y, weight], ["z"]), helper.make_node("Sub", ["z", bias], ["given"])]
        bodies = [helper.make_graph(nodes, "body", [], given) for nodes in (then, other)]
        flag = self.input(np.asarray(self.coin()))
        made = self.node("If", [flag], captures=[y, weight, bias], then_branch=bodies[0], else_branch=bodies[1])
        if made:
            self.layer(made[0], weight)

    def sequence(self) -> None:
        if (x := self.float(at_least=2)) is None or self.opset < 11:
            return
        axis = self.axis(self.values[x])
        pieces = self.name("pieces")
        split = helper.make_node("SplitToSequence", [x], [pieces], axis=axis, keepdims=1)
        joined = self.node("Identity", [x])
        if joined:
            self.nodes[-1] = helper.make_node("ConcatFromSequence", [pieces], joined, axis=axis)
            self.nodes.insert(-1, split)

    # Old operator sets, and operators of the runtime.

    def attributes_of_old(self) -> None:
        if (x := self.float(4)) is None:
            return
        if self.opset < 10:
            match self.rng.randrange(3):
                case 0:
                    self.node("Pad", [x], pads=[0, 0, 1, 1, 0, 0, 1, 0], value=self.rng.choice([0.0, 0.5]))
                case 1:
                    self.node("Slice", [x], axes=[2], starts=[0], ends=[self.rng.choice([1, 1000])])
                case 2 if self.opset < 9:
                    self.node("Upsample", [x], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
                case _:
                    self.node("Upsample", [x, self.constant(np.array([1, 1, 2, 2], np.float32))], mode="linear")
        elif self.opset == 10:
            self.node("Resize", [x, self.constant(np.array([1, 1, 2, 2], np.float32))], mode="nearest")
        elif self.opset >= 18:
            sizes = self.integers(self.rng.randint(2, 9), self.rng.randint(2, 9))
            policy = self.rng.choice(["stretch", "not_larger", "not_smaller"])
            self.node("Resize", [x, "", "", sizes], axes=[2, 3], keep_aspect_ratio_policy=policy, mode="linear")
        if self.opset < 11:
            self.node("Clip", [x], **self.rng.choice([{"min": 0.0}, {"max": 1.0}, {"min": -1.0, "max": 1.0}]))

    def runtime_operators(self) -> None:
        if (x := self.float(2, 3)) is None:
            return
        width = self.values[x].shape[-1]
        match self.rng.randrange(6):
            case 0:
                self.node(
                    "FusedMatMul", [x, self.weight(4, width, fan=width)], domain="com.microsoft", transB=1, alpha=0.5
                )
            case 1:
                self.node("BiasGelu", [x, self.weight(width)], domain="com.microsoft")
            case 2:
                self.node("FastGelu", [x], domain="com.microsoft")
            case 3:
                inputs = [x, self._as_value(x), self.weight(width), self.weight(width)]
                self.node("SkipLayerNormalization", inputs, domain="com.microsoft")
            case 4 if width % 2 == 0:
                parts = [p for _ in range(3) if (p := self.layer(x))]
                self.node("MultiHeadAttention", parts, domain="com.microsoft", num_heads=2)
            case 5 if self.opset >= 23 and width % 2 == 0:
                parts = [p for _ in range(3) if (p := self.layer(x))]
                self.node("Attention", parts, q_num_heads=2, kv_num_heads=2)
            case _:
                self.node("QuickGelu", [x], domain="com.microsoft", alpha=1.7)

    def _as_value(self, x: str) -> str:
        return self.chain(x, (self.rng.choice(["Relu", "Neg"]),))

    # The whole.

    def model(self) -> onnx.ModelProto | None:
        model = super().model()
        if model is None:
            return None
        graph = model.graph
        held = list(graph.initializer)
        if held and self.coin(0.15):  # a weight is an output
            tensor = self.rng.choice(held)
            graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if model.ir_version < 4 or self.coin(0.1):  # weights are inputs with a default
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in held)
        if self.coin(0.2):  # numbers in lists
            for tensor in held:
                if tensor.data_type == TensorProto.FLOAT:
                    array = numpy_helper.to_array(tensor)
                    tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.flatten()))
        if self.coin(0.1):
            named = {value.name for value in graph.input}
            for value in graph.output:
                if value.name not in named and self.coin():
                    value.type.tensor_type.ClearField("shape")
        return model
