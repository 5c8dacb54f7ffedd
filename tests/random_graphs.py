"""Random small models over the operator table: whatever runs in ONNX Runtime is a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
IR_VERSIONS = {11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
SHAPES = ((2, 4, 6, 6), (2, 3, 5, 7), (1, 8, 6, 6), (2, 8), (2, 5, 8), (2, 4, 9), (1, 2, 4, 4, 4))
LARGEST = 20_000
_SUFFIXES = ("_scale", "_zero_point", "_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output", "_float")
_UNARY = ("Relu", "Neg", "Sigmoid", "Tanh", "Identity", "Softmax")


def session(model: onnx.ModelProto, optimize: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class RandomGraph:
    """Grows a graph node by node; each is run at once, and one that the runtime refuses is left out."""

    SHAPES: tuple[tuple[int, ...], ...] = SHAPES

    def __init__(self, rng: random.Random, steps: int) -> None:
        self.rng = rng
        self.opset = rng.choice(sorted(IR_VERSIONS))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}
        self._data = np.random.default_rng(rng.randrange(1 << 16))
        self._count = 0
        self._squares: dict[str, str] = {}
        self.input(self._data.normal(size=rng.choice(self.SHAPES)).astype(np.float32))
        builders = self.builders()
        for _ in range(steps):
            rng.choice(builders)()

    def builders(self) -> list[Callable[[], None]]:
        """What a graph grows by; more often where it stands more often."""
        found = [self.conv, self.conv, self.gemm, self.matmul, self.matmul, self.arithmetic, self.arithmetic]
        found += [self.concat, self.split, self.slice, self.gather, self.where, self.resize, self.pad, self.pool]
        found += [self.pool, self.unary, self.unary, self.clip, self.softmax, self.shape, self.shape, self.depth]
        found += [self.reduce, self.normalize, self.half, self.branch, self.loop, self.branches, self.layers_in_loop]
        return found

    # What everything is made of.

    def coin(self, share: float = 0.5) -> bool:
        return self.rng.random() < share

    def name(self, base: str) -> str:
        self._count += 1
        if self.values and self.coin(0.1):  # names that the emitters would choose for their own values
            taken = f"{self.rng.choice(list(self.values))}{self.rng.choice(_SUFFIXES)}"
            if taken not in self.values and taken not in self.constants:
                return taken
        return f"{base}{self._count}"

    def input(self, array: Array) -> str:
        name = self.name("x")
        self.inputs[name] = self.values[name] = array
        return name

    def constant(self, array: Any) -> str:
        name = self.name("c")
        self.constants[name] = np.asarray(array)
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def weight(self, *shape: int, fan: int = 1) -> str:
        array = self._data.normal(size=shape) / np.sqrt(fan)
        if shape and self.coin(0.1):
            array[0] = 0.0
        return self.constant(array.astype(np.float32))

    def float(self, *ranks: int, at_least: int = 0) -> str | None:
        """A float32 value, later ones more often."""
        found = [
            name
            for name, array in self.values.items()
            if array.dtype == np.float32 and (array.ndim in ranks if ranks else array.ndim >= at_least)
        ]
        return self.rng.choice(found[-4:]) if found else None

    def axis(self, array: Array) -> int:
        return self.rng.randrange(-array.ndim, array.ndim)

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: int = 1, captures: Sequence[str] = (), **attributes: Any
    ) -> list[str]:
        """Add a node; gives its outputs, or nothing where the runtime refuses it or the results are no use."""
        names = [self.name(op_type.lower()) for _ in range(outputs)]
        name = "" if self.coin(0.1) else f"{op_type}_{self._count}"
        node = helper.make_node(op_type, list(inputs), names, name=name, **attributes)
        read = list(dict.fromkeys(n for n in (*inputs, *captures) if n))
        graph = helper.make_graph(
            [node],
            "one",
            [_info(n, self.values[n]) for n in read if n in self.values],
            [helper.make_empty_tensor_value_info(n) for n in names],
            [numpy_helper.from_array(self.constants[n], n) for n in read if n in self.constants],
        )
        try:
            results = session(self._model(graph)).run(None, {n: self.values[n] for n in read if n in self.values})
        except Exception:
            return []
        for array in results:
            if not 0 < array.size <= LARGEST or (array.dtype.kind == "f" and not np.abs(array).max() < 1e3):
                return []
        self.nodes.append(node)
        self.values.update(zip(names, results, strict=True))
        return names

    def _model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSIONS[self.opset])

    # The operators.

    def conv(self) -> None:
        if (x := self.float(3, 4, 5)) is None:
            return
        channels, rank = self.values[x].shape[1], self.values[x].ndim - 2
        kernel = [self.rng.randint(1, 3) for _ in range(rank)]
        group = self.rng.choice([d for d in range(1, channels + 1) if channels % d == 0] if self.coin(0.4) else [1])
        filters = group * self.rng.randint(1, 8)
        attributes: dict[str, Any] = {"group": group} if group > 1 or self.coin() else {}
        if self.coin(0.3):
            attributes["auto_pad"] = self.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        elif self.coin(0.7):
            attributes["pads"] = [self.rng.randint(0, 2) for _ in range(2 * rank)]
        for key in ("strides", "dilations"):
            if self.coin(0.3):
                attributes[key] = [self.rng.randint(1, 2) for _ in range(rank)]
        inputs = [x, self.weight(filters, channels // group, *kernel, fan=channels // group * int(np.prod(kernel)))]
        inputs += [self.weight(filters)] if self.coin(0.7) else []
        if self.coin(0.1) and group == 1:
            self.node("ConvTranspose", [x, self.weight(channels, 4, *kernel, fan=channels)])
        elif y := self.node("Conv", inputs, **attributes):
            self._behind(y[0])

    def _behind(self, x: str) -> None:
        match self.rng.randrange(8):
            case 0:
                self.node("Relu", [x])
            case 1:
                self.clip(x)
            case 2:
                self.normalize(x)
            case 3:
                self.node("LeakyRelu", [x], alpha=0.1)
            case 4 if gate := self.node("Sigmoid", [x]):
                self.node("Mul", [x, gate[0]])

    def gemm(self) -> None:
        if (x := self.float(2)) is None:
            return
        trans_a, trans_b = int(self.coin(0.1)), int(self.coin(0.4))
        rows, depth = self.values[x].shape[::-1] if trans_a else self.values[x].shape
        columns = self.rng.randint(1, 16)
        shape = (columns, depth) if trans_b else (depth, columns)
        inputs = [x, self.weight(*shape, fan=depth)]
        if self.coin(0.7):
            inputs.append(
                self.weight(*self.rng.choice([(columns,), (1, columns), (), (1,), (rows, columns), (rows, 1)]))
            )
        attributes = {k: self.rng.choice([1.0, 0.5, -2.0]) for k in ("alpha", "beta") if self.coin(0.2)}
        if y := self.node("Gemm", inputs, transA=trans_a, transB=trans_b, **attributes):
            self._behind(y[0])

    def matmul(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        array = self.values[x]
        depth, columns = array.shape[-1], self.rng.randint(1, 16)
        inputs = [x, self.weight(depth, columns, fan=depth)]
        if array.ndim > 2 and self.coin(0.2):
            inputs[1] = self.weight(*array.shape[1:-2], depth, columns, fan=depth)
        elif self.coin(0.1):
            inputs[1] = self.weight(depth, fan=depth)
        elif array.ndim > 1 and self.coin(0.1):
            inputs = [self.weight(columns, array.shape[-2], fan=array.shape[-2]), x]
        elif array.ndim > 1 and self.coin(0.2):
            order = [*range(array.ndim - 2), array.ndim - 1, array.ndim - 2]
            inputs = [x, *self.node("Transpose", [x], perm=order)]
        if (y := self.node("MatMul", inputs)) and self.coin():
            bias = self.weight(*self.values[y[0]].shape[-1:])
            y = self.node("Add", self.rng.choice([[y[0], bias], [bias, y[0]]]))
        if y:
            self._behind(y[0])

    def arithmetic(self) -> None:
        if (x := self.float()) is None:
            return
        array, other = self.values[x], self.rng.choice([x, self.float()])
        if self.coin():
            shapes = [(), (1,), array.shape[-1:], array.shape, (1, *array.shape), (1,) * array.ndim]
            other = self.constant(self._data.uniform(0.3, 2, self.rng.choice(shapes)).astype(np.float32))
        elif self.coin(0.1):
            x, other = self.weight(3, 1), self.weight(3, 4)
        op_type = self.rng.choice(["Add", "Add", "Mul", "Mul", "Max", "Min"])
        self.node(op_type, self.rng.choice([[x, other], [other, x]]))

    def concat(self) -> None:
        if (x := self.float(at_least=1)) is not None:
            shape = self.values[x].shape
            more = [self.rng.choice([x, x, self.float(len(shape)) or x, self.weight(*shape)]) for _ in range(2)]
            self.node("Concat", [x, *more[: self.rng.randrange(3)]], axis=self.axis(self.values[x]))

    def split(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        axis = self.axis(self.values[x])
        length = self.values[x].shape[axis]
        sizes = [1, length - 1]
        if self.opset < 13:
            self.node("Split", [x], 2, axis=axis, split=sizes)
        elif self.opset >= 18 and self.coin():
            self.node("Split", [x], 2, axis=axis, num_outputs=2)
        else:
            self.node("Split", [x, self.integers(*sizes)], 2, axis=axis)

    def slice(self) -> None:
        if (x := self.float(at_least=1)) is not None:
            axis = self.axis(self.values[x])
            first, last, step = self.rng.choice([(0, 1 << 31, 2), (1, -1, 1), (-1, -(1 << 31), -1), (0, 2, 1)])
            self.node("Slice", [x, *(self.integers(n) for n in (first, last, axis, step))])

    def gather(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        axis = self.axis(self.values[x])
        shape = self.rng.choice([(), (2,), (2, 2)])
        indices = np.asarray(self._data.integers(-self.values[x].shape[axis], self.values[x].shape[axis], shape))
        table = x if self.coin(0.8) else self.weight(*self.values[x].shape)
        self.node("Gather", [table, self.rng.choice([self.constant, self.input])(indices.astype(np.int64))], axis=axis)

    def where(self) -> None:
        if (x := self.float()) is None:
            return
        shape = self.values[x].shape
        condition = self.rng.choice([self.constant, self.input])(np.asarray(self._data.random(shape) < 0.5))
        other = self.rng.choice([x, self.weight(*shape), self.constant(np.float32(-1))])
        self.node("Where", [condition, *self.rng.choice([[x, other], [other, x]])])

    def resize(self) -> None:
        if (x := self.float(3, 4, 5)) is None:
            return
        shape = self.values[x].shape
        mode = self.rng.choice(["nearest", "nearest", "linear"])
        mapping = ["asymmetric", "half_pixel", "align_corners", "tf_crop_and_resize"]
        attributes = {"mode": mode, "coordinate_transformation_mode": self.rng.choice(mapping)}
        roi = self.constant(np.array([0] * len(shape) + [1] * len(shape), np.float32))
        if self.coin():
            scales = [1, 1, *(self.rng.choice([0.5, 1, 1.5, 2]) for _ in shape[2:])]
            self.node("Resize", [x, roi, self.constant(np.array(scales, np.float32))], **attributes)
        else:
            sizes = self.integers(*shape[:2], *(self.rng.randint(1, 8) for _ in shape[2:]))
            empty = self.constant(np.zeros(0, np.float32)) if self.opset < 13 else ""
            self.node("Resize", [x, roi, empty, sizes], **attributes)

    def pad(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        rank = self.values[x].ndim
        amounts = self.integers(*(self.rng.choice([0, 0, 1, 2, -1]) for _ in range(2 * rank)))
        inputs = [x, amounts]
        if self.coin():
            inputs.append(self.constant(np.float32(self.rng.choice([0, 0.4, -3]))))
        if self.opset >= 18 and self.coin(0.3):
            inputs = [x, self.integers(1, 1), inputs[2] if len(inputs) > 2 else "", self.integers(-1)]
        self.node("Pad", inputs, mode=self.rng.choice(["constant", "constant", "edge", "reflect"]))

    def pool(self) -> None:
        if (x := self.float(3, 4, 5)) is None:
            return
        if self.coin(0.25):
            self.node(self.rng.choice(["GlobalAveragePool", "GlobalMaxPool"]), [x])
            return
        kernel = [self.rng.randint(1, min(3, length)) for length in self.values[x].shape[2:]]
        op_type = self.rng.choice(["MaxPool", "AveragePool"])
        attributes: dict[str, Any] = {"kernel_shape": kernel}
        if self.coin():
            attributes["strides"] = [self.rng.randint(1, 2) for _ in kernel]
        if self.coin(0.2):
            attributes["auto_pad"] = self.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        elif self.coin():
            attributes["pads"] = [self.rng.randrange(k) for k in kernel] * 2
        elif self.coin(0.4):
            attributes["ceil_mode"] = 1
        if op_type == "AveragePool" and self.coin(0.4):
            attributes["count_include_pad"] = 1
        if self.coin(0.2) and "auto_pad" not in attributes and (op_type == "MaxPool" or self.opset >= 19):
            attributes["dilations"] = [self.rng.randint(1, 2) for _ in kernel]
        self.node(op_type, [x], 2 if op_type == "MaxPool" and self.coin(0.3) else 1, **attributes)

    def unary(self) -> None:
        op_types = ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Identity", "Identity", "Dropout", "HardSigmoid", "Elu"]
        if (x := self.float()) is not None:
            self.node(self.rng.choice(op_types), [x])

    def clip(self, x: str | None = None) -> None:
        bounds = [self.constant(np.float32(b)) for b in self.rng.choice([(0, 6), (-0.5, 0.75), (-1, 1), (-3, 0)])]
        if (x := x or self.float()) is not None:
            self.node("Clip", self.rng.choice([[x], [x, bounds[0]], [x, "", bounds[1]], [x, *bounds]]))

    def softmax(self) -> None:
        if (x := self.float(at_least=1)) is not None:
            self.node("Softmax", [x], **({"axis": self.axis(self.values[x])} if self.coin(0.8) else {}))

    def shape(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        array = self.values[x]
        match self.rng.randrange(7):
            case 0:
                shapes = [[array.shape[0], -1], [-1], [*array.shape[:1], 1, -1], [0] * (array.ndim - 1) + [-1]]
                self.node("Reshape", [x, self.integers(*self.rng.choice(shapes))])
            case 1:
                self.node("Transpose", [x], perm=self.rng.sample(range(array.ndim), array.ndim))
            case 2:
                self.node("Flatten", [x], axis=self.rng.randint(0, array.ndim))
            case 3 | 4 as which:
                axis = [self.axis(array)]
                op_type = "Squeeze" if which == 3 else "Unsqueeze"
                if self.opset < 13:
                    self.node(op_type, [x], axes=axis)
                else:
                    self.node(op_type, [x, self.integers(*axis)])
            case 5:
                self.node("Expand", [x, self.integers(2, *(1 for _ in array.shape))])
            case 6:
                self.node("Tile", [x, self.integers(*(self.rng.randint(1, 2) for _ in array.shape))])

    def depth(self) -> None:
        if (x := self.float(4)) is not None:
            self.node("DepthToSpace", [x], blocksize=2, mode=self.rng.choice(["DCR", "CRD"]))
            self.node("SpaceToDepth", [x], blocksize=2)

    def reduce(self) -> None:
        if (x := self.float(at_least=1)) is None:
            return
        array = self.values[x]
        op_type = self.rng.choice(["ReduceMax", "ReduceMax", "ReduceMean", "ArgMax"])
        keep = int(self.coin())
        if op_type == "ArgMax":
            self.node(op_type, [x], axis=self.axis(array), keepdims=keep)
        else:
            axes = list(range(2, array.ndim)) if array.ndim > 3 and self.coin() else [self.axis(array)]
            if self.opset >= 18:
                self.node(op_type, [x, self.integers(*axes)], keepdims=keep)
            else:
                self.node(op_type, [x], axes=axes, keepdims=keep)

    def normalize(self, x: str | None = None) -> None:
        x = x or self.float(at_least=2)
        if x is not None and self.values[x].ndim > 1:
            channels = self.values[x].shape[1]
            parts = [(0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 2)]
            arrays = [self._data.uniform(*part, channels).astype(np.float32) for part in parts]
            self.node("BatchNormalization", [x, *map(self.constant, arrays)])

    def half(self) -> None:
        if (x := self.float()) is not None and (y := self.node("Cast", [x], to=TensorProto.FLOAT16)):
            self.node("Cast", self.node("Relu", y) or y, to=TensorProto.FLOAT)

    def branch(self) -> None:
        """An If whose subgraphs read a value, and a weight, of the graph around it."""
        if (x := self.float(at_least=1)) is None:
            return
        weight = self.weight(self.values[x].shape[-1], 4, fan=self.values[x].shape[-1])
        flag = self.input(np.asarray(self.coin()))
        self.node("MatMul", [x, weight])
        bodies = [
            helper.make_graph(
                [helper.make_node("MatMul", [x, weight], ["inner"]), helper.make_node(op_type, ["inner"], ["given"])],
                "body",
                [],
                [helper.make_tensor_value_info("given", TensorProto.FLOAT, None)],
            )
            for op_type in ("Relu", "Neg")
        ]
        self.node("If", [flag], captures=[x, weight], then_branch=bodies[0], else_branch=bodies[1])

    def loop(self) -> None:
        if (x := self.float()) is None:
            return
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Max", ["state", x], ["next"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            ],
        )
        self.node("Loop", [self.constant(np.int64(2)), "", x], captures=[x], body=body)

    def branches(self) -> None:
        """An If in a branch of an If: layers and what only moves elements, over values of every graph around them."""
        if (x := self.float(at_least=2)) is None or (other := self.float(at_least=2)) is None:
            return
        width = self.values[x].shape[-1]
        weight, square = self.weight(width, width, fan=width), self.weight(width, width, fan=width)
        flags = [self.input(np.asarray(self.coin())) for _ in range(2)]
        first, second, third = (self.rng.choice(_UNARY) for _ in range(3))
        inner = [
            helper.make_node("MatMul", ["one", square], ["two"], name="deep"),
            helper.make_node(first, ["two"], ["three"]),
            helper.make_node("Add", ["three", self.rng.choice([x, "one"])], ["given"]),
        ]
        flat = [helper.make_node("Neg", ["one"], ["given"])]
        if self.coin():
            flat.insert(0, helper.make_node("MatMul", [other, self._square(other)], ["lost"]))
        outer = [
            helper.make_node("MatMul", [x, weight], ["zero"]),
            helper.make_node(second, ["zero"], ["one"]),
            helper.make_node("If", [flags[1]], ["back"], then_branch=_body(inner), else_branch=_body(flat)),
            helper.make_node("MatMul", ["back", square], ["given"]),
        ]
        rest = [helper.make_node(third, [x], ["one"]), helper.make_node("MatMul", ["one", weight], ["given"])]
        captures = [x, other, weight, square, flags[1], self._square(other)]
        self.node("If", [flags[0]], captures=captures, then_branch=_body(outer), else_branch=_body(rest))

    def layers_in_loop(self) -> None:
        """A Loop whose state goes through layers, and a value of the graph around it too."""
        if (x := self.float(at_least=2)) is None:
            return
        square, width = self._square(x), self.values[x].shape[-1]
        again = self.weight(width, width, fan=width)
        unary = self.rng.choice(_UNARY)
        nodes = [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("MatMul", [self.rng.choice(["state", x]), square], ["a"]),
            helper.make_node(unary, ["a"], ["b"]),
            helper.make_node("Add", ["b", x], ["c"]),
            helper.make_node("MatMul", ["c", again], ["d"]),
            helper.make_node("Tanh", ["d"], ["next"]),
            helper.make_node("MatMul", [x, again], ["all"]),
        ]
        body = helper.make_graph(
            nodes,
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
                helper.make_tensor_value_info("all", TensorProto.FLOAT, None),
            ],
        )
        count = self.constant(np.int64(self.rng.randrange(1, 4)))
        self.node("Loop", [count, "", x], outputs=2, captures=[x, square, again], body=body)

    def _square(self, x: str) -> str:
        """A weight by which ``x`` can be multiplied again and again; one a value."""
        width = self.values[x].shape[-1]
        if x not in self._squares:
            self._squares[x] = self.weight(width, width, fan=width)
        return self._squares[x]

    # The whole.

    def model(self) -> onnx.ModelProto | None:
        """The model, or None where nothing was added; some outputs are values that nodes read too."""
        if not self.nodes:
            return None
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output if name in self.values]
        outputs = [name for name in made if name not in read][-4:]
        outputs += [self.rng.choice(made)] if self.coin(0.3) else []
        outputs += [self.rng.choice(list(self.inputs))] if self.coin(0.1) else []
        outputs = list(dict.fromkeys(outputs))
        batch = "batch" if self.coin() else None
        inputs = {name: _info(name, array, batch) for name, array in self.inputs.items()}
        known = [inputs.get(n) or _info(n, self.values[n], "free" if batch else None) for n in outputs]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        nodes = list(self.nodes)
        if self.coin(0.2):
            nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in constants[::2]] + nodes
            constants = constants[1::2]
        model = self._model(helper.make_graph(nodes, "graph", list(inputs.values()), known, constants))
        return onnx.shape_inference.infer_shapes(model) if self.coin() else model

    def feeds(self, count: int) -> list[dict[str, Array]]:
        """Samples of the shapes that the graph was grown with."""
        return [
            {
                name: self._data.normal(size=array.shape).astype(np.float32) if array.dtype == np.float32 else array
                for name, array in self.inputs.items()
            }
            for _ in range(count)
        ]


def _body(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info("given", TensorProto.FLOAT, None)])


def _info(name: str, array: Array, batch: str | None = None) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(array.shape)
    if batch == "free":
        shape = [f"{name}_{axis}" for axis in range(array.ndim)]
    elif batch is not None and shape and array.dtype == np.float32:
        shape[0] = batch
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
