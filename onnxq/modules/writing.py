"""``onnxq.qat.export``: what a prepared module has learned, verified and written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.processors import blas_threads
from onnxq.data.feeds import Feed, InputSpec
from onnxq.errors import RecipeError, VerificationError
from onnxq.graph.files import io, saving
from onnxq.graph.views.exported_module import with_constants
from onnxq.graph.views.plain_graph import replace_constants
from onnxq.modules.preparing import ModuleOrigin
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.gate import Compared, verify
from onnxq.pipeline.job import Job, contents
from onnxq.qat import need_torch
from onnxq.recipe.arguments import checked
from onnxq.report.results import QuantizeResult
from onnxq.request.opening import open_job
from onnxq.request.result_of_run import result_of
from onnxq.request.run_options import Options
from onnxq.runtime.session import Session, open_session
from onnxq.verify.compare import Patience, compare_all
from onnxq.verify.reference import Reference


class _Trained(Session):
    """A prepared module as a session, so that it is compared as any float model is."""

    def __init__(self, module: Any, like: Session) -> None:
        self.label, self.keep, self.source = "trained module", None, None
        self.optimize, self.threads = True, None
        self.output_names, self.output_dtypes = like.output_names, like.output_dtypes
        self._module, self._like = module, like

    @property
    def input_specs(self) -> list[InputSpec]:
        """Those of the model."""
        return self._like.input_specs

    @property
    def output_specs(self) -> list[InputSpec]:
        """Those of the model."""
        return self._like.output_specs

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, seconds: float | None = None) -> list[Any]:
        """Outputs in evaluation mode, fake quantization included."""
        found = self._module.run(feed)
        names = self.output_names if outputs is None else outputs
        return [np.asarray(found[name], self.output_dtypes[name]) for name in names]


@checked
def export(
    module: object,
    path: str | os.PathLike[str],
    *,
    calibration: object = None,
    benchmark: bool = True,
    seconds: float = 0.4,
    threads: int | None = None,
    force: bool = False,
) -> QuantizeResult:
    """Write what a prepared module computes in evaluation mode, once it is verified.

    The model is opened with and without optimizations and compared with the module; size and latency are compared with
    the float model of the same parameters.

    Args:
        module: what `prepare` returned.
        path: the file to write.
        calibration: samples to compare on, ``labels`` among them if there are any; those of `prepare` by default.
        benchmark: measure latency.
        seconds: time to spend on measuring each model.
        threads: threads an operator may use.
        force: write the model even if verification fails.

    Returns:
        As of `onnxq.quantize`.

    Raises:
        RecipeError: the module does not come from `prepare`.
        CalibrationError: samples that do not fit it.
        VerificationError: the model does not give what the module gives; nothing was written.
    """
    need_torch("onnxq.qat.export")
    from onnxq.qat.trainable.quantized_module import QuantizedModule

    if not isinstance(module, QuantizedModule) or not isinstance(module.origin, ModuleOrigin):
        raise RecipeError(
            f"export: a {type(module).__name__} is not what onnxq.qat.prepare returns; prepare the module, train that, "
            "and export it"
        )
    origin, destination = module.origin, Path(path)
    saving.check_destination(destination, (calibration,))
    float_model = with_constants(origin.exported.model, module.constants())
    clock = Clock(None)
    with ExitStack() as stack, blas_threads():
        samples = origin.calibration if calibration is None else calibration
        options = Options(calibration=samples, benchmark=benchmark, seconds=seconds, threads=threads)
        job = open_job(origin.recipe, float_model, None, options, clock, stack).job
        content, changed = module.learned()
        model = io.load(content)
        replace_constants(model, changed)
        compared = _compared(module, job, contents(model, stack))
        verdict = verify(contents(model, stack), job, timed=benchmark, compared=compared)
        if verdict.failures and not force:
            raise VerificationError(f"verification failed, nothing was written: {'; '.join(verdict.failures)}")
        notes = [*origin.chosen.warnings, *module.notes, "compared with the trained module, fake quantization included"]
        notes += [f"forced although: {line}" for line in verdict.failures]
        chosen = replace(
            origin.chosen,
            model=model,
            verdict=verdict,
            content=contents(model, stack),
            warnings=notes,
        )
        size = saving.save(model, destination)
    return result_of(chosen, job, destination, size, None)


def _compared(module: Any, job: Job, content: bytes | Path) -> Compared:
    """The model against the module on held-out samples."""
    assert job.data is not None
    session = open_session(content, threads=job.threads, label="quantized model")
    reference = Reference(_Trained(module, session))
    facts = job.output_facts()
    (found,) = compare_all(
        reference, [session], job.data.held_out, labels=job.data.held_out.labels, patience=(Patience(),), facts=facts
    )
    return Compared(found, reference)
