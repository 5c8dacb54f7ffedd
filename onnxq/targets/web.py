"""onnxruntime-web on WebAssembly: in browsers and Node.

Measured in Node 20 with onnxruntime-web 1.31, one thread (``python -m benchmarks.kernel_costs --engine web``, whole
models with and without the operator): dense products are 2.1 times as fast on integers, depthwise convolutions three to
four times as slow, and each number that an integer convolution writes takes long. A MobileNetV2 shape on integers
gains 1.03x as a whole for that reason (54.8 ms in float, 53.0 as QDQ), where it gains 2.1x natively.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu
from onnxq.targets.target import Costs, Ops, Rate

COSTS: Costs = replace(
    cpu.COSTS,
    float_macs=replace(
        cpu.COSTS.float_macs, dense=11.4e3, products=11.4e3, grouped=10.2e3, depthwise=2.9e3, weights_per_us=2e3
    ),
    int_macs=replace(
        cpu.COSTS.int_macs,
        dense=24.6e3,
        products=13e3,
        grouped=13.4e3,
        depthwise=0.8e3,
        weights_per_us=2.4e3,
        output_ns=4.0,
    ),
    quantize=Rate(0.36, 3.0),
    dequantize=Rate(0.14, 3.0),
    float_ops={
        **cpu.COSTS.float_ops,
        "AveragePool": Rate(0.33),  # a ninth of what an element of the input takes: of each window
        "MaxPool": Rate(0.14),
        "Sigmoid": Rate(2.2),
        "Softmax": Rate(5.7),
        "Resize": Rate(2.0),
        "DepthToSpace": Rate(2.2),
        "Gather": Rate(0.1),
    },
    int_ops={
        **cpu.COSTS.int_ops,
        "AveragePool": Rate(0.54),
        "MaxPool": Rate(0.44),
        "Sigmoid": Rate(0.36),
        "Softmax": Rate(4.3),
        "Resize": Rate(2.2),
        "DepthToSpace": Rate(4.7),
        "Gather": Rate(0.4),
    },
)
"""Operators that are not named were not told apart from noise; they have the rates of ``cpu``."""

TARGET = replace(
    cpu.TARGET,
    name="web",
    description="onnxruntime-web on WebAssembly: size first; depthwise int8 convolutions are slower than float there",
    costs=COSTS,
    halves={"float16": Ops(frozenset({"MeanVarianceNormalization"}), but=True)},
    max_opset=21,
    provider="wasm",
    measured="Node 20, onnxruntime-web 1.31, one thread, AMD EPYC",
)
