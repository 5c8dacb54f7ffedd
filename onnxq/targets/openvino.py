"""OpenVINO's CPU plug-in by ONNX Runtime's OpenVINO provider, which is a package in the place of onnxruntime.

What pays is decided by the costs of ONNX Runtime's CPU provider on the same processors; they were not measured on it.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu
from onnxq.targets.target import Ops

TARGET = replace(
    cpu.TARGET,
    name="openvino",
    description="OpenVINO on Intel and other x86 CPUs: as cpu, without ONNX Runtime's own operators",
    formats=("qdq",),
    slow_norms=False,
    adds_bias=False,
    halves={"float16": Ops(but=True)},
    presets=("w8a8", "w8a8-smooth", "fp16"),
    why_presets="it reads no operators of ONNX Runtime's own, which packed and dynamic weights need",
    own_operators=False,
    steered=False,
    max_opset=21,
    provider="OpenVINOExecutionProvider",
    measured="",
)
