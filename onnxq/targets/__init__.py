"""What runtimes can run: one file of data a target."""

from __future__ import annotations

import difflib

from onnxq.errors import TargetError
from onnxq.targets import cpu, cpu_avx2
from onnxq.targets.target import Costs, MacRates, Rate, Target

__all__ = ["TARGETS", "Costs", "MacRates", "Rate", "Target", "target_named"]

TARGETS: dict[str, Target] = {target.name: target for target in (cpu.TARGET, cpu_avx2.TARGET)}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: there is none.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        there = f"did you mean {near[0]!r}? There" if near else "there"
        raise TargetError(f"--target: no target {name!r}; {there} are {', '.join(TARGETS)}")
    return TARGETS[name]
