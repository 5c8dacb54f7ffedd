"""onnxruntime-web on WebGPU: float16, and MatMulNBits with float16 in and out (q4f16).

QDQ models of int8 give wrong numbers there (huggingface/transformers.js issues 1512 and 1728), so that none is written.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu
from onnxq.targets.target import Ops

TARGET = replace(
    cpu.TARGET,
    name="web-gpu",
    description="onnxruntime-web on WebGPU: float16, and packed 4- and 8-bit weights; int8 gives wrong numbers there",
    integer_ops=frozenset(),
    slow_norms=False,
    adds_bias=False,
    halves={"float16": Ops(but=True)},
    presets=("fp16", "w8", "w4"),
    why_presets="int8 between Q and DQ gives wrong numbers there (huggingface/transformers.js#1512)",
    steered=False,
    max_opset=21,
    provider="webgpu",
    measured="",
)
