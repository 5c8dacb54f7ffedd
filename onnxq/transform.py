"""Float-equivalent rewrites between preparing and planning: those that need statistics, and fusion."""

from __future__ import annotations

from onnxq.core.dtypes import Array
from onnxq.passes.equalize import absorb_biases, equalize
from onnxq.pipeline import Clock, Data, Prepared
from onnxq.recipe import Recipe
from onnxq.runtime.minima import channel_minima


def transform(prepared: Prepared, recipe: Recipe, data: Data | None, threads: int | None, clock: Clock) -> list[str]:
    """Rewrite the prepared model in place as the recipe asks, without changing what it computes in float.

    Returns:
        Warnings, one line each.
    """
    notes: list[str] = []
    if recipe.equalize:
        with clock.step("equalize"):
            notes += _equalize(prepared, data, threads)
    return notes


def _equalize(prepared: Prepared, data: Data | None, threads: int | None) -> list[str]:
    done = equalize(prepared.model)
    if not done.pairs:
        return ["--equalize: no two layers have only Relu, MaxPool and the like between them, so nothing was equalized"]
    if data is None:
        return []
    samples = data.calibration

    def lowest(axes: dict[str, int]) -> dict[str, Array]:
        return channel_minima(prepared.model, axes, samples, threads=threads)

    absorb_biases(prepared.model, lowest)
    return []
