"""onnxruntime-web on WebAssembly: in browsers and Node.

Measured in Node 20 with onnxruntime-web 1.30, one thread: a MobileNetV2 shape takes 54.8 ms in float, 53.0 as QDQ and
52.3 as integer operators. Convolutions on integers gain 1.03x, where they gain 2.1x natively; what counts is the size
of the file. The rates below are those of ``cpu``, with convolutions on integers as fast as in float.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu
from onnxq.targets.target import Ops

_FLOAT = cpu.COSTS.float_macs

TARGET = replace(
    cpu.TARGET,
    name="web",
    description="onnxruntime-web on WebAssembly: size first; int8 convolutions gain next to nothing there",
    costs=replace(
        cpu.COSTS,
        int_macs=replace(
            cpu.COSTS.int_macs, dense=1.03 * _FLOAT.dense, grouped=_FLOAT.grouped, depthwise=_FLOAT.depthwise
        ),
    ),
    halves={"float16": Ops(but=True)},
    max_opset=21,
    provider="wasm",
    measured="",
)
