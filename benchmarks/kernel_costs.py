"""Measure the kernel times that `onnxq.targets` holds as data: ``python -m benchmarks.kernel_costs``.

Each operator stands between two convolutions, as it does in a network, so that the runtime's layouts are the real ones.
The float model and its integer form (every node insisted on) are profiled by the runtime itself, one thread, and the
time of the operator's own kernel is divided by its elements.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxq

SHAPE = (1, 64, 56, 56)
RUNS = 40
RNG = np.random.default_rng(0)

Build = Callable[[str], tuple[list[onnx.NodeProto], list[onnx.TensorProto], int]]
"""Nodes behind a value, their constants, and the channels of the last one's output ``y``."""


def const(name: str, array: object) -> onnx.TensorProto:
    """A named constant."""
    return numpy_helper.from_array(np.asarray(array), name)


def conv(
    name: str, x: str, y: str, shape: tuple[int, int, int], group: int = 1, stride: int = 1
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A convolution of (out, in a group, kernel)."""
    out, per_group, kernel = shape
    w = (RNG.normal(size=(out, per_group, kernel, kernel)) / np.sqrt(per_group * kernel**2)).astype(np.float32)
    b = np.zeros(out, np.float32)
    node = helper.make_node(
        "Conv", [x, f"{name}_w", f"{name}_b"], [y], name=name, group=group, strides=[stride, stride],
        pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel],
    )  # fmt: skip
    return node, [const(f"{name}_w", w), const(f"{name}_b", b)]


def plain(op_type: str, *constants: object, channels: int = 64, **attributes: Any) -> Build:
    """An operator on one value with constants behind it."""

    def build(x: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], int]:
        added = [const(f"c{i}", c) for i, c in enumerate(constants)]
        node = helper.make_node(op_type, [x, *[c.name for c in added]], ["y"], name="target", **attributes)
        return [node], added, channels

    return build


def pair(op_type: str, channels: int = 64, **attributes: Any) -> Build:
    """An operator on two values."""

    def build(x: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], int]:
        other, constants = conv("other", x, "other_y", (64, 64, 1))
        return (
            [other, helper.make_node(op_type, [x, "other_y"], ["y"], name="target", **attributes)],
            constants,
            channels,
        )

    return build


def where(x: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], int]:
    """Where on two values."""
    other, constants = conv("other", x, "other_y", (64, 64, 1))
    node = helper.make_node("Where", ["condition", x, "other_y"], ["y"], name="target")
    return [other, node], [*constants, const("condition", np.arange(56) % 2 == 0)], 64


OPERATORS: dict[str, Build] = {
    "Add": pair("Add"),
    "Mul": pair("Mul"),
    "Concat": pair("Concat", 128, axis=1),
    "Where": where,
    "Relu": plain("Relu"),
    "LeakyRelu": plain("LeakyRelu", alpha=0.1),
    "Sigmoid": plain("Sigmoid"),
    "Softmax": plain("Softmax", axis=1),
    "AveragePool": plain("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": plain("GlobalAveragePool"),
    "MaxPool": plain("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "Resize": plain("Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32), mode="nearest"),
    "Pad": plain("Pad", np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64), mode="edge"),
    "Transpose": plain("Transpose", perm=[0, 1, 3, 2]),
    "Slice": plain("Slice", *(np.array([v], np.int64) for v in (0, 28, 2))),
    "Slice strided": plain("Slice", *(np.array([v], np.int64) for v in (0, 56, 2, 2))),
    "Gather": plain("Gather", np.arange(0, 64, 2), channels=32, axis=1),
    "GatherElements": plain("GatherElements", np.arange(64 * 56 * 56).reshape(1, 64, 56, 56) % 56, axis=3),
    "Tile": plain("Tile", np.array([1, 2, 1, 1], np.int64), channels=128),
    "DepthToSpace": plain("DepthToSpace", channels=16, blocksize=2),
    "SpaceToDepth": plain("SpaceToDepth", channels=256, blocksize=2),
    "ReduceMax": plain("ReduceMax", axes=[2], keepdims=1),
}

CONVOLUTIONS = [  # (input channels, output channels, kernel, stride, groups, height and width)
    (3, 32, 3, 2, 1, 224), (3, 64, 7, 2, 1, 224), (3, 16, 3, 1, 1, 32), (1, 64, 5, 2, 1, 32), (16, 16, 3, 1, 1, 32),
    (32, 32, 3, 1, 1, 16), (64, 64, 3, 1, 1, 56), (256, 256, 3, 1, 1, 14), (16, 96, 1, 1, 1, 112),
    (144, 24, 1, 1, 1, 56), (960, 160, 1, 1, 1, 7), (96, 96, 3, 2, 96, 112), (144, 144, 3, 1, 144, 56),
    (384, 384, 3, 1, 384, 14), (64, 64, 3, 1, 4, 28),
]  # fmt: skip


def between(build: Build) -> onnx.ModelProto:
    """Conv → operator → conv."""
    first, constants = conv("first", "x", "a", (64, 64, 1))
    nodes, more, channels = build("a")
    last, rest = conv("last", "y", "z", (16, channels, 1))
    return model([first, *nodes, last], [*constants, *more, *rest], SHAPE)


def model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A checked model from ``x`` to the last node's output."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def kernel_times(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, float]:
    """Median microseconds of each kernel in one run, by node name and operator."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {"x": x})
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[f"{event['args']['op_name']} {event['name']}"].append(event["dur"])
    return {name: float(np.median(values)) for name, values in taken.items()}


def quantized(proto: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    """The integer form, every node insisted on."""
    feeds = [{"x": x}, {"x": x}]
    result = onnxq.quantize(proto, calibration=feeds, preset="w8a8", include=["*"], benchmark=False, range="minmax")
    assert result.model is not None
    return result.model


def compare_operator(name: str, build: Build) -> tuple[str, float, float, float]:
    """(name, elements, float µs, integer µs): kernels that are neither convolutions nor conversions at the ends."""
    proto = between(build)
    x = RNG.normal(size=SHAPE).astype(np.float32)
    size = float(np.prod(SHAPE))
    skip = ("Conv ", "QLinearConv", "QuantizeLinear", "DequantizeLinear", "FusedConv")

    def rest(times: dict[str, float]) -> float:
        return sum(us for kernel, us in times.items() if not kernel.startswith(skip))

    base = between(plain("Identity"))
    empty_float, empty_int = rest(kernel_times(base, x)), rest(kernel_times(quantized(base, x), x))
    as_float = max(rest(kernel_times(proto, x)) - empty_float, 0.0)
    as_int = max(rest(kernel_times(quantized(proto, x), x)) - empty_int, 0.0)
    return name, size, as_float, as_int


def main() -> None:
    """Print the tables."""
    print(f"onnxruntime {ort.__version__}, one thread")
    print("\noperator            float µs   int µs   float ns/element   int ns/element")
    for name, build in OPERATORS.items():
        _, size, as_float, as_int = compare_operator(name, build)
        print(f"{name:18} {as_float:9.0f} {as_int:8.0f} {1000 * as_float / size:18.3f} {1000 * as_int / size:16.3f}")
    print("\nconvolution                              MMAC   float µs   int µs   ratio")
    for ci, co, k, s, g, hw in CONVOLUTIONS:
        node, constants = conv("c", "x", "y", (co, ci // g, k), g, s)
        proto = model([node], constants, (1, ci, hw, hw))
        x = RNG.normal(size=(1, ci, hw, hw)).astype(np.float32)
        as_float = sum(us for n, us in kernel_times(proto, x).items() if n.startswith(("Conv ", "FusedConv")))
        as_int = sum(us for n, us in kernel_times(quantized(proto, x), x).items() if n.startswith("QLinearConv"))
        macs = co * (ci // g) * k * k * (-(-hw // s)) ** 2 / 1e6
        what = f"{ci:4} → {co:4}  {k}x{k}/{s} groups {g:3} at {hw:3}"
        print(f"{what:36} {macs:8.1f} {as_float:10.0f} {as_int:8.0f} {as_float / max(as_int, 1e-9):7.2f}")


if __name__ == "__main__":
    main()
