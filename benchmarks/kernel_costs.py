"""Measure the kernel times that `onnxq.targets` holds as data.

``python -m benchmarks.kernel_costs [--engine web|openvino]`` prints them.

Each operator stands between two convolutions, as it does in a network, so that the runtime's layouts are the real ones.
The float model and its integer form (every node insisted on) are profiled by the runtime itself, one thread, and the
time of the operator's own kernel is divided by its elements. Engines that show no kernels are asked for whole models.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.errors import EngineError
from onnxq.runtime.engines.engine import Runs
from onnxq.runtime.engines.places import RunsOn
from onnxq.runtime.engines.process_engine import ProcessEngine

SHAPE = (1, 64, 56, 56)
RUNS = 40
FASTEST = 0.1
SECONDS = 0.25
"""To time a whole model for, where an engine shows no kernels."""
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


class Clock:
    """Times operators on this machine's ONNX Runtime, or on an engine: by its kernels where it shows them.

    An engine that shows none is asked for whole models, of which what stands around the operator is taken off.
    """

    def __init__(self, engine: ProcessEngine | None) -> None:
        """Start.

        Args:
            engine: what runs the models; None is ONNX Runtime's CPU provider in a process of its own.
        """
        self.engine = engine if engine is not None else RunsOn().open()
        self.by_kernel = engine is None or (engine.shows_kernels and engine.about().provider == "CPUExecutionProvider")

    def kernels(self, proto: onnx.ModelProto, x: np.ndarray) -> dict[str, float]:
        """Median microseconds of each kernel in one run, by node name and operator."""
        found = self.engine.profiles([proto.SerializeToString()], {"x": x}, Runs(0.0, RUNS, RUNS))
        assert found is not None and found[0] is not None
        taken: dict[str, list[float]] = defaultdict(list)
        for event in json.loads(found[0]):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                taken[f"{event['args']['op_name']} {event['name']}"].append(event["dur"])
        return {name: float(np.median(values)) for name, values in taken.items()}

    def above(self, proto: onnx.ModelProto, base: onnx.ModelProto, x: np.ndarray) -> float:
        """Microseconds by which a model takes longer than another; they take turns, and their fastest runs count."""
        times = self.engine.time([m.SerializeToString() for m in (proto, base)], [{"x": x}], SECONDS)
        return 1000.0 * (float(np.quantile(times[0], FASTEST)) - float(np.quantile(times[1], FASTEST)))


def quantized(proto: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    """The integer form, every node insisted on."""
    feeds = [{"x": x}, {"x": x}]
    result = onnxq.quantize(proto, calibration=feeds, preset="w8a8", include=["*"], benchmark=False, range="minmax")
    assert result.model is not None
    return result.model


CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def compare_operator(clock: Clock, build: Build) -> tuple[float, float]:
    """(float µs, integer µs) of what is neither a convolution nor a conversion at the ends."""
    proto, base = between(build), between(plain("Identity"))
    x = RNG.normal(size=SHAPE).astype(np.float32)
    skip = ("Conv ", "QLinearConv", "FusedConv", *CONVERSIONS)

    def rest(proto: onnx.ModelProto) -> float:
        return sum(us for kernel, us in clock.kernels(proto, x).items() if not kernel.startswith(skip))

    def taken(proto: onnx.ModelProto, base: onnx.ModelProto) -> float:
        return max(rest(proto) - rest(base) if clock.by_kernel else clock.above(proto, base, x), 0.0)

    return taken(proto, base), taken(quantized(proto, x), quantized(base, x))


def conversion_rates(clock: Clock) -> tuple[float, float]:
    """Nanoseconds an element of (QuantizeLinear, DequantizeLinear)."""
    size = float(np.prod(SHAPE))
    x = RNG.normal(size=SHAPE).astype(np.float32)
    grid = [const("s", np.float32(0.03)), const("z", np.uint8(128))]
    q, dq, again = (
        helper.make_node(op_type, [read, "s", "z"], [written])
        for op_type, read, written in (
            ("QuantizeLinear", "x", "a"), ("DequantizeLinear", "a", "b"), ("DequantizeLinear", "a", "c")
        )
    )  # fmt: skip
    last = helper.make_node("Add", ["b", "c"], ["y"])
    one, two = (model(nodes, grid, SHAPE) for nodes in ([q, dq], [q, dq, again, last]))
    nothing = model([helper.make_node("Identity", ["x"], ["y"])], [], SHAPE)
    both, second = clock.above(one, nothing, x), clock.above(two, one, x) / 2  # an Add takes about as long as a DQ
    return 1000.0 * max(both - second, 0.0) / size, 1000.0 * max(second, 0.0) / size


def compare_convolution(
    clock: Clock, shape: tuple[int, int, int, int, int, int], rates: tuple[float, float]
) -> tuple[float, float]:
    """(float µs, integer µs) of a convolution alone."""
    ci, co, k, s, g, hw = shape
    node, constants = conv("c", "x", "y", (co, ci // g, k), g, s)
    proto = model([node], constants, (1, ci, hw, hw))
    x = RNG.normal(size=(1, ci, hw, hw)).astype(np.float32)
    whole = quantized(proto, x)
    if clock.by_kernel:
        as_float = sum(us for n, us in clock.kernels(proto, x).items() if n.startswith(("Conv ", "FusedConv")))
        return as_float, sum(us for n, us in clock.kernels(whole, x).items() if n.startswith("QLinearConv"))
    nothing = model([helper.make_node("Identity", ["x"], ["y"])], [], (1, ci, hw, hw))
    converted = (rates[0] * x.size + rates[1] * co * (-(-hw // s)) ** 2) / 1000.0
    return clock.above(proto, nothing, x), max(clock.above(whole, nothing, x) - converted, 0.0)


def kind_of(shape: tuple[int, int, int, int, int, int]) -> str:
    """Which rate of the target's table a convolution belongs to."""
    return "dense" if shape[4] == 1 else "depthwise" if shape[4] == shape[0] else "grouped"


def report(clock: Clock) -> None:
    """Print the tables, and the rates that a target's file holds."""
    print(f"{clock.engine.about()}, one thread, {'kernels' if clock.by_kernel else 'differences of whole models'}")
    rates = conversion_rates(clock)
    print(f"\nquantize {rates[0]:.3f} ns/element, dequantize {rates[1]:.3f}")
    print("\noperator            float µs   int µs   float ns/element   int ns/element")
    size = float(np.prod(SHAPE))
    for name, build in OPERATORS.items():
        try:
            as_float, as_int = compare_operator(clock, build)
        except (EngineError, AssertionError) as problem:
            print(f"{name:18} does not run there: {problem}")
            continue
        print(f"{name:18} {as_float:9.0f} {as_int:8.0f} {1000 * as_float / size:18.3f} {1000 * as_int / size:16.3f}")
    print("\nconvolution                              MMAC   float µs   int µs   ratio")
    speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for shape in CONVOLUTIONS:
        ci, co, k, s, g, hw = shape
        as_float, as_int = compare_convolution(clock, shape, rates)
        macs = co * (ci // g) * k * k * (-(-hw // s)) ** 2 / 1e6
        what = f"{ci:4} → {co:4}  {k}x{k}/{s} groups {g:3} at {hw:3}"
        print(f"{what:36} {macs:8.1f} {as_float:10.0f} {as_int:8.0f} {as_float / max(as_int, 1e-9):7.2f}")
        if ci >= 16 and min(as_float, as_int) > 0:
            speeds[kind_of(shape)].append((1e6 * macs / as_float, 1e6 * macs / as_int))
    print("\nmultiply-accumulates a µs, median    float      int")
    for kind, pairs in speeds.items():
        of_float, of_int = (float(np.median(column)) for column in zip(*pairs, strict=True))
        print(f"{kind:32} {of_float:10.0f} {of_int:8.0f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure here, or where the options say, as those of ``onnxq benchmark`` do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_costs", description=__doc__)
    parser.add_argument("--engine", choices=["web", "openvino"], help="onnxruntime-web in Node, or OpenVINO on a CPU")
    parser.add_argument("--node-modules", metavar="FOLDER", help="folder with onnxruntime-web")
    parser.add_argument("--provider", metavar="NAME", help="execution provider of ONNX Runtime")
    parser.add_argument("--provider-option", action="append", default=[], metavar="KEY=VALUE", help="of --provider")
    parser.add_argument("--device", metavar="COMMAND", help="a command that gives a shell on another machine")
    parser.add_argument("--engine-python", metavar="PATH", help="the Python that has the runtime")
    given = parser.parse_args(arguments)
    provider, options = given.provider, dict(pair.split("=", 1) for pair in given.provider_option)
    if given.engine == "openvino":
        provider, options = "OpenVINOExecutionProvider", {"device_type": "CPU", **options}
    asked = RunsOn(
        device=given.device,
        engine=given.engine if given.engine == "web" else None,
        provider=provider,
        provider_options=options,
        python=given.engine_python,
        node_modules=given.node_modules,
    )
    engine = None if asked == RunsOn() else asked.open()
    clock = Clock(engine)
    try:
        report(clock)
    finally:
        clock.engine.close()


if __name__ == "__main__":
    main()
