"""What came of a run, as a result: figures, decisions and the place of the file."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from onnxq.graph.types import Proto
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.plan.weights.weight_errors import bits_per_weight
from onnxq.report.results import QuantizeResult


def result_of(chosen: Candidate, job: Job, destination: Path | None, size: int, proto: Proto | None) -> QuantizeResult:
    """Figures, decisions and the place of the file."""
    verdict, is_float = chosen.verdict, chosen.model is None
    comparison = verdict.comparison
    plan = chosen.plan.as_run(verdict.dequantized)
    same = math.inf if is_float else None  # float itself, given back
    return QuantizeResult(
        output=destination,
        preset=chosen.preset,
        format=chosen.form if plan.values else None,
        target=job.target.name,
        size_before=job.prepared.size,
        size_after=size,
        sqnr_db=comparison.sqnr_db if comparison is not None else same,
        top1_agreement=comparison.top1_agreement if comparison is not None else None,
        latency_ratio=verdict.ratio,
        coverage=plan.coverage(),
        kept_float=plan.kept_float(),
        seconds=job.clock.seconds,
        warnings=[*chosen.warnings, *verdict.warnings],
        comparison=comparison,
        unoptimized=verdict.unoptimized,
        non_finite=chosen.non_finite,
        plan=plan,
        model=proto,
        latency_ms={timing.name: timing.median_ms for timing in verdict.timings},
        bits_per_weight=_bits(chosen),
        weights=[asdict(layer) for layer in chosen.weights],
        candidates=chosen.candidates,
        choices=chosen.choices,
        trail=chosen.trail,
        reconstructed=None if chosen.reconstructed is None else chosen.reconstructed.to_dict(),
        caches=chosen.caches,
        engine=verdict.engine.to_dict() if verdict.engine is not None else None,
        float_type=None if is_float else chosen.recipe.half,
        recipe=chosen.recipe.to_yaml() if chosen.trail and not is_float else None,
        workload=None if job.workload is None or chosen.caches else job.workload.table(verdict.timings),
    )


def _bits(chosen: Candidate) -> float | None:
    if chosen.model is None or chosen.plan.counts("integer", "dynamic"):
        return None
    return bits_per_weight(chosen.weights)
