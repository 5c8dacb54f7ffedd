"""A job: what is to be quantized, with what, and what is known of the model's values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.core import scratch
from onnxq.core.mapped import Spill
from onnxq.core.spec import QTensor
from onnxq.core.tasks import Tasks
from onnxq.data.carried_states import Recurrence
from onnxq.data.feeds import Feed
from onnxq.data.readers import Reader, open_reader, split
from onnxq.data.text.text_samples import as_samples
from onnxq.errors import ModelError
from onnxq.graph.attention.cache_ports import cache_sizes
from onnxq.graph.files import io, saving
from onnxq.graph.files.io import Source
from onnxq.graph.reading.output_facts import OutputFact, output_facts
from onnxq.graph.types import Model
from onnxq.graph.views.outputs import value_names
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Prepared, is_path
from onnxq.plan.spread_weights import Spread
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.probe import probe
from onnxq.runtime.session import Session, open_session
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target
from onnxq.verify.language.workload import Workload


@dataclass
class Data:
    """The samples of one quantization.

    Attributes:
        calibration: samples for ranges.
        held_out: samples for verification, others than those for ranges where there are at least two.
        first: the first sample.
        every: all samples.
        seen: what `probe_shapes` found on the first sample, by the names of a model's values.
    """

    calibration: Reader
    held_out: Reader
    first: Feed
    every: Reader
    seen: dict[tuple[str, ...], Shapes] = field(default_factory=dict)


@dataclass
class Shapes:
    """Shape and element type of each value in one sample."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


@dataclass
class Job:
    """What is to be quantized, with what.

    Attributes:
        prepared: the float model.
        recipe: how to quantize.
        target: what the runtime can do, and how fast.
        data: samples; None where there are none.
        statistics: ranges of an earlier calibration, used instead of a new one.
        clock: takes the time.
        stack: holds temporary files of models above 2 GB.
        threads: threads an operator may use; None lets the runtime choose, and measures with one.
        seconds: time to spend on measuring each model.
        budget: seconds that trying several models may take.
        engine_python: the Python that has the target's engine; None looks in this one.
        spill: where quantized weights are put of a model that is quantized a layer at a time; None for all others.
        engine: what the user named to run and time models on; None where that is this process.
        workload: what a language model with a cache is timed on; None times the samples.
        tasks: runs pure tasks on other machines; None where all is done here.
        layers: folder where layers and blocks that are done stay until the model is written, so that a run that was
            killed goes on; None keeps none.
        learning_state: file that learning which was interrupted goes on from; None keeps none.
        rounded: weights that were rounded by how they are used, by (node, input), where that was done before; None
            where it was not.
        rounding: multiplications that this may take; layers that cost more stay rounded to nearest.
        learns_until: `time.monotonic` at which learning has to be over, where a search promised its user an end;
            infinity where only computing counts.
    """

    prepared: Prepared
    recipe: Recipe
    target: Target
    data: Data | None = None
    statistics: Statistics | None = None
    clock: Clock = field(default_factory=lambda: Clock(None))
    stack: ExitStack = field(default_factory=ExitStack)
    threads: int | None = None
    seconds: float = 0.4
    budget: float = 120.0
    engine_python: str | None = None
    workload: Workload | None = None
    spill: Spill | None = None
    engine: ProcessEngine | None = None
    learning_state: Path | None = None
    tasks: Tasks | None = None
    layers: Path | None = None
    rounded: Mapping[tuple[str, int], QTensor] | None = None
    rounding: float = math.inf
    learns_until: float = math.inf

    @property
    def spread(self) -> Spread | None:
        """What quantizes packed weights elsewhere."""
        return None if self.tasks is None else Spread(self.tasks, self.layers)

    @property
    def timed_threads(self) -> int:
        """Threads of the sessions that are timed."""
        return self.threads or 1

    def output_facts(self) -> dict[str, OutputFact]:
        """What the float model says of its outputs: every comparison of a job's models is made by it."""
        return output_facts(self.prepared.model, None if self.data is None else self.data.every.states)

    @property
    def is_measured(self) -> bool:
        """Whether times can be had of what will run the model: this process, or an engine that was named."""
        return self.engine is not None or self.target.is_here

    @property
    def measured_on(self) -> str:
        """What times are of, in words."""
        return "this machine" if self.engine is None else str(self.engine.about())


def open_samples(
    calibration: object,
    prepared: Prepared,
    *,
    batch_size: int | None = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Reader:
    """Open samples of any form; the float model gives the states that they lack.

    Args:
        calibration: as for `onnxq.data.readers.open_reader`.
        prepared: the float model, of which the user's own form is run.
        batch_size: as for `onnxq.data.readers.open_reader`.
        states: pairs of output and input that the user named.
        threads: threads an operator may use.

    Raises:
        CalibrationError: the data does not fit the model.
        RecipeError: there are no such states.
    """
    session: list[Session] = []

    def run(feed: Feed, outputs: Sequence[str]) -> list[object]:
        if not session:
            session.append(open_session(prepared.original, threads=threads, label=prepared.label))
        return session[0].run(feed, outputs)

    recurrence = Recurrence(prepared.outputs, run, states or {})
    sizes = cache_sizes(prepared.model)
    known = {s.name: (*s.shape[:3], sizes[s.name]) for s in prepared.inputs if s.name in sizes and len(s.shape) == 4}
    inputs = [replace(spec, shape=known.get(spec.name, spec.shape)) for spec in prepared.inputs]
    return open_reader(calibration, inputs, batch_size=batch_size, recurrence=recurrence)


def open_data(
    calibration: object,
    prepared: Prepared,
    batch_size: int | None = None,
    *,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Data:
    """Open calibration data and hold out the last fifth; arguments and errors as of `open_samples`."""
    reader = open_samples(calibration, prepared, batch_size=batch_size, states=states, threads=threads)
    used, held_out = split(reader)
    return Data(used, held_out, next(iter(used)), reader)


def probe_shapes(job: Job, model: Model, statistics: Statistics | None = None) -> Shapes:
    """Shapes and types of all values of a model: from a run on one sample of the job's, else from saved statistics."""
    data = job.data if job.spill is None else None  # the whole of a large model is not run
    if data is not None:
        names = tuple(value_names(model))
        if names not in data.seen:  # several recipes may be tried on one model
            found = probe(model, data.first, threads=job.threads)
            data.seen[names] = Shapes(
                {name: info.shape for name, info in found.items()},
                {name: str(info.dtype) for name, info in found.items()},
            )
        return data.seen[names]
    if statistics is not None:
        known = {name: statistic.shape for name, statistic in statistics.items() if statistic.shape is not None}
        return Shapes(known, dict.fromkeys(known, "float32"))
    return Shapes({}, {})


def contents(model: Model, stack: ExitStack) -> bytes | Path:
    """The model as the runtime is given it: its bytes, or above 2 GB a temporary file."""
    try:
        return io.to_bytes(model)
    except ModelError:
        path = stack.enter_context(scratch.folder()) / "model.onnx"
        saving.save(model, path)
        return path


def with_tokens(calibration: object, source: Source, tokenizer: str | os.PathLike[str] | None = None) -> object:
    """Calibration data as it is, but a text in tokens; errors as of `onnxq.data.text.text_samples.as_samples`."""
    beside = Path(source) if is_path(source) else None
    return as_samples(calibration, beside, None if tokenizer is None else Path(tokenizer))


def find_calibration(source: Source) -> Path | None:
    """``calibration_data/<stem>.npz``, or a folder ``<stem>``, beside the model's folder or in the working folder."""
    if not is_path(source):
        return None
    path = Path(source)
    places = [path.resolve().parent.parent, path.resolve().parent, Path.cwd()]
    for place in places:
        for candidate in (place / "calibration_data" / f"{path.stem}.npz", place / "calibration_data" / path.stem):
            if candidate.is_file() or (candidate.is_dir() and any(candidate.glob("*.np[zy]"))):
                return candidate
    return None
