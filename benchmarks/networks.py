"""MobileNetV2- and ResNet-50-shaped ONNX models with random weights, and inputs for them.

Shapes, operators and operation counts are those of torchvision's models exported in evaluation mode
(BatchNormalization folded into Conv); weights are drawn so that activations keep a sane size through the whole depth.
Good for time and memory; accuracy means little here, so agreement with the float model takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
CLASSES = 1000
INPUT_NAME = "input"
IMAGE_SHAPE = (3, 224, 224)

MOBILENET_V2_STAGES = (
    # expansion, channels, blocks, first stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
RESNET50_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Builder:
    """Nodes and initializers of one network; every method takes and returns the name of a value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node with one output."""
        output = f"{name}.out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Append a float32 initializer."""
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(
        self,
        x: str,
        name: str,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        *,
        group: int = 1,
        gain: float = 2.0,
    ) -> str:
        """Conv with a small random bias; weight variance is gain / fan-in (He et al. 2015: 2 before a Relu)."""
        channels_in, channels_out = channels
        shape = (channels_out, channels_in // group, kernel, kernel)
        deviation = np.sqrt(gain / (shape[1] * kernel * kernel))
        # Folded BatchNormalization makes channels differ in size by a factor of a few; so does this.
        size = self.rng.uniform(0.5, 1.4, (channels_out, 1, 1, 1))
        weight = self.constant(f"{name}.weight", self.rng.normal(0, deviation, shape) * size)
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.1, channels_out))
        return self.node(
            "Conv",
            [x, weight, bias],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )

    def relu6(self, x: str, name: str) -> str:
        """Clip to 0...6."""
        return self.node("Clip", [x, "relu6.min", "relu6.max"], name)

    def head(self, x: str, channels: int, name: str) -> onnx.ModelProto:
        """Global mean, one Gemm to 1000 classes; the finished model."""
        y = self.node("GlobalAveragePool", [x], "head.pool")
        y = self.node("Flatten", [y], "head.flatten", axis=1)
        weight = self.constant("head.linear.weight", self.rng.normal(0, 1 / np.sqrt(channels), (CLASSES, channels)))
        bias = self.constant("head.linear.bias", np.zeros(CLASSES))
        self.nodes.append(
            helper.make_node("Gemm", [y, weight, bias], ["logits"], name="head.linear", alpha=1.0, beta=1.0, transB=1)
        )
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", *IMAGE_SHAPE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="benchmarks")
        model.ir_version = IR_VERSION
        return model


def mobilenet_v2(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 1.0 at 224 pixels: 3.5 M parameters, 0.3 G multiply-adds, 52 Conv, Relu6 as Clip."""
    builder = Builder(seed)
    builder.constant("relu6.min", np.array(0.0))
    builder.constant("relu6.max", np.array(6.0))
    y = builder.relu6(builder.conv(INPUT_NAME, "stem.conv", (3, 32), 3, 2), "stem.relu6")
    channels, number = 32, 0
    for expansion, channels_out, blocks, first_stride in MOBILENET_V2_STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = _inverted_residual(builder, y, f"block{number}", (channels, channels_out), expansion, stride)
            channels, number = channels_out, number + 1
    y = builder.relu6(builder.conv(y, "last.conv", (channels, 1280), 1), "last.relu6")
    return builder.head(y, 1280, "mobilenet_v2")


def _inverted_residual(
    builder: Builder, x: str, name: str, channels: tuple[int, int], expansion: int, stride: int
) -> str:
    """Expand 1 x 1, depthwise 3 x 3, project 1 x 1; added to ``x`` where the shape allows."""
    channels_in, channels_out = channels
    hidden = channels_in * expansion
    y = x
    if expansion != 1:
        y = builder.relu6(builder.conv(y, f"{name}.expand", (channels_in, hidden), 1), f"{name}.expand.relu6")
    y = builder.conv(y, f"{name}.depthwise", (hidden, hidden), 3, stride, group=hidden)
    y = builder.relu6(y, f"{name}.depthwise.relu6")
    is_residual = stride == 1 and channels_in == channels_out
    y = builder.conv(y, f"{name}.project", (hidden, channels_out), 1, gain=0.5 if is_residual else 1.5)
    return builder.node("Add", [x, y], f"{name}.add") if is_residual else y


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 v1.5 at 224 pixels: 25.6 M parameters, 4.1 G multiply-adds, 53 Conv."""
    builder = Builder(seed)
    y = builder.node("Relu", [builder.conv(INPUT_NAME, "stem.conv", (3, 64), 7, 2)], "stem.relu")
    y = builder.node("MaxPool", [y], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks, first_stride) in enumerate(RESNET50_STAGES, 1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = _bottleneck(builder, y, f"stage{stage}.block{block}", (channels, width), stride)
            channels = 4 * width
    return builder.head(y, channels, "resnet50")


def _bottleneck(builder: Builder, x: str, name: str, channels: tuple[int, int], stride: int) -> str:
    """1 x 1, 3 x 3, 1 x 1 convolutions, added to ``x`` or to its 1 x 1 projection."""
    channels_in, width = channels
    y = builder.node("Relu", [builder.conv(x, f"{name}.conv1", (channels_in, width), 1)], f"{name}.relu1")
    y = builder.node("Relu", [builder.conv(y, f"{name}.conv2", (width, width), 3, stride)], f"{name}.relu2")
    y = builder.conv(y, f"{name}.conv3", (width, 4 * width), 1, gain=0.5)
    if stride != 1 or channels_in != 4 * width:
        x = builder.conv(x, f"{name}.shortcut", (channels_in, 4 * width), 1, stride, gain=1.0)
    return builder.node("Relu", [builder.node("Add", [y, x], f"{name}.add")], f"{name}.relu3")


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50}


def images(count: int, seed: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Feeds of batch 1: smooth random images with some noise, each of its own brightness and contrast."""
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        coarse = rng.normal(0, 1, (3, 14, 14)).repeat(16, axis=1).repeat(16, axis=2)
        fine = rng.normal(0, 1, (3, 56, 56)).repeat(4, axis=1).repeat(4, axis=2)
        image = rng.uniform(0.5, 1.2) * (0.8 * coarse + 0.5 * fine) + rng.normal(0, 0.3, (3, 1, 1))
        image += rng.normal(0, 0.1, IMAGE_SHAPE)
        feeds.append({INPUT_NAME: image[None].astype(np.float32)})
    return feeds
