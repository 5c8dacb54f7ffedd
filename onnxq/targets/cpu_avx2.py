"""ONNX Runtime's CPU provider on AVX2 or AVX-512 without VNNI.

Their 8-bit products are added in pairs in 16 bits, which saturates: 255·127·2 > 32767. With 7-bit weights
255·64·2 = 32640 stays inside, so the result is exact at the price of one bit of the weights.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets import cpu

TARGET = replace(
    cpu.TARGET,
    name="cpu-avx2",
    description="ONNX Runtime on AVX2/AVX-512 without VNNI: as cpu, with 7-bit weights so that no product saturates",
    weight_bits=7,
)
