"""A finished model, as it was verified and measured: what a quantization, or a search among many, ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.pipeline.build import Built, build
from onnxq.pipeline.gate import Verdict, verify
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.large.layer_by_layer import build_large
from onnxq.pipeline.rescue import rescue
from onnxq.plan.decisions import Plan
from onnxq.stats.statistics import Statistics


@dataclass
class Chosen:
    """The model that was chosen, as it was measured.

    Attributes:
        preset: its preset, or "mixed", or "float".
        built: the quantized model; None where float is given back.
        plan: every decision.
        verdict: what verification found.
        content: what was measured: contents of the model, or a file that has them; empty where it was verified a layer
            at a time.
        candidates: name, ``latency_ratio``, ``latency_ms``, ``sqnr_db``, ``top1_agreement``, ``size_bytes`` and
            ``verdict`` of each whole model.
        choices: ``node``, ``op_type``, ``choice``, ``alternatives`` and ``reason`` of each node.
        warnings: one line each.
        trail: everything that a search for the limits tried.
        caches: what became of caches of keys and values; empty where they stay as they are.
        statistics: ranges of the prepared model's values, for whoever searches on; None where there are none.
        finetuned: what learning end to end changed; empty where there was none.
    """

    preset: str
    built: Built | None
    plan: Plan
    verdict: Verdict
    content: bytes | Path
    candidates: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trail: list[dict[str, Any]] = field(default_factory=list)
    caches: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics | None = None
    finetuned: dict[str, Any] = field(default_factory=dict)


def make(job: Job, *, timed: bool) -> Chosen:
    """Build and verify the one model that a named preset stands for.

    Where the runtime refuses it, nodes are kept float until it does not.

    Args:
        job: its recipe names a preset; its budget is not used.
        timed: measure latency.

    Raises:
        RecipeError: options that make no sense for the model, or that quantize nothing.
        CalibrationError: data or statistics that do not fit it.
    """
    if job.spill is not None:
        built, verdict = build_large(job)
        return Chosen(job.recipe.preset, built, built.plan, verdict, b"", warnings=list(built.warnings))
    built = build(job)
    content = contents(built.model, job.stack)
    verdict = verify(content, job, timed=timed)
    if verdict.refused and (other := rescue(job, built, verdict.failures[-1])) is not None:
        built, content = other, contents(other.model, job.stack)
        verdict = verify(content, job, timed=timed)
    return Chosen(job.recipe.preset, built, built.plan, verdict, content, warnings=list(built.warnings))
