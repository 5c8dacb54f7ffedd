"""What rounding weights by second moments of their inputs costs: known before it is begun, and bounded."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxq.recipe.recipe import Recipe
from onnxq.stats.second_moment import moment_bytes

_WORTH_A_PROBE = 1e11
"""Multiplications and additions from which the speed of this machine is measured, about 1 s of work."""

_PROBED = 384
_ALWAYS_GIB = 2.0
"""A layer whose second moment alone takes no more than this is never too large, whatever --max-memory says."""


@dataclass(frozen=True)
class Effort:
    """What is expected.

    Attributes:
        seconds: on this machine, as busy as it is now; 0 where it is too little to matter.
        gigabytes: at the same time, for the largest layer: its second moment, and a factor of it.
    """

    seconds: float
    gigabytes: float


def too_large(inputs: int, recipe: Recipe) -> str:
    """Why a layer's second moment is not gathered; empty where it is.

    Work grows with the third power of the inputs, memory with the second. Bounding one bounds the other.
    """
    needed = moment_bytes(inputs) / 2**30
    if needed <= max(recipe.max_memory, _ALWAYS_GIB):
        return ""
    return f"the second moment of its {inputs} inputs takes {needed:.1f} GiB, and --max-memory is {recipe.max_memory:g}"


def expected(shapes: Iterable[tuple[int, int]]) -> Effort:
    """What GPTQ of weights takes.

    Args:
        shapes: (out, in) of each.
    """
    known = list(shapes)
    # factoring, pushing errors on, and the error of the outputs afterwards
    work = sum(inputs**3 / 3 + 3.0 * inputs**2 * outputs for outputs, inputs in known)
    largest = max((inputs for _, inputs in known), default=0)
    memory = max((8.0 * outputs * inputs for outputs, inputs in known), default=0.0)
    gigabytes = (moment_bytes(largest) + 12.0 * largest**2 + memory) / 1e9 if known else 0.0
    return Effort(work / _speed() if work > _WORTH_A_PROBE else 0.0, gigabytes)


def _speed() -> float:
    """Multiplications and additions a second."""
    matrix = np.ones((_PROBED, _PROBED))
    started = time.perf_counter()
    for _ in range(3):
        matrix @ matrix
    return 6.0 * _PROBED**3 / max(time.perf_counter() - started, 1e-9)
