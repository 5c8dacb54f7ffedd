"""One small network for each operator of the table: a convolution, the operator, another convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8


@dataclass
class Net:
    """Collects nodes and initializers; every method gives the name of the value it made."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    opset: int = 17
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def const(self, array: object, name: str | None = None) -> str:
        name = name or f"const_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(
        self, op_type: str, inputs: Sequence[str], outputs: int = 1, name: str | None = None, **attributes: object
    ) -> str:
        name = name or f"{op_type.lower()}_{len(self.nodes)}"
        names = [f"{name}_out"] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, **attributes))
        return names[0]

    def conv(self, x: str, channels_in: int, channels_out: int, kernel: int = 1, **attributes: object) -> str:
        group = int(attributes.get("group", 1))  # type: ignore[call-overload]
        rank = int(attributes.pop("rank", 2))  # type: ignore[call-overload]
        w = self.generator.normal(size=(channels_out, channels_in // group, *[kernel] * rank)) / np.sqrt(
            channels_in // group * kernel**rank
        )
        b = self.generator.normal(size=channels_out) * 0.2
        inputs = [x, self.const(w.astype(np.float32)), self.const(b.astype(np.float32))]
        return self.op("Conv", inputs, pads=[kernel // 2] * 2 * rank, kernel_shape=[kernel] * rank, **attributes)

    def model(
        self, x_shape: Sequence[int | str], outputs: Sequence[str], opset: int = 17, out_type: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x_shape))],
            [helper.make_tensor_value_info(name, out_type, None) for name in outputs],
            self.constants,
        )
        ir_version = {13: 7, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}[opset]
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


Body = Callable[[Net, str], tuple[str, int]]
"""Adds the operator behind a value of (batch, 8, 10, 10); gives its output and how many channels that has."""


def between(body: Body, opset: int = 17) -> onnx.ModelProto:
    """A network with the operator between two convolutions."""
    net = Net(opset=opset)
    y, channels = body(net, net.conv("x", 4, CHANNELS, 3))
    return net.model(["batch", 4, 10, 10], [net.conv(y, channels, 6)], opset)


def _plain(op_type: str, channels: int = CHANNELS, **attributes: object) -> Body:
    return lambda net, x: (net.op(op_type, [x], name="target", **attributes), channels)


def _with(op_type: str, *constants: object, channels: int = CHANNELS, **attributes: object) -> Body:
    return lambda net, x: (
        net.op(op_type, [x, *[net.const(c) for c in constants]], name="target", **attributes),
        channels,
    )


def _two(op_type: str) -> Body:
    return lambda net, x: (net.op(op_type, [x, net.conv(x, CHANNELS, CHANNELS)], name="target"), CHANNELS)


def _silu(net: Net, x: str) -> tuple[str, int]:
    return net.op("Mul", [x, net.op("Sigmoid", [x], name="gate")], name="target"), CHANNELS


def _where(net: Net, x: str) -> tuple[str, int]:
    condition = net.const(np.arange(10) % 2 == 0)
    return net.op("Where", [condition, x, net.conv(x, CHANNELS, CHANNELS)], name="target"), CHANNELS


def _resize(net: Net, x: str) -> tuple[str, int]:
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    return net.op("Resize", [x, "", scales], name="target", mode="nearest"), CHANNELS


def _pad(value: float | None, **attributes: object) -> Body:
    def body(net: Net, x: str) -> tuple[str, int]:
        inputs = [x, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))]
        if value is not None:
            inputs.append(net.const(np.float32(value)))
        return net.op("Pad", inputs, name="target", **attributes), CHANNELS

    return body


def _split(net: Net, x: str) -> tuple[str, int]:
    net.op("Split", [x, net.const(np.array([4, 4], np.int64))], outputs=2, name="target", axis=1)
    return net.op("Add", ["target_out0", "target_out1"], name="sum"), 4


def _concat(net: Net, x: str) -> tuple[str, int]:
    return net.op("Concat", [x, net.conv(x, CHANNELS, 4)], name="target", axis=1), CHANNELS + 4


def _there_and_back(op_type: str, first: list[int], second: list[int]) -> Body:
    def body(net: Net, x: str) -> tuple[str, int]:
        y = net.op(op_type, [x, net.const(np.array(first, np.int64))], name="target")
        back = "Squeeze" if op_type == "Unsqueeze" else "Reshape"
        return net.op(back, [y, net.const(np.array(second, np.int64))], name="back"), CHANNELS

    return body


def _squeeze(net: Net, x: str) -> tuple[str, int]:
    y = net.op("Unsqueeze", [x, net.const(np.array([2], np.int64))], name="up")
    return net.op("Squeeze", [y, net.const(np.array([2], np.int64))], name="target"), CHANNELS


def _flatten(net: Net, x: str) -> tuple[str, int]:
    y = net.op("Flatten", [x], name="target", axis=1)
    return net.op("Reshape", [y, net.const(np.array([-1, CHANNELS, 10, 10], np.int64))], name="back"), CHANNELS


def _gather_elements(net: Net, x: str) -> tuple[str, int]:
    rows = np.random.default_rng(0).integers(0, 10, (2, CHANNELS, 10, 10))
    return net.op("GatherElements", [x, net.const(rows)], name="target", axis=2), CHANNELS


def _expand(net: Net, x: str) -> tuple[str, int]:
    y = net.op("GlobalAveragePool", [x], name="pool")
    return net.op("Expand", [y, net.const(np.array([1, 1, 4, 4], np.int64))], name="target"), CHANNELS


def _reduce(op_type: str) -> Body:
    def body(net: Net, x: str) -> tuple[str, int]:
        if net.opset >= 18:  # the axes became an input
            return net.op(op_type, [x, net.const(np.array([2], np.int64))], name="target", keepdims=1), CHANNELS
        return net.op(op_type, [x], name="target", axes=[2], keepdims=1), CHANNELS

    return body


def _depth(op_type: str) -> Body:
    grown = 2 if op_type == "DepthToSpace" else 32
    return lambda net, x: (net.op(op_type, [x], name="target", blocksize=2), grown)


BODIES: dict[str, Body] = {
    "Conv depthwise": lambda net, x: (net.conv(x, CHANNELS, CHANNELS, 3, group=CHANNELS, name="target"), CHANNELS),
    "Conv grouped": lambda net, x: (net.conv(x, CHANNELS, CHANNELS, 3, group=2, name="target"), CHANNELS),
    "Conv strided": lambda net, x: (net.conv(x, CHANNELS, CHANNELS, 3, strides=[2, 2], name="target"), CHANNELS),
    "Relu": _plain("Relu"),
    "Clip": _with("Clip", np.float32(0), np.float32(1)),
    "Clip signed": _with("Clip", np.float32(-0.5), np.float32(0.75)),
    "LeakyRelu": _plain("LeakyRelu", alpha=0.1),
    "Sigmoid": _plain("Sigmoid"),
    "SiLU": _silu,
    "Softmax": _plain("Softmax", axis=1),
    "Add": _two("Add"),
    "Add constant": _with("Add", np.linspace(-1, 2, 10, dtype=np.float32)),
    "Mul": _two("Mul"),
    "Mul constant": _with("Mul", np.linspace(0.2, 2, 10, dtype=np.float32)),
    "Concat": _concat,
    "Where": _where,
    "AveragePool": _plain("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool padded": _plain("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "GlobalAveragePool": _plain("GlobalAveragePool"),
    "MaxPool": _plain("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "Resize": _resize,
    "Reshape": _there_and_back("Reshape", [-1, CHANNELS, 100], [-1, CHANNELS, 10, 10]),
    "Transpose": _plain("Transpose", perm=[0, 1, 3, 2]),
    "Squeeze": _squeeze,
    "Unsqueeze": _there_and_back("Unsqueeze", [2], [2]),
    "Flatten": _flatten,
    "Slice": _with("Slice", *(np.array([v], np.int64) for v in (1, 9, 2, 2))),
    "Split": _split,
    "Gather": _with("Gather", np.array([3, 1, 7], np.int64), channels=3, axis=1),
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Tile": _with("Tile", np.array([1, 2, 1, 1], np.int64), channels=2 * CHANNELS),
    "DepthToSpace": _depth("DepthToSpace"),
    "SpaceToDepth": _depth("SpaceToDepth"),
    "ReduceMax": _reduce("ReduceMax"),
    "Pad": _pad(None),
    "Pad constant": _pad(0.0),
    "Pad reflect": _pad(None, mode="reflect"),
}
"""By name; the node in question is called ``target``."""


def gemm(trans_b: bool = False, bias: bool = True, last: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Two Gemm layers with a Relu; the first (or the last) of the form in question."""
    net = Net()
    a, b = net.generator.normal(size=(24, 16)) / 5, net.generator.normal(size=(16, 10)) / 4
    first = [net.const((a.T if trans_b else a).astype(np.float32))]
    if bias:
        first.append(net.const(net.generator.normal(size=16).astype(np.float32)))
    y = net.op("Gemm", ["x", *first], name="target", transB=int(trans_b))
    if not last:
        y = net.op("Relu", [y])
        y = net.op("Gemm", [y, net.const(b.astype(np.float32)), net.const(np.zeros(10, np.float32))])
    return net.model(["batch", 24], [y], opset)


def matmul(two_activations: bool = False, opset: int = 17) -> onnx.ModelProto:
    """MatMul on (batch, 6, 24) with a constant, or with another activation."""
    net = Net()
    a = net.const((net.generator.normal(size=(24, 16)) / 5).astype(np.float32))
    y = net.op("MatMul", ["x", a], name="first")
    if two_activations:
        z = net.op("Transpose", [y], perm=[0, 2, 1])
        y = net.op("MatMul", [y, z], name="target")
    else:
        y = net.op("MatMul", [y, net.const((net.generator.normal(size=(16, 8)) / 4).astype(np.float32))], name="target")
    return net.model(["batch", 6, 24], [y], opset)


def left(weight: Sequence[int] = (48, 40), opset: int = 17) -> onnx.ModelProto:
    """MatMul on (batch, 40, 12) with its constant on the left, behind another one."""
    net = Net()
    rows, columns = weight
    y = net.op("MatMul", ["x", net.const((net.generator.normal(size=(12, 12)) / 4).astype(np.float32))], name="first")
    w = net.const((net.generator.normal(size=(rows, columns)) / 6).astype(np.float32))
    y = net.op("MatMul", [w, y], name="target")
    return net.model(["batch", columns, 12], [y], opset)


def column(opset: int = 17) -> onnx.ModelProto:
    """MatMul on (batch, 6, 24) with a constant matrix, then with a vector."""
    net = Net()
    y = net.op("MatMul", ["x", net.const((net.generator.normal(size=(24, 16)) / 5).astype(np.float32))], name="first")
    y = net.op("MatMul", [y, net.const((net.generator.normal(size=16) / 4).astype(np.float32))], name="target")
    return net.model(["batch", 6, 24], [y], opset)


def turned_gemm(opset: int = 17) -> onnx.ModelProto:
    """Gemm that reads its input transposed; the batch of 2 is its depth."""
    net = Net()
    w, b = net.generator.normal(size=(2, 16)), net.generator.normal(size=16)
    inputs = ["x", net.const(w.astype(np.float32)), net.const(b.astype(np.float32))]
    y = net.op("Gemm", inputs, name="target", transA=1)
    y = net.op("Gemm", [y, net.const((net.generator.normal(size=(16, 10)) / 4).astype(np.float32))])
    return net.model([2, 24], [y], opset)


def table(axis: int, opset: int = 17) -> onnx.ModelProto:
    """A Gather from a constant table on an axis, by indices that are made from the input, in front of a MatMul.

    Its vectors are much alike, so that an index which falls to its neighbour costs little.
    """
    net = Net()
    y = net.op("MatMul", ["x", net.const((net.generator.normal(size=(24, 48)) / 5).astype(np.float32))], name="first")
    best = net.op("ArgMax", [y], axis=2, keepdims=0)
    vectors = net.generator.normal(size=40) + 0.02 * net.generator.normal(size=(48, 40))
    constant = net.const((vectors if axis == 0 else vectors.T).astype(np.float32))
    rows = net.op("Gather", [constant, best], name="target", axis=axis)
    if axis == 1:  # (40, batch, 6)
        rows = net.op("Transpose", [rows], perm=[1, 2, 0])
    y = net.op("MatMul", [rows, net.const((net.generator.normal(size=(40, 8)) / 6).astype(np.float32))], name="last")
    return net.model(["batch", 6, 24], [y], opset)


def normalized(op_types: Sequence[str], kernel: int, opset: int = 17) -> onnx.ModelProto:
    """Constants by channel in front of a convolution, as where images are normalized inside the model."""
    net = Net(opset=opset)
    y = "x"
    for op_type in op_types:
        y = net.op(op_type, [y, net.const(net.generator.uniform(0.5, 1.5, (4, 1, 1)).astype(np.float32))])
    y = net.op("Relu", [net.conv(y, 4, CHANNELS, kernel, name="target")])
    return net.model(["batch", 4, 10, 10], [net.conv(y, CHANNELS, 6)], opset)


def scaled_columns(opset: int = 17) -> onnx.ModelProto:
    """A constant for each column in front of a MatMul, and another one behind it."""
    net = Net()
    y = net.op("Mul", ["x", net.const(net.generator.uniform(0.5, 1.5, 24).astype(np.float32))])
    y = net.op("MatMul", [y, net.const((net.generator.normal(size=(24, 16)) / 5).astype(np.float32))], name="target")
    y = net.op("Add", [y, net.const(net.generator.normal(size=16).astype(np.float32))])
    y = net.op("MatMul", [y, net.const((net.generator.normal(size=(16, 8)) / 4).astype(np.float32))])
    return net.model(["batch", 6, 24], [y], opset)


def conv_nd(rank: int, opset: int = 17) -> onnx.ModelProto:
    """Two convolutions in 1 or 3 dimensions."""
    net = Net()
    y = net.op("Relu", [net.conv("x", 4, CHANNELS, 3, rank=rank, name="target")])
    return net.model(["batch", 4, *[8] * rank], [net.conv(y, CHANNELS, 6, 1, rank=rank)], opset)


def arg_max(opset: int = 17) -> onnx.ModelProto:
    """A convolution whose largest channel is the result."""
    net = Net()
    y = net.op("ArgMax", [net.conv("x", 4, CHANNELS, 3)], name="target", axis=1, keepdims=0)
    return net.model(["batch", 4, 10, 10], [y], opset, out_type=TensorProto.INT64)


def every(opset: int) -> dict[str, onnx.ModelProto]:
    """All networks, by name, in one operator set."""
    return {
        **{name: between(body, opset) for name, body in BODIES.items()},
        "Gemm": gemm(opset=opset),
        "Gemm transB": gemm(trans_b=True, opset=opset),
        "Gemm without bias": gemm(bias=False, opset=opset),
        "Gemm last": gemm(last=True, opset=opset),
        "MatMul": matmul(opset=opset),
        "MatMul two activations": matmul(two_activations=True, opset=opset),
        "MatMul left": left(opset=opset),
        "MatMul vector": column(opset),
        "Gemm transA": turned_gemm(opset),
        "Gather table": table(0, opset),
        "Gather table on another axis": table(1, opset),
        "Conv behind Sub and Div": normalized(("Sub", "Div"), 1, opset),
        "Conv behind Mul and Add": normalized(("Mul", "Add"), 3, opset),
        "MatMul behind constants": scaled_columns(opset),
        "Conv 1-D": conv_nd(1, opset),
        "Conv 3-D": conv_nd(3, opset),
        "ArgMax": arg_max(opset),
    }
