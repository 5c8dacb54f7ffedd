"""What a language model is timed on: the prompt in one pass, and one token with the cache of what came before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxq.data.feeds import Feed
from onnxq.runtime.engines.engine import Engine
from onnxq.runtime.session import Session
from onnxq.verify.benchmark import Timing, benchmark

TOKENS_IN, TOKENS_OUT = 128, 128
"""Tokens of the prompt of a chat, and of its answer."""


@dataclass(frozen=True)
class Phase:
    """One kind of pass.

    Attributes:
        name: `PREFILL` or `DECODE`.
        feed: what the model is given.
        passes: how many of them the workload has; 0 for one that is only reported.
        tokens: tokens of the pass.
        past: tokens in the cache.
    """

    name: str
    feed: Feed
    passes: int
    tokens: int
    past: int = 0


@dataclass(frozen=True)
class Workload:
    """Passes that together are what a model is used for.

    Attributes:
        name: one of `onnxq.recipe.values.WORKLOADS`.
        phases: each kind of pass.
    """

    name: str
    phases: Sequence[Phase]

    @property
    def first(self) -> Feed:
        """A sample that the model runs on."""
        return self.phases[0].feed

    @property
    def heaviest(self) -> Feed:
        """The pass that it has most of."""
        return max(self.phases, key=lambda phase: phase.passes).feed

    @property
    def key(self) -> str:
        """What of it a choice depends on."""
        return " ".join([self.name, *(f"{p.name}:{p.passes}:{p.tokens}:{p.past}" for p in self.phases)])

    def table(self, timings: Sequence[Timing]) -> dict[str, Any]:
        """The figures of float and of a quantized model, as plain data.

        Args:
            timings: of the float and of the quantized model, as `measure` gives them; may be empty.
        """
        rows = []
        for phase in self.phases:
            row: dict[str, Any] = {
                "name": phase.name,
                "tokens": phase.tokens,
                "past": phase.past,
                "passes": phase.passes,
            }
            known = [timing.phases[phase.name] for timing in timings if timing.phases and phase.name in timing.phases]
            if len(known) > 1:
                row |= {"float_ms": known[0]["median_ms"], "quantized_ms": known[1]["median_ms"]}
                row["latency_ratio"] = known[1]["ratio"]
            rows.append(row)
        return {"name": self.name, "phases": rows}


def measure(
    models: Mapping[str, bytes | Path | Session],
    feeds: Iterable[Feed],
    workload: Workload | None,
    *,
    seconds: float,
    threads: int | None = 1,
    engine: Engine | None = None,
) -> list[Timing]:
    """Time models in alternation: on samples, or on the passes of a workload.

    With a workload, a `Timing` is of all its passes together: the sum of each phase's times their number, and the
    ratio of these sums; ``phases`` has the figures of each.

    Args:
        models: as for `onnxq.verify.benchmark.benchmark`.
        feeds: samples; not read where there is a workload.
        workload: what the models are used for; None times the samples.
        seconds: time to spend on each model.
        threads: threads an operator may use.
        engine: as for `onnxq.verify.benchmark.benchmark`.

    Raises:
        ModelError: a model cannot be loaded or run.
        VerificationError: there is no feed or no model.
    """
    if workload is None:
        return benchmark(models, feeds, seconds=seconds, threads=threads, engine=engine)
    share = seconds / len(workload.phases)
    runs = [benchmark(models, [phase.feed], seconds=share, threads=threads, engine=engine) for phase in workload.phases]
    return [_joined([run[index] for run in runs], [run[0] for run in runs], workload) for index in range(len(models))]


def _joined(timings: Sequence[Timing], floats: Sequence[Timing], workload: Workload) -> Timing:
    """One model's phases as one timing; ``floats`` are those of the first model."""
    passes = [phase.passes for phase in workload.phases]

    def total(values: Iterable[float]) -> float:
        return sum(count * value for count, value in zip(passes, values, strict=True))

    base = total(timing.median_ms for timing in floats)
    own = total(before.median_ms / timing.ratio for before, timing in zip(floats, timings, strict=True))
    steady = total(
        before.median_ms / (timing.steady_ratio or timing.ratio) for before, timing in zip(floats, timings, strict=True)
    )
    return replace(
        timings[0],
        median_ms=total(timing.median_ms for timing in timings),
        p10=total(timing.p10 for timing in timings),
        p90=total(timing.p90 for timing in timings),
        runs=sum(timing.runs for timing in timings),
        ratio=base / own,
        steady_ratio=base / steady,
        phases={
            phase.name: {"median_ms": timing.median_ms, "ratio": timing.ratio}
            for phase, timing in zip(workload.phases, timings, strict=True)
        },
    )
