"""ONNX Runtime's CUDA provider: float16, with 4- and 8-bit weights that MatMulNBits unpacks.

It has no int8 convolution and no int8 MatMul behind Q and DQ: such models run dequantized there, slower than float16.
The operators without a float16 kernel are those of docs/OperatorKernels.md in onnxruntime's repository. The numbers are
verified on the CPU provider, unless the GPU is there.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu
from onnxq.targets.target import Ops

WITHOUT_KERNEL = frozenset(
    "Bernoulli Celu Det DFT Hardmax LpNormalization LpPool MaxUnpool Mish Multinomial Range STFT".split()
)
"""What runs on the CPU provider there, in float32."""

TARGET = replace(
    cpu.TARGET,
    name="cuda",
    description="ONNX Runtime on NVIDIA GPUs: float16, and packed 4- and 8-bit weights between it; never int8",
    integer_ops=frozenset(),
    slow_norms=False,
    adds_bias=False,
    halves={"float16": Ops(WITHOUT_KERNEL, but=True)},
    presets=("fp16", "w8", "w4"),
    why_presets="it has no int8 kernels behind Q and DQ, and would dequantize at each inference",
    steered=False,
    provider="CUDAExecutionProvider",
    measured="",
)
