"""Torch modules to ONNX by hand: readable names, nothing of the machine in the file, BatchNormalization kept if asked.

One method a layer; each takes the name of the value that comes in and returns the name of the value that goes out.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from networks import Classifier, ResidualBlock, SeparableBlock

OPSET = 17
IR_VERSION = 8


class Exporter:
    """Collects nodes and initializers.

    Args:
        fold: fold BatchNormalization into the convolution before it instead of writing the node.
    """

    def __init__(self, *, fold: bool) -> None:
        self.fold = fold
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        """Append a node of that name with one output."""
        output = f"{name}.out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Append an initializer."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def convolution(self, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str) -> str:
        """Conv and BatchNormalization, one node or two."""
        weight = conv.weight.detach().numpy()
        shape = {"kernel_shape": list(conv.kernel_size), "strides": list(conv.stride), "group": conv.groups}
        shape["pads"] = [int(pad) for pad in conv.padding] * 2
        assert norm.running_mean is not None and norm.running_var is not None
        gamma, beta = norm.weight.detach().numpy(), norm.bias.detach().numpy()
        mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
        if self.fold:
            factor = gamma / np.sqrt(variance + np.float32(norm.eps))
            inputs = [
                self.constant(f"{name}.weight", weight * factor[:, None, None, None]),
                self.constant(f"{name}.bias", beta - mean * factor),
            ]
            return self.node("Conv", [x, *inputs], name, **shape)
        y = self.node("Conv", [x, self.constant(f"{name}.weight", weight)], name, **shape)
        parameters = {"scale": gamma, "bias": beta, "mean": mean, "var": variance}
        inputs = [self.constant(f"{name}.norm.{key}", value) for key, value in parameters.items()]
        return self.node("BatchNormalization", [y, *inputs], f"{name}.norm", epsilon=float(norm.eps))

    def relu6(self, x: str, name: str) -> str:
        """Clip to 0...6; one pair of scalars for all."""
        if not any(tensor.name == "relu6.max" for tensor in self.initializers):
            self.constant("relu6.min", np.array(0, np.float32))
            self.constant("relu6.max", np.array(6, np.float32))
        return self.node("Clip", [x, "relu6.min", "relu6.max"], name)

    def linear(self, x: str, layer: nn.Linear, name: str, *, gemm: bool, last: bool = False) -> str:
        """Gemm with a transposed weight, or MatMul and Add."""
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        bias_name = self.constant(f"{name}.bias", bias)
        if gemm:
            y = self.node("Gemm", [x, self.constant(f"{name}.weight", weight), bias_name], name, transB=1)
        else:
            product = self.node("MatMul", [x, self.constant(f"{name}.weight", weight.T)], name)
            y = self.node("Add", [product, bias_name], f"{name}.add")
        if last:
            self.nodes[-1].output[0] = "logits"
            return "logits"
        return y

    def residual_block(self, x: str, block: ResidualBlock, name: str) -> str:
        """The nodes of a residual block."""
        y = self.convolution(x, block.conv1, block.bn1, f"{name}.conv1")
        y = self.node("Relu", [y], f"{name}.relu1")
        y = self.convolution(y, block.conv2, block.bn2, f"{name}.conv2")
        if block.shortcut is not None:
            conv, norm = block.shortcut[0], block.shortcut[1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            x = self.convolution(x, conv, norm, f"{name}.shortcut")
        y = self.node("Add", [y, x], f"{name}.add")
        return self.node("Relu", [y], f"{name}.relu2")

    def separable_block(self, x: str, block: SeparableBlock, name: str) -> str:
        """The nodes of a depthwise-separable block; SiLU is Sigmoid and Mul."""
        y = self.convolution(x, block.depthwise, block.bn1, f"{name}.depthwise")
        y = self.relu6(y, f"{name}.relu6")
        y = self.convolution(y, block.pointwise, block.bn2, f"{name}.pointwise")
        gate = self.node("Sigmoid", [y], f"{name}.silu.sigmoid")
        return self.node("Mul", [y, gate], f"{name}.silu.mul")

    def classifier(self, network: Classifier) -> None:
        """The nodes of a whole convolutional network, from ``image`` to ``logits``."""
        conv, norm, activation = network.stem
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        y = self.convolution("image", conv, norm, "stem.conv")
        is_relu6 = isinstance(activation, nn.ReLU6)
        y = self.relu6(y, "stem.relu6") if is_relu6 else self.node("Relu", [y], "stem.relu")
        for number, block in enumerate(network.blocks, 1):
            if isinstance(block, ResidualBlock):
                y = self.residual_block(y, block, f"block{number}")
            else:
                assert isinstance(block, SeparableBlock)
                y = self.separable_block(y, block, f"block{number}")
        y = self.node("GlobalAveragePool", [y], "head.pool")
        y = self.node("Flatten", [y], "head.flatten", axis=1)
        self.linear(y, network.head, "head.linear", gemm=True, last=True)

    def perceptron(self, network: nn.Sequential) -> None:
        """The nodes of an MLP: MatMul and Add inside, Gemm at the end, from ``pixels`` to ``logits``."""
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        y = "pixels"
        for number, layer in enumerate(layers, 1):
            last = number == len(layers)
            y = self.linear(y, layer, f"layer{number}", gemm=last, last=last)
            if not last:
                y = self.node("Relu", [y], f"layer{number}.relu")

    def model(self, name: str, input_name: str, sample_shape: tuple[int, ...]) -> onnx.ModelProto:
        """The finished, checked model with a dynamic first dimension ``batch``."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", *sample_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            self.initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="onnxq-models"
        )
        onnx.checker.check_model(model, full_check=True)
        return model
