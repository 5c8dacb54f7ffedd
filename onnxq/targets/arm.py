"""ONNX Runtime's CPU provider on aarch64 with dot product or i8mm: the types of ``cpu``.

Emulators tell nothing of times, so that the costs of ``cpu`` stand in for what was not measured.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu

TARGET = replace(
    cpu.TARGET,
    name="arm",
    description="ONNX Runtime on 64-bit ARM (dot product, i8mm): as cpu, costs not measured",
    provider="cpu on aarch64",
    measured="",
)
