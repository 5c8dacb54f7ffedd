"""Get the statistics that a plan needs, from samples or from a file."""

from __future__ import annotations

from collections.abc import Callable

from onnxq.core.processors import blas_threads
from onnxq.data.readers import Reader
from onnxq.errors import CalibrationError
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.pipeline.job import Job
from onnxq.plan.make_plan import Wanted
from onnxq.runtime.calibrate import Run
from onnxq.runtime.engines.shards import Gathered, gather
from onnxq.runtime.grouped_moments import GroupedMoments, in_groups
from onnxq.stats.statistics import Statistics


def collect_statistics(job: Job, wanted: Wanted, samples: Reader, warnings: list[str]) -> Statistics:
    """Run the samples once for everything; second moments that take too much memory come later, group by group.

    Args:
        job: its model, as it is now, is run.
        wanted: what the plan needs.
        samples: to run; read again for each group.
        warnings: lines are appended.

    Raises:
        CalibrationError: the data does not fit the model.
    """
    model, recipe, clock = job.prepared.model, job.recipe, job.clock
    run = Run(clock.report("calibrate"), job.threads, recipe.max_memory * 2**30, warn=warnings.append)
    groups = in_groups(wanted.second_moments, recipe.max_memory * 2**30)
    at_once = len(groups) <= 1
    if at_once or wanted.values:
        with clock.step("calibrate"), blas_threads(_largest(wanted)):
            gathered = Gathered(
                tuple(wanted.values),
                tuple(wanted.image_means),
                tuple(wanted.row_means),
                tuple(wanted.second_moments if at_once else ()),
                tuple(wanted.channel_peaks if at_once else ()),
            )
            statistics = gather(job.tasks, model, gathered, samples, run)
    else:
        statistics = Statistics(io.model_hash(model))
    if not at_once:
        statistics.later = frozenset(wanted.second_moments)
        statistics.source = _by_group(job, groups, samples, run, _largest(wanted))
        warnings.append(
            f"--max-memory {recipe.max_memory:g}: the second moments of {len(wanted.second_moments)} layer inputs do "
            f"not fit together, so the samples are run {len(groups)} times"
        )
    return statistics


def _largest(wanted: Wanted) -> int:
    """Side of the largest second moment."""
    return max(wanted.second_moments.values(), default=0)


def _by_group(job: Job, groups: list[list[str]], samples: Reader, run: Run, side: int) -> Callable[[str], Statistics]:
    source = GroupedMoments(job.prepared.model, groups, samples, run)

    def timed(name: str) -> Statistics:
        with job.clock.step("calibrate"), blas_threads(side):
            return source(name)

    return timed


def check_statistics(statistics: Statistics, model: Model, wanted: Wanted) -> None:
    """Make sure that saved statistics are of this model and complete.

    Raises:
        CalibrationError: they are not.
    """
    if statistics.model_hash and statistics.model_hash != io.model_hash(model):
        raise CalibrationError(
            "--stats: the statistics are of another model (its hash differs); run onnxq calibrate on this one"
        )
    missing = [name for name in wanted.values if name not in statistics]
    if missing:
        raise CalibrationError(
            f"--stats: value {missing[0]!r} has no statistics ({len(missing)} missing), and this recipe needs them; "
            "pass --calibration without --stats"
        )
    missing = [name for name in wanted.channel_peaks if name not in statistics.peaks]
    if missing and statistics.source is None:
        raise CalibrationError(
            f"--stats: value {missing[0]!r} has no channel magnitudes ({len(missing)} missing), and this recipe needs "
            "them; run onnxq calibrate --moments, or pass --calibration without --stats"
        )
    missing = [name for name in wanted.second_moments if name not in statistics.moments]
    if missing and statistics.source is None:
        raise CalibrationError(
            f"--stats: value {missing[0]!r} has no second moment ({len(missing)} missing), and this recipe needs them; "
            "run onnxq calibrate --moments, or pass --calibration without --stats"
        )
