"""``calibrate``: statistics of every value that a recipe for the target could need, saved for later."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.processors import blas_threads
from onnxq.core.tasks import Tasks
from onnxq.errors import RecipeError
from onnxq.graph.files.io import Source
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Data, Job, open_samples, probe_shapes
from onnxq.pipeline.trained_model import take_training
from onnxq.plan.make_plan import wanted_by_any
from onnxq.recipe.recipe import Recipe
from onnxq.report.results import CalibrateResult
from onnxq.runtime.calibrate import Run
from onnxq.runtime.engines.shards import Gathered, gather
from onnxq.runtime.session import CPU
from onnxq.stats.statistics import Statistics
from onnxq.targets.target import Target


@dataclass(frozen=True)
class CalibrationOptions:
    """What a user can say of a calibration; each is documented at `onnxq.calibrate`."""

    target: Target
    threads: int | None = None
    provider: str = CPU
    resume: bool = False
    moments: bool = False
    states: Mapping[str, str] | None = None
    tasks: Tasks | None = None


def calibrate_model(
    model: Source, path: Path, samples: object, options: CalibrationOptions, clock: Clock
) -> CalibrateResult:
    """Prepare a model, run the samples and save the statistics.

    Args:
        model: the float model.
        path: the ``.npz`` file to write.
        samples: calibration data in any form; None is an error.
        options: of the run.
        clock: takes the time.

    Raises:
        ModelError: the model cannot be used.
        CalibrationError: data that does not fit it.
        RecipeError: there is no data, or nothing to calibrate.
    """
    start = Statistics.load(path) if options.resume and path.exists() else None
    prepared = load_and_prepare(model, options.target, clock)
    if samples is None:
        raise RecipeError("--calibration: no data was given and no calibration_data/<model stem>.npz was found")
    reader = open_samples(samples, prepared, states=options.states, threads=options.threads)
    first = next(iter(reader))
    confirm(prepared, first, clock, options.threads)
    take_training(prepared, options.target)
    job = Job(prepared, Recipe(), options.target, Data(reader, reader, first, reader), threads=options.threads)
    seen = probe_shapes(job, prepared.model)
    wanted = wanted_by_any(prepared.model, options.target, seen.dtypes, prepared.sources, moments=options.moments)
    if not wanted.values and not wanted.second_moments:
        raise RecipeError("onnxq calibrate: no value of this model could be quantized; onnxq inspect says why")
    warnings: list[str] = [*prepared.notes, *reader.notes]

    def save(partial: Statistics) -> None:
        prepared.check_unchanged()
        partial.save(path)

    gathered = Gathered(
        tuple(wanted.values),
        tuple(wanted.image_means),
        tuple(wanted.row_means),
        tuple(wanted.second_moments),
        tuple(wanted.channel_peaks),
    )
    started = time.perf_counter()
    with blas_threads(max(wanted.second_moments.values(), default=0)):
        statistics = gather(
            options.tasks,
            prepared.model,
            gathered,
            reader,
            Run(
                progress=clock.report("calibrate"),
                threads=options.threads,
                provider=options.provider,
                start=start,
                checkpoint=save if options.resume else None,
                warn=warnings.append,
            ),
        )
    elapsed = time.perf_counter() - started
    bad = {n: s.nan_count + s.inf_count for n, s in statistics.items() if s.nan_count + s.inf_count}
    warnings += [f"value {n!r}: {count} NaN or infinite elements were left out" for n, count in bad.items()]
    save(statistics)
    return CalibrateResult(path, elapsed, statistics.samples, len(statistics), warnings, statistics)
