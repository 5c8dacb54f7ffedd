"""OpenVINO's CPU plug-in by ONNX Runtime's OpenVINO provider, which is a package in the place of onnxruntime.

Products were measured with onnxruntime-openvino 1.24.1 on an AMD processor, one thread (``python -m
benchmarks.kernel_costs --engine openvino``): dense ones gain 2.3x, grouped ones 1.8x, depthwise ones lose a little.
Other operators have the rates of ONNX Runtime's CPU provider: what whole models tell of them is less than their noise.
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
    costs=replace(
        cpu.COSTS,
        float_macs=replace(cpu.COSTS.float_macs, dense=43e3, products=43e3, grouped=51e3, depthwise=9.9e3),
        int_macs=replace(cpu.COSTS.int_macs, dense=98e3, products=65e3, grouped=93e3, depthwise=9.1e3),
    ),
    slow_norms=False,
    adds_bias=False,
    halves={"float16": Ops(but=True)},
    presets=("w8a8", "w8a8-smooth", "fp16"),
    why_presets="it reads no operators of ONNX Runtime's own, which packed and dynamic weights need",
    own_operators=False,
    steered=False,
    scales_turn=False,  # its ReshapeTransformation fails: "Input shape dimension equal 128 cannot be broadcasted to 20"
    booleans_pass=False,  # its CPU plug-in fails on such an Identity: "unsupported src_prc: boolean"
    max_opset=21,
    provider="OpenVINOExecutionProvider",
    measured="onnxruntime-openvino 1.24.1, one thread, AMD EPYC",
)
