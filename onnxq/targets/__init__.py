"""What runtimes can run: one file of data a target."""

from __future__ import annotations

from onnxq.errors import TargetError, there_are
from onnxq.targets import cpu, cpu_avx2
from onnxq.targets.target import Costs, MacRates, Ops, Rate, Target

__all__ = ["TARGETS", "Costs", "MacRates", "Ops", "Rate", "Target", "target_named"]

TARGETS: dict[str, Target] = {target.name: target for target in (cpu.TARGET, cpu_avx2.TARGET)}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: there is none.
    """
    if name not in TARGETS:
        raise TargetError(f"--target: no target {name!r}; {there_are(name, TARGETS)}")
    return TARGETS[name]
