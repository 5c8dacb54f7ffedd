"""NVIDIA TensorRT with explicit quantization, by its developer guide ("Working with Quantized Types").

Symmetric int8 with zero point 0 on both sides, a scale a channel for weights, no quantized bias; Q and DQ stand in
front of the operators that have int8 kernels, and so at both inputs of an Add that joins a residual, and nowhere
behind, so that Conv, bias, Add and Relu fuse. In float8 (e4m3), which Ada and later have, products alone have Q and DQ,
with one scale a tensor on both sides. Nothing of it was run: no such GPU is there where onnxq is developed.
"""

from __future__ import annotations

from onnxq.core.dtypes import QType
from onnxq.targets import cpu
from onnxq.targets.target import INPUTS, Ops, Target

TARGET = Target(
    name="tensorrt",
    description="NVIDIA TensorRT: symmetric int8 in front of layers and residual Adds, float biases; not verified",
    activation=QType.INT8,
    symmetric_activations=True,
    weight=QType.INT8,
    weight_bits=8,
    integer_ops=cpu.INTEGER_OPS,
    formats=("qdq",),
    min_opset=13,
    costs=cpu.COSTS,
    halves={"float16": Ops(but=True), "bfloat16": Ops(but=True)},
    activations=(QType.INT8, QType.FLOAT8),
    weights=(QType.INT8, QType.INT4, QType.FLOAT8),
    coverage=INPUTS,
    runs=Ops(frozenset("Add AveragePool Conv ConvTranspose Gemm GlobalAveragePool MatMul".split())),
    float_bias=True,
    presets=("w8a8", "w8a8-smooth", "fp8", "fp16"),
    why_presets="it reads Q and DQ and float16, and none of ONNX Runtime's own operators",
    own_operators=False,
    steered=False,
    max_opset=21,
    provider="TensorrtExecutionProvider",
)
