"""What runtimes can run: one file of data a target."""

from __future__ import annotations

from onnxq.errors import TargetError, there_are
from onnxq.targets import arm, cpu, cpu_avx2, cuda, openvino, qnn, tensorrt, web, web_gpu
from onnxq.targets.target import INPUTS, MEASURED, SLOW_16, WHOLE, Costs, MacRates, Ops, Rate, Target

__all__ = [
    "INPUTS",
    "MEASURED",
    "SLOW_16",
    "TARGETS",
    "WHOLE",
    "Costs",
    "MacRates",
    "Ops",
    "Rate",
    "Target",
    "target_named",
]

_FILES = (cpu, cpu_avx2, arm, qnn, openvino, tensorrt, cuda, web, web_gpu)
TARGETS: dict[str, Target] = {file.TARGET.name: file.TARGET for file in _FILES}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: there is none.
    """
    if name not in TARGETS:
        raise TargetError(f"--target: no target {name!r}; {there_are(name, TARGETS)}")
    return TARGETS[name]
