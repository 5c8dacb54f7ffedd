"""One quantization, from a job to a verified model."""

from __future__ import annotations

from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import verify
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.large.layer_by_layer import build_large
from onnxq.pipeline.rescue import rescue


def make(job: Job, *, timed: bool) -> Candidate:
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
        return build_large(job)
    made = build(job)
    made.content = contents(made.quantized, job.stack)
    made.verdict = verify(made.content, job, timed=timed)
    if made.verdict.refused and (other := rescue(job, made, made.verdict.failures[-1])) is not None:
        made = other
        made.content = contents(made.quantized, job.stack)
        made.verdict = verify(made.content, job, timed=timed)
    return made
