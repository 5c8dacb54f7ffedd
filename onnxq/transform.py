"""Float-equivalent rewrites between preparing and planning: those that need statistics, and fusion."""

from __future__ import annotations

from onnxq.pipeline import Clock, Data, Prepared
from onnxq.recipe import Recipe


def transform(prepared: Prepared, recipe: Recipe, data: Data | None, threads: int | None, clock: Clock) -> list[str]:
    """Rewrite the prepared model in place as the recipe asks, without changing what it computes in float.

    Returns:
        Warnings, one line each.
    """
    del prepared, recipe, data, threads, clock
    return []
