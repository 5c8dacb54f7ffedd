"""The algorithms that round packed weights: the one place where each is named.

Recipes, rules, the command line and the pipeline read this table. What it names is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

MEAN_SQUARES, SECOND_MOMENTS = "mean squares", "second moments"
"""What an algorithm can be given of the inputs of a layer: mean squares where there are any, second moments always."""


@dataclass(frozen=True)
class Rounding:
    """A weight algorithm.

    Attributes:
        name: what ``--algorithm`` takes.
        function: ``module:name`` of a pure function ``(weight, spec) → QTensor``; weight is float32, (out, in). It also
            gets what ``statistics`` says.
        description: in a few words.
        statistics: "" for none; "mean squares" for ``importance``, float64, (in,), or None where there is no data;
            "second moments" for ``moment``, float32, (in, in), a multiple of the sum of xxᵀ over ``rows`` rows.
    """

    name: str
    function: str
    description: str
    statistics: str = ""

    def load(self) -> Callable[..., Any]:
        """The function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]


ROUNDINGS: dict[str, Rounding] = {
    rounding.name: rounding
    for rounding in (
        Rounding("rtn", "onnxq.algorithms.rtn:rtn", "to nearest"),
        Rounding("gptq", "onnxq.algorithms.gptq:gptq_of_moment", "column by column, errors made good", SECOND_MOMENTS),
        Rounding(
            "autoround",
            "onnxq.algorithms.learned.autoround:autoround_of_moment",
            "roundings, ranges and scales learned (SignRound)",
            SECOND_MOMENTS,
        ),
        Rounding("awq", "onnxq.algorithms.awq:clipped", "with inputs that matter scaled up", SECOND_MOMENTS),
        Rounding("hqq", "onnxq.algorithms.hqq:hqq", "with a zero point that is robust to outliers"),
        Rounding("kquant", "onnxq.algorithms.kquant:kquant_by_size", "with scales searched as GGML's", MEAN_SQUARES),
    )
}

ALGORITHMS_WITH_DATA = tuple(name for name, each in ROUNDINGS.items() if each.statistics == SECOND_MOMENTS)
"""Algorithms that need calibration data: they weigh a weight's error by how its input is distributed."""
BY_ROWS = ("kquant",)
"""Algorithms that copy a weight row by row, so that it need not be contiguous."""

ALGORITHM_WITHOUT_DATA = "kquant"
"""How weights in blocks are rounded where there is no data and the user does not say."""
