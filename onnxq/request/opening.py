"""From a request to a job: the model, the samples, the statistics, and where the result goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.data.text.text_samples import TextSamples
from onnxq.errors import RecipeError
from onnxq.graph.files import saving
from onnxq.pipeline.caches.grouping import group_attention
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.deliver.asked_of_target import (
    NO_FASTER_4,
    SAID_OF_16,
    check_float_outputs,
    check_operators,
    check_recipe,
    check_shapes,
    default_preset,
)
from onnxq.pipeline.deliver.on_engine import check_python, engine_of
from onnxq.pipeline.float_model import Prepared, Source, Wishes, is_path, load_and_prepare
from onnxq.pipeline.job import Job, find_calibration, open_data, with_tokens
from onnxq.pipeline.large.too_large import for_memory, is_large, leave_unconfirmed, spill_beside
from onnxq.pipeline.learned.finetuned import rounded_in_order
from onnxq.pipeline.planning import settle_preset
from onnxq.pipeline.trained_model import check_training, take_training, wants_training
from onnxq.pipeline.transformation import unused_statistics
from onnxq.plan.weights.weight_only import needed_opset
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.request.run_options import Options
from onnxq.request.used_as import UsedAs, said_of_texts, texts_of, workload_of
from onnxq.runtime.engines.installed import as_installed
from onnxq.runtime.engines.places import RAY, WASM, WEB, RunsOn, spread_over, start, web_is_here
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target, target_named


@dataclass
class Opened:
    """A request that was found to make sense.

    Attributes:
        job: what is to be quantized, with what.
        destination: the file of the result; None for one in memory.
        used: how a language model is used; None for other models.
    """

    job: Job
    destination: Path | None
    used: UsedAs | None


def open_job(
    given: Recipe,
    model: Source,
    output: str | os.PathLike[str] | None,
    options: Options,
    clock: Clock,
    stack: ExitStack,
) -> Opened:
    """Read everything that is read before the work starts, and refuse what cannot be done.

    Args:
        given: the recipe.
        model: the float model.
        output: file of the result; None stands for one beside a model that is a file.
        options: the options of the run.
        clock: takes the time.
        stack: closes what was opened.

    Raises:
        OnnxqError: the model, the samples, the recipe or the options cannot be used, or not together.
    """
    target = as_installed(target_named(given.target))
    check_recipe(given, target)
    engine = _engine(options, given, target, stack)
    saved = _statistics(given, options)
    prepared = _float_model(given, model, target, clock, has_statistics=saved is not None)
    check_shapes(prepared.inputs, target)
    check_float_outputs(given, prepared.model)
    if not options.force:
        check_operators(prepared.model, target)
    job = Job(prepared, given, target, None, saved, clock, stack, options.threads, options.seconds, options.budget)
    job.engine = engine
    job.engine_python = None if options.engine_python is None else os.fspath(options.engine_python)
    source, found = _samples(job, model, options)
    alone = saved is None and is_path(model) and engine is None
    large = alone and _is_kept_on_disk(job)
    _ready_model(job)
    destination = _destination(model, output, given.preset, options.inputs(model, source))
    _settle_recipe(job, measured=options.benchmark)
    if options.runs_on is not None and options.runs_on.engine == RAY:
        job.tasks = spread_over(options.runs_on, stack)
    if destination is not None:
        kept_as = options.kept_as or destination
        job.layers = Path(f"{kept_as}.layers")
        job.learning_state = Path(f"{kept_as}.finetune") if given.finetune else None
    if large and destination is not None:
        job.spill = spill_beside(destination, stack)
        return Opened(job, destination, options.used)
    return Opened(job, destination, _weighed_as(job, found, options))


def _statistics(given: Recipe, options: Options) -> Statistics | None:
    """Statistics of an earlier calibration, where the user gives them."""
    saved = options.statistics
    if given.fuse is not None and saved is not None:
        raise RecipeError(
            "--fuse: saved statistics are of the model before fusion and do not go with it; pass --calibration, or "
            "fuse first (python -m onnxruntime.transformers.optimizer) and calibrate the result"
        )
    return Statistics.load(Path(saved)) if isinstance(saved, str | os.PathLike) else saved


def _float_model(given: Recipe, model: Source, target: Target, clock: Clock, *, has_statistics: bool) -> Prepared:
    # Kernels that unpack few bits take float16; statistics are of float32.
    halves = not has_statistics and given.half is None and _packs_few_bits(given)
    wishes = Wishes(needed_opset(given), halves, given.dimensions, given.opset, given.drop_tail)
    return load_and_prepare(model, target, clock, wishes)


def _samples(job: Job, model: Source, options: Options) -> tuple[object, object]:
    """Open the samples of a job.

    Returns:
        They as they were given or found, and as they were opened, a text in tokens; None where there are none.
    """
    source = found = options.calibration
    if options.generate is None:
        source = find_calibration(model) if source is None else source
        found = with_tokens(source, model, options.tokenizer)
    else:
        with_tokens(None, model, options.tokenizer)  # a tokenizer has nothing to read
        with job.clock.step("generate"):
            written = texts_of(job.prepared, options.generate, job.recipe.seed, options.threads)
        job.prepared.notes.append(said_of_texts(written))
        source, found = None, TextSamples(written)
    if found is not None:
        job.data = open_data(found, job.prepared, states=options.states, threads=options.threads)
    elif options.states:
        raise RecipeError("--state: there are no samples to carry states through; pass --calibration")
    return source, found


def _is_kept_on_disk(job: Job) -> bool:
    """Whether the model is quantized a layer at a time; recipe and samples are fitted to the memory that is free."""
    if job.data is not None:
        job.recipe, of_use = for_memory(job.recipe, job.target, job.prepared)
        job.data = job.data if of_use else None
    large = is_large(job.recipe, job.target, job.prepared, samples=job.data is not None)
    if large:
        leave_unconfirmed(job.prepared)
    return large


def _ready_model(job: Job) -> None:
    """Confirm the prepared model, and bring its caches and what it was trained with into the form that is needed."""
    prepared, given = job.prepared, job.recipe
    confirm(prepared, job.data.first if job.data is not None else None, job.clock, job.threads)
    if given.kv_cache is not None:
        with job.clock.step("caches"):
            group_attention(prepared, job.data, given.kv_cache, job.threads)
    if wants_training(given):
        take_training(prepared, job.target)
    prepared.notes += _said_of_versions(prepared, given, job.target)
    if job.statistics is not None and job.data is not None:
        prepared.notes += unused_statistics(given)


def _settle_recipe(job: Job, *, measured: bool) -> None:
    """Fill in what the user left open, by what there is; say what will disappoint.

    Args:
        job: its recipe is settled in place.
        measured: models may be timed; else "auto" cannot compare them and is settled as well.
    """
    given, saved = job.recipe, job.statistics
    if given.preset == "auto" and not job.is_measured:
        given = given.override(preset=default_preset(job.target, job.data is not None or saved is not None))
    wide = any(16 in (rule.bits, rule.convert) for rule in given.values)
    if (wide or any(preset.activation_bits == 16 for preset in given.presets)) and not job.target.provider:
        job.prepared.notes.append(SAID_OF_16)
    if any(preset.activation_bits == 4 for preset in given.presets):
        job.prepared.notes.append(NO_FASTER_4)
    if job.prepared.training is not None:
        given = given.override(preset="w8a8") if given.preset == "auto" else given
        check_training(given)
    if given.preset != "auto" or not measured:
        has_moments = bool(saved.moments) if saved is not None else job.data is not None
        has_ranges = job.data is not None or saved is not None or job.prepared.training is not None
        settled = settle_preset(given, has_ranges, has_moments)
        given = rounded_in_order(settled, given) if job.data is not None and saved is None else settled
    job.recipe = given


def _weighed_as(job: Job, found: object, options: Options) -> UsedAs | None:
    """How a language model is used; what it is timed on goes into the job, where it is timed or has texts."""
    rows = found.rows if isinstance(found, TextSamples) else ()
    if not (options.benchmark or options.workload is not None or rows):
        return options.used
    job.workload, used = workload_of(options.workload, options.used, job.prepared, rows, options.threads)
    return used


def _engine(options: Options, given: Recipe, target: Target, stack: ExitStack) -> ProcessEngine | None:
    """What the user wants models to be run and timed on; None where that is this process, or the target's own."""
    asked = options.runs_on
    if asked is None or asked == RunsOn() or asked.engine == RAY:
        check_python(target, options.engine_python)
        if options.engine_python is not None:  # an engine that is not there is said before the work, not after it
            found = engine_of(target, os.fspath(options.engine_python))
            if not isinstance(found, str):
                found.close()
        if target.provider != WASM or not web_is_here() or given.kv_cache is not None:
            return None
        asked = RunsOn(engine=WEB)
    elif options.engine_python is not None and asked.python is None:
        asked = replace(asked, python=options.engine_python)
    if given.kv_cache is not None:
        raise RecipeError("--kv-cache: a model with caches is judged in a loop here; leave the engine out")
    engine = start(asked, options.threads, target.provider if target.provider.endswith("ExecutionProvider") else "")
    stack.callback(engine.close)
    return engine


def _said_of_versions(prepared: Prepared, recipe: Recipe, target: Target) -> list[str]:
    """That the file needs a newer runtime than the user's did, for the form of weights or types that was chosen."""
    needed = needed_opset(recipe)
    (opset_before, ir_before), (opset, ir_version) = prepared.versions
    if needed <= target.min_opset or opset_before >= opset:
        return []
    also = f", and from IR version {ir_before} to {ir_version}" if ir_version > ir_before else ""
    raised = f"the model was raised from {opset_before} to {opset}{also}"
    if any(preset.float8 for preset in recipe.presets):
        return [f"float8 needs operator set {needed}: {raised}"]
    return [
        f"this form of weights needs operator set {needed}: {raised}; --preset w4 without --format qdq needs neither"
    ]


def _packs_few_bits(recipe: Recipe) -> bool:
    """Whether weights of fewer than 8 bits are packed and nothing else is done."""
    presets = [PRESETS[name] for name in (recipe.preset, *(rule.preset for rule in recipe.rules if rule.preset))]
    return all(preset.weights == "blocks" and (recipe.bits or preset.bits) < 8 for preset in presets)


def _destination(
    model: Source, output: str | os.PathLike[str] | None, preset: str, inputs: Sequence[object]
) -> Path | None:
    """Where the result goes; said before the work starts if it cannot go there."""
    if output is None and not is_path(model):
        return None
    path = Path(str(model)).with_suffix(f".{preset}.onnx") if output is None else Path(output)
    saving.check_destination(path, inputs)
    return path


def search_state(model: Source, destination: Path | None, options: Options) -> Path | None:
    """The file of a search; None for a model in memory.

    Raises:
        RecipeError: it cannot be written, or is a file of the run.
    """
    if options.search_state is None:
        return None if destination is None else Path(f"{destination}.search.json")
    path = Path(options.search_state)
    saving.check_destination(path, options.inputs(model, find_calibration(model)))
    if destination is not None and os.path.realpath(path) == os.path.realpath(destination):
        raise RecipeError(f"--search-state {path}: is the output itself; name another file")
    return path
