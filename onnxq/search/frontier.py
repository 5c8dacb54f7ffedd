"""Candidates as rows of a table, and those of them that no other beats in speed, size and quality at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxq.pipeline.candidate import Candidate
from onnxq.recipe.recipe import Recipe
from onnxq.search.choice import CLEANED, FLOAT
from onnxq.verify.benchmark import Timing
from onnxq.verify.budget import only_noise
from onnxq.verify.compare import Comparison


def candidate_row(
    name: str,
    timing: Timing | None,
    comparison: Comparison | None,
    size: int | None,
    verdict: str,
    how: tuple[str, str | None] = ("", None),
) -> dict[str, Any]:
    """One candidate as plain data; figures that are not known are None.

    Args:
        name: of the candidate.
        timing: beside float.
        comparison: with float; None where it was not compared on samples.
        size: bytes.
        verdict: "chosen", "not the best", or why it cannot be chosen.
        how: the options that give it, and the recipe as YAML where no option does.
    """
    return {
        "name": name,
        "latency_ratio": None if timing is None else round(timing.ratio, 4),
        "latency_ms": None if timing is None else timing.median_ms,
        "sqnr_db": None if comparison is None else comparison.sqnr_db,
        "top1_agreement": None if comparison is None else comparison.top1_agreement,
        "loss": None if comparison is None else comparison.loss,
        "size_bytes": size,
        "verdict": verdict,
        "options": how[0] or None,
        "recipe": how[1],
        "frontier": False,
    }


def how_to_get(candidate: Candidate, given: Recipe) -> tuple[str, str | None]:
    """The options that make a candidate beside those that the user gave; or its recipe, which goes into a file.

    Empty for a model that is refused whatever is asked for: what computes noise is not written.
    """
    found, recipe = candidate.comparison, candidate.recipe
    if found is not None and (not found.finite or only_noise(found) is not None):
        return "", None
    if candidate.name == CLEANED:
        return "-p float", None
    if recipe == given.override(preset=recipe.preset):
        return f"-p {recipe.preset}", None
    if recipe == given.override(preset=recipe.preset, algorithm=recipe.algorithm):
        return f"-p {recipe.preset} --algorithm {recipe.algorithm}", None
    return "--recipe FILE", recipe.to_yaml()


def mark_frontier(rows: Sequence[dict[str, Any]]) -> None:
    """Mark the rows that no other row beats: none is as fast, as small and as close to float, and better in one.

    Rows without a time, and those that no command gives, are left out. Losses that nobody knows count as the largest.
    """
    timed = [row for row in rows if row["latency_ratio"] is not None and row["size_bytes"] is not None]
    known = [row for row in timed if row.get("options") or row["name"] == FLOAT]
    for row in known:
        row["frontier"] = not any(_beats(other, row) for other in known if other is not row)


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    left, right = (
        (row["latency_ratio"], -row["size_bytes"], -(math.inf if row["loss"] is None else row["loss"]))
        for row in (one, other)
    )
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


def shown(before: Timing | None, after: Timing | None) -> Timing | None:
    """A timing whose ratio is that of the medians, of one alternation, that are shown beside it."""
    if before is None or after is None or after.median_ms <= 0:
        return after
    return replace(after, ratio=before.median_ms / after.median_ms)
