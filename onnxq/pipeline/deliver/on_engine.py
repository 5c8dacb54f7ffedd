"""The word of the engine that will run a model: which nodes it takes, how good its numbers are, how fast it is."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from onnxq.data.feeds import Feed
from onnxq.errors import EngineError, RecipeError
from onnxq.pipeline.job import Job
from onnxq.runtime.engines.engine import About, Engine, Refusal, layers_left, listing, said_of_left
from onnxq.runtime.engines.places import NODE_MODULES, WASM
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.session import open_session
from onnxq.targets import WHOLE, Target
from onnxq.verify.fidelity import Fidelity

_MODULES = {"QNNExecutionProvider": "onnxruntime_qnn"}
"""What has to be installed beside onnxruntime for a provider."""

_INSTALL = {
    "QNNExecutionProvider": "pip install onnxruntime-qnn",
    "OpenVINOExecutionProvider": (
        "pip install onnxruntime-openvino into an environment of its own, and name it with --engine-python"
    ),
}
_OPTIONS = {"OpenVINOExecutionProvider": {"device_type": "CPU"}}

_FEEDS, _SECONDS = 40, 20.0
"""Held-out samples that the engine runs, and the time after which no further one is begun: a simulator is slow."""

_NAMED = 6

_APART_DB = 3.0
"""Decibels by which an engine may be behind the CPU provider on the same integers."""


@dataclass
class EngineWord:
    """What an engine said of a model.

    Attributes:
        about: what computed; None where there is no such engine here.
        refused: nodes that it does not take, with its reasons.
        sqnr_db: of its outputs against those of the float model, the worst output's.
        sqnr_here: the same of ONNX Runtime's CPU provider on these samples.
        ms: median times on it, of the float and of the quantized model; empty where they say nothing.
        note: why there is no word, or what else the user should know.
    """

    about: About | None = None
    refused: list[Refusal] = field(default_factory=list)
    sqnr_db: float | None = None
    sqnr_here: float | None = None
    ms: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "engine": None if self.about is None else str(self.about),
            "refused": [{"node": r.node, "op_type": r.op_type, "reason": r.reason} for r in self.refused],
            "sqnr_db": self.sqnr_db,
            "sqnr_db_on_cpu": self.sqnr_here,
            "latency_ms": self.ms,
            "note": self.note,
        }


def check_python(target: Target, python: object) -> None:
    """Refuse a Python for a target whose engine cannot be had from one.

    Raises:
        RecipeError: that is so.
    """
    if python is not None and target.provider not in _INSTALL:
        raise RecipeError(f"--engine-python: target {target.name} has no engine in a Python; leave it out")


def engine_of(target: Target, python: str | None, threads: int = 1) -> Engine | str:
    """The engine that runs a target's models, or why there is none here.

    Args:
        target: names the provider.
        python: the Python that has it; None looks in this one.
        threads: threads an operator may use.

    Raises:
        EngineError: the Python that was named has no such engine.
        RecipeError: a Python was named, and the target's engine cannot be had from one.
    """
    provider = target.provider
    if provider == WASM and python is None:
        return (
            f"{target.name}: not verified on the engine itself; npm install onnxruntime-web, and name its folder with "
            f"--engine web --node-modules node_modules, or in the environment as {NODE_MODULES}"
        )
    check_python(target, python)
    if provider not in _INSTALL:
        return f"{target.name}: not verified on the engine itself, which is not here; numbers are those of the CPU"
    module = _MODULES.get(provider)
    if python is None and (module is None or importlib.util.find_spec(module) is None):
        return f"{target.name}: not verified on the engine itself, which is not installed; {_INSTALL[provider]}"
    return ProcessEngine(python or sys.executable, provider, _OPTIONS.get(provider), threads=threads, label=target.name)


def ask_engine(content: bytes | Path, job: Job, samples: Iterable[Feed], *, timed: bool) -> EngineWord:
    """Open a model on its engine, run samples, and compare with float.

    Args:
        content: the quantized model.
        job: what it was made from.
        samples: samples to run.
        timed: also measure latency, where the engine is no simulator.
    """
    named = job.engine
    engine = engine_of(job.target, job.engine_python, job.timed_threads) if named is None else named
    if isinstance(engine, str):
        return EngineWord(note=engine)
    with ExitStack() as stack:
        if named is None:
            stack.callback(engine.close)
        try:
            word = EngineWord(engine.about(), engine.refused(content))
        except EngineError as error:
            if named is not None and not named.lives:
                raise
            return EngineWord(engine.about(), note=f"the engine refuses the model: {error}")
        feeds = list(islice(samples, _FEEDS))
        if not feeds or (word.refused and job.target.coverage == WHOLE):
            return word
        found: list[list[Any]] = []
        end = time.monotonic() + _SECONDS
        while len(found) < len(feeds) and (not found or time.monotonic() < end):
            found += engine.run(content, [feeds[len(found)]])
        feeds = feeds[: len(found)]
        float_session = open_session(job.prepared.original, threads=job.threads)
        here = open_session(content, threads=job.threads)
        expected = [float_session.run(feed) for feed in feeds]
        word.sqnr_db = _worst(expected, found)
        word.sqnr_here = _worst(expected, [here.run(feed) for feed in feeds])
        if timed and named is None and job.target.coverage != WHOLE:
            times = engine.time([job.prepared.original, content], feeds[:4], job.seconds)
            word.ms = dict(zip(("float", "quantized"), map(statistics.median, times), strict=True))
    return word


def _worst(expected: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> float | None:
    outputs = [Fidelity() for _ in expected[0]]
    for want, got in zip(expected, found, strict=True):
        for fidelity, left, right in zip(outputs, want, got, strict=True):
            if hasattr(left, "dtype") and hasattr(right, "dtype"):
                fidelity.update(left, right)
    return min((f.sqnr_db for o in outputs if (f := o.result()).sqnr_db is not None), default=None)


def said_of(word: EngineWord, target: Target) -> tuple[list[str], list[str]]:
    """(failures, warnings) that follow from what an engine said."""
    if word.about is None:
        return [], [word.note]
    failures, warnings = ([word.note] if word.note else []), []
    layers = layers_left(word.refused)
    if layers and target.coverage == WHOLE:
        failures.append(
            f"{target.name}: the engine would leave {len(layers)} nodes to the CPU: {listing(layers, _NAMED, '; ')}; "
            "change the model there, or write it all the same with --force"
        )
    elif left := said_of_left("the quantized model", word.about, layers):
        warnings.append(left)
    if word.sqnr_db is not None and word.sqnr_here is not None:
        line = f"on {word.about}: {word.sqnr_db:.1f} dB against float, {word.sqnr_here:.1f} dB on the CPU provider"
        if word.ms:
            ratio = word.ms["float"] / word.ms["quantized"]
            line += f"; {word.ms['float']:.3g} ms -> {word.ms['quantized']:.3g} ms there"
            line += ", slower than float" if ratio < 1 else f", {ratio:.2f}x faster"
        warnings.append(line)
        if word.sqnr_db <= 0.0:
            failures.append(f"{line}: the error is as large as the signal there")
        elif word.sqnr_db < word.sqnr_here - _APART_DB:
            warnings.append(
                f"{target.name}: the engine computes this otherwise than the CPU does; compare the outputs of its "
                "layers on both, or take a preset with more bits"
            )
    return failures, warnings
