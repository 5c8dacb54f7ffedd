"""The last step before a quantized model is written: does it load, how far is it from float, how fast is it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.core import scratch
from onnxq.data.feeds import Feed
from onnxq.errors import CalibrationError, ModelError, OnnxqError, VerificationError
from onnxq.graph.reading.optimized import dequantized_layers
from onnxq.graph.reading.output_facts import OutputFact
from onnxq.pipeline.deliver.on_engine import EngineWord, ask_engine, said_of
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.job import Data, Job
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.loops.decoder_loop import AtTokens
from onnxq.runtime.session import Session, open_session
from onnxq.runtime.synthetic import described, runnable_feed
from onnxq.verify.benchmark import Timing, drifting
from onnxq.verify.budget import Limits, only_noise
from onnxq.verify.compare import Comparison, Patience, compare_all
from onnxq.verify.fidelity import apart
from onnxq.verify.language.workload import measure
from onnxq.verify.loads import check, worth_a_look
from onnxq.verify.reference import Reference

LOW_SQNR_DB = 10.0
"""Below this a warning is due: the noise is a third of the signal's amplitude."""

HIGH_LOSS = 0.05
"""Above this a warning is due as well: one decision in twenty changes."""

LEVELS_APART_DB = 6.0
"""The two optimization levels may differ by rounding, not by this much."""

_FAITHFUL_DB = 30.0
"""Above this nothing is said of the optimizations, whatever they cost."""

_TIMED_FEEDS = 4

_PLAIN_SECONDS = 0.5
"""Without optimizations large models run for many seconds; after this long no further held-out sample is run so."""

_SURE, _SURE_SECONDS = 8, 8.0
"""Held-out samples that are run so where the first ones look apart, and the seconds that this may take."""


@dataclass
class Verdict:
    """What verification found.

    Attributes:
        comparison: with the float model, all optimizations on; None where there was no sample to compare on.
        unoptimized: the same with all optimizations off.
        timings: of the float and the quantized model; empty where not measured.
        failures: why the model must not be written; one line each.
        warnings: what the user should know; one line each.
        refused: the model is not valid, does not load, or does not run.
        dequantized: layers that the runtime computes in float although their weights are on integers, by the names of
            the prepared model.
        engine: what the target's engine said; None where that is ONNX Runtime here.
    """

    comparison: Comparison | None = None
    unoptimized: Comparison | None = None
    timings: list[Timing] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: bool = False
    dequantized: tuple[str, ...] = ()
    engine: EngineWord | None = None

    @property
    def ratio(self) -> float | None:
        """Float time ÷ quantized time."""
        return self.timings[1].ratio if len(self.timings) > 1 else None


@dataclass(frozen=True)
class Compared:
    """What was found out before.

    Attributes:
        comparison: of the model with float, all optimizations on.
        reference: the float model.
    """

    comparison: Comparison
    reference: Reference


_FLOAT8_HERE = (
    "float8: compared with the optimizations of onnxruntime's CPU provider off; with them it takes float8 for "
    "integers, so run the model on the target alone"
)


def verify(quantized: bytes | Path, job: Job, *, timed: bool, compared: Compared | None = None) -> Verdict:
    """Load and run the quantized model at both optimization levels, compare it with float, and time it.

    Args:
        quantized: contents of the quantized model, or a file that has them.
        job: holds the float model, the limits, and the samples that were not used for ranges; without any the models
            are compared on one synthetic sample.
        timed: measure latency.
        compared: a comparison that need not be made again.
    """
    prepared, data, clock, threads = job.prepared, job.data, job.clock, job.threads
    verdict = Verdict()
    sessions: dict[str, Session] = {}
    with clock.step("verify"):
        feed: Feed | None = None if job.workload is None else job.workload.first
        if data is not None or feed is None:
            feed = data.first if data is not None else _made_up(prepared, job.recipe, threads, verdict)
        try:
            plain, sessions["quantized"] = _check(quantized, job, feed, verdict)
        except VerificationError as error:
            verdict.failures.append(str(error))
            verdict.refused = True
            return verdict
        if feed is not None:
            feeds = [feed] if data is None else data.held_out
            labels = data.held_out.labels if data is not None else None
            try:
                facts = job.output_facts()
                if compared is None:
                    sessions["float"] = open_session(prepared.original, threads=threads, label="float model")
                    models = [sessions["float"], sessions["quantized"], plain]
                    if job.recipe.kv_cache is not None:  # its attention gives something else where all is masked
                        models = [AtTokens(session) for session in models]
                    verdict.comparison, verdict.unoptimized = compare_all(
                        models[0],
                        models[1:],
                        feeds,
                        labels=labels,
                        patience=(Patience(), Patience(_PLAIN_SECONDS)),
                        facts=facts,
                    )
                else:
                    verdict.comparison = compared.comparison
                    (verdict.unoptimized,) = compare_all(
                        compared.reference, [plain], feeds, patience=(Patience(_PLAIN_SECONDS),), facts=facts
                    )
                if data is not None and _apart(verdict.comparison, verdict.unoptimized):
                    float_model = sessions["float"] if compared is None else compared.reference
                    if job.recipe.kv_cache is None and verdict.unoptimized.samples < data.held_out.count_feeds():
                        verdict.unoptimized = _looked_at_again(float_model, plain, data, facts)
            except CalibrationError:
                raise  # the data is at fault, not the model
            except OnnxqError as error:
                verdict.failures.append(str(error))
                return verdict
            _note(data, feed, verdict)
            judge(verdict.comparison, verdict.unoptimized, job.recipe, verdict)
        del plain
    if (job.target.provider or job.engine is not None) and not verdict.failures:
        with clock.step("engine"):
            samples: Iterable[Feed] = [] if feed is None else [feed] if data is None else data.held_out
            verdict.engine = ask_engine(quantized, job, samples, timed=timed)
            failures, said = said_of(verdict.engine, job.target)
            verdict.failures += failures
            verdict.warnings += said
    if timed and feed is not None and not verdict.failures and job.is_measured:
        with clock.step("benchmark"):
            _time(quantized, job, feed, sessions, verdict)
    return verdict


def _check(quantized: bytes | Path, job: Job, feed: Feed | None, verdict: Verdict) -> tuple[Session, Session]:
    """Load and run at both levels, and look whether the runtime computes on integers what the model says."""
    prepared, threads, original = job.prepared, job.threads, job.prepared.original
    if any(preset.float8 for preset in job.recipe.presets):
        verdict.warnings.append(_FLOAT8_HERE)
        return (_unoptimized(quantized, feed, threads),) * 2
    if job.target.provider or not worth_a_look(quantized):
        return check(quantized, feed, threads=threads, run=feed is not None, original=original)
    with scratch.folder() as folder:
        path = folder / "optimized.onnx"
        try:
            sessions = check(quantized, feed, threads=threads, run=feed is not None, original=original, save_to=path)
            slow = dequantized_layers(path)
        except (VerificationError, OSError):
            # There may be no room for that file, which is no fault of the model; what is one is found once more.
            return check(quantized, feed, threads=threads, run=feed is not None, original=original)
    if slow:
        verdict.dequantized = tuple(slow)
        slow = [prepared.sources.get(name, (name,))[0] for name in slow]
        more = f" and {len(slow) - 1} more" if len(slow) > 1 else ""
        other = "qoperator" in job.target.formats and (job.recipe.format or job.target.formats[0]) != "qoperator"
        other = other and all(preset.activation_bits == 8 for preset in job.recipe.presets)  # all that it has
        remedy = "use --format qoperator, or --exclude it" if other else "--exclude it"
        verdict.warnings.append(
            f"layer {slow[0]!r}{more}: onnxruntime computes it in float although its weight is on integers, "
            f"dequantizing it at each inference; {remedy}"
        )
    return sessions


def _unoptimized(quantized: bytes | Path, feed: Feed | None, threads: int | None) -> Session:
    """A session that computes what the file says, node by node.

    Raises:
        VerificationError: it does not load or run.
    """
    try:
        session = open_session(quantized, optimize=False, threads=threads, label="quantized model")
        if feed is not None:
            session.run(feed)
    except ModelError as error:
        raise VerificationError(str(error)) from error
    return session


def _time(quantized: bytes | Path, job: Job, feed: Feed, sessions: Mapping[str, Session], verdict: Verdict) -> None:
    prepared, data, threads = job.prepared, job.data, job.threads
    feeds = list(itertools.islice(data.held_out, _TIMED_FEEDS)) if data is not None else [feed]
    # Latency is that of one thread unless a number is given. The open sessions serve where they have no second thread:
    # several wait for each other otherwise than where they are timed.
    models: dict[str, bytes | Path | Session] = {"float": prepared.original, "quantized": quantized}
    if threads == 1 and job.engine is None:
        models = {name: sessions[name] for name in models}
    verdict.timings = measure(
        models, feeds, job.workload, seconds=job.seconds, threads=job.timed_threads, engine=job.engine
    )
    if job.engine is not None and (said := drifting(verdict.timings, job.engine.celsius)):
        verdict.warnings.append(said)
    if verdict.ratio is not None and round(verdict.ratio, 2) < 1.0:
        verdict.warnings.append(slower_than_float(verdict.timings, job.measured_on))


def slower_than_float(timings: Sequence[Timing], where: str = "this machine") -> str:
    """The warning that a model is slower than float; the timings are of float and of that model, made ``where``."""
    before, after = timings
    return (
        f"slower than float on {where}: {1 / after.ratio:.2f}x the time "
        f"({after.median_ms:.3g} ms against {before.median_ms:.3g} ms)"
    )


def _made_up(prepared: Prepared, recipe: Recipe, threads: int | None, verdict: Verdict) -> Feed | None:
    """A synthetic sample; where none runs, a model that rounds activations is not to be written unseen."""
    try:
        return runnable_feed(open_session(prepared.original, threads=threads))
    except ModelError as error:
        if PRESETS[recipe.preset].activations is not None:
            verdict.failures.append(
                f"{recipe.preset} rounds activations, and nothing was run to see what it does: {error}"
            )
        else:
            verdict.warnings.append(f"loaded, but not run: no synthetic input fits the float model ({error})")
        return None


def _note(data: Data | None, feed: Feed, verdict: Verdict) -> None:
    if data is None:
        verdict.warnings.append(
            f"compared on one synthetic sample, {described(feed)}: pass --calibration for meaningful accuracy and times"
        )
    else:
        verdict.warnings += data.held_out.notes
    if verdict.comparison is not None:
        verdict.warnings += verdict.comparison.warnings


def judge(best: Comparison, plain: Comparison, recipe: Recipe, verdict: Verdict) -> None:
    """Add what two comparisons, with the runtime's optimizations and without, say against a model to its verdict."""
    for level, comparison in (("ORT_ENABLE_ALL", best), ("ORT_DISABLE_ALL", plain)):
        bad = [name for name, output in comparison.outputs.items() if not output.finite]
        if bad:
            verdict.failures.append(f"output {bad[0]!r} is NaN or infinite at {level} where float is finite")
    for name, output in best.outputs.items():
        if output.nonfinite_float:
            verdict.warnings.append(
                f"output {name!r}: {output.nonfinite_float} elements are NaN or infinite in the float model itself and "
                "were not compared; look at the samples"
            )
    if (noise := only_noise(best)) is not None:
        verdict.failures.append(
            f"SQNR is {noise:.1f} dB at best: the error is as large as the signal; {_remedy(recipe)}"
        )
    elif best.sqnr_db is not None and best.sqnr_db < LOW_SQNR_DB:
        name = next(n for n, output in best.outputs.items() if output.sqnr_db == best.sqnr_db)
        verdict.warnings.append(f"output {name!r} has only {best.sqnr_db:.1f} dB SQNR; check accuracy before using it")
    elif best.finite and (outside := best.outside(HIGH_LOSS)):
        verdict.warnings.append(f"{outside.partition('; the budget')[0]}; check accuracy before using it")
    verdict.warnings += _apart(best, plain)
    _judge_limits(best, recipe, verdict)


def _apart(best: Comparison, plain: Comparison) -> list[str]:
    """What to say where the two levels differ by more than chance, on the samples that both saw."""
    said = []
    for name, output in best.outputs.items():
        other = plain.outputs.get(name)
        if other is None:
            continue
        worse = apart(output.levels, other.levels, LEVELS_APART_DB)
        wrong = apart(other.levels, output.levels, LEVELS_APART_DB)
        if worse is not None and worse[0] < _FAITHFUL_DB and math.isfinite(worse[1]):
            said.append(
                f"output {name!r}: onnxruntime's optimizations cost accuracy ({worse[0]:.1f} dB with, "
                f"{worse[1]:.1f} dB without); on CPUs without 8-bit dot products use --target cpu-avx2"
            )
        elif wrong is not None and wrong[0] < LOW_SQNR_DB and math.isfinite(wrong[0]):
            said.append(
                f"output {name!r}: onnxruntime computes it wrongly with its optimizations off ({wrong[0]:.1f} dB, "
                f"{wrong[1]:.1f} dB with them); leave them on"
            )
    return said


def _looked_at_again(
    float_model: Session | Reference, plain: Session, data: Data, facts: Mapping[str, OutputFact]
) -> Comparison:
    """The model without optimizations on more samples: one or two may be apart by a decision that is close to a tie."""
    feeds = itertools.islice(data.held_out, _SURE)
    return compare_all(float_model, [plain], feeds, patience=(Patience(_SURE_SECONDS),), facts=facts)[0]


def _judge_limits(best: Comparison, recipe: Recipe, verdict: Verdict) -> None:
    limits = Limits(recipe.max_drop, recipe.min_sqnr)
    if limits != Limits() and best.finite:
        verdict.failures += [f"{missed}; {_remedy(recipe)}" for missed in limits.failures(best)]


def _remedy(recipe: Recipe) -> str:
    """What makes the error smaller with such a preset."""
    preset = PRESETS[recipe.preset]
    if preset.weights == "float":
        return "try --store-only, or --exclude the layers that hurt"
    if preset.activations is None and preset.weights != "integer":
        return "try more --bits, a smaller --block-size or another --algorithm, or --exclude the layers that hurt"
    if preset.activations != "static":
        return "scales are dynamic; try --preset llm-int8 or w8a8-smooth, or --exclude the layers that hurt"
    return "try another --range, such as minmax, or --exclude the layers that hurt"
