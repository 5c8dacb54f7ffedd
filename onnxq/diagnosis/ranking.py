"""Which nodes hurt: the error that each quantized node adds on its own, what arrives at it, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.output_errors import FEEDS, measure_outputs
from onnxq.diagnosis.value_errors import ErrorSum, SeenRange, as_real, some
from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.reading.optimized import has_float8
from onnxq.graph.views.apart.isolated_units import Isolated, Unit
from onnxq.graph.views.outputs import Model, with_outputs
from onnxq.graph.walk import all_values
from onnxq.plan.activations.read_ranges import EVERYTHING, told_apart
from onnxq.runtime.engines.engine import Engine
from onnxq.runtime.engines.engine_session import EngineSession
from onnxq.runtime.session import Session, open_session, session_of

_MOST = 0.7
"""Share of the damage that the worst nodes are to account for."""

_BAD_DB = 15.0
"""A node that adds more noise than this on its own is one of the worst whatever the others do."""

_CLIPS = 1e-3
"""Share of clipped elements from which clipping is worth a word."""

_LARGE_ONES_DB = 12.0
"""Where the output is so much worse than the weight, the weights that the inputs ask for are the badly rounded ones."""

_WIDE = 4.0
"""A range so many times wider than what was seen wastes two bits."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """One value in one sample.

    Attributes:
        node: the quantized node that computes it.
        value: its name in the float model.
        floating: of the float model.
        own: where this node alone is quantized, and is given float inputs.
        arriving: of the whole quantized model, as real numbers; None where the model does not show it.
    """

    node: str
    value: str
    floating: Array
    own: Array
    arriving: Array | None


Keep = Callable[[int, Sequence[Tensors]], None]
"""Called with the number of the sample and its arrays, which it may not keep."""


@dataclass
class Diagnosis:
    """All quantized nodes, the worst first.

    Attributes:
        findings: ordered by the damage at the model's outputs where that was measured, then by own error.
        outputs: SQNR of each real-valued output of the whole quantized model.
        samples: feeds that were run.
        warnings: one line each.
    """

    findings: list[Finding]
    outputs: dict[str, float]
    samples: int
    warnings: list[str] = field(default_factory=list)

    @property
    def worst(self) -> list[Finding]:
        """The few nodes that do most of the damage: at least one, at most a tenth of all and those below 15 dB."""
        limit = max(1, len(self.findings) // 10)
        noise = [_noise(finding) for finding in self.findings]
        total, done = sum(noise), 0.0
        chosen: list[Finding] = []
        for finding, part in zip(self.findings, noise, strict=True):
            if (done < _MOST * total and len(chosen) < limit) or finding.own_sqnr_db < _BAD_DB:
                chosen.append(finding)
            done += part
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "nodes": [asdict(finding) for finding in self.findings],
            "outputs": self.outputs,
            "samples": self.samples,
            "warnings": self.warnings,
        }


def _noise(finding: Finding) -> float:
    """Noise over signal at the model's outputs, where measured."""
    ratio = finding.output_sqnr_db if finding.output_sqnr_db is not None else math.inf
    return 0.0 if ratio == math.inf else min(10.0 ** (-ratio / 10.0), 1e6)


@dataclass(frozen=True)
class Look:
    """How a quantized model is looked at.

    Attributes:
        keep: called with the arrays of each sample; None for nothing.
        engine: what runs quantized nodes and the quantized model; None runs them here.
    """

    keep: Keep | None = None
    engine: Engine | None = None


def diagnose(
    float_model: Model,
    isolated: Isolated,
    feeds: Iterable[Feed],
    *,
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    total: int | None = None,
    look: Look | None = None,
) -> Diagnosis:
    """Run the float model, each quantized node on its own and the whole quantized model, one sample in memory.

    Args:
        float_model: the reference; the model that ``isolated`` was made with.
        isolated: the quantized model, taken apart.
        feeds: samples.
        threads: threads an operator may use.
        progress: called with samples done and their number.
        total: number of samples, where it is known.
        look: what runs quantized nodes and the quantized model, and what is kept of them; None runs them here. The
            float model runs here.

    Raises:
        EngineError: the engine does not run them, or has gone.
        ModelError: a model cannot be loaded or run, or nothing in it is quantized.
    """
    units = isolated.units
    if not units:
        raise ModelError(
            "diagnose: no quantized node has a counterpart in the float model; pass a model and its own quantized form"
        )
    look = look or Look()
    work = _Work(float_model, isolated, threads, look.engine)
    samples = 0
    first: list[Feed] = []
    for feed in feeds:
        kept = work.add(feed, look.keep is not None)
        if look.keep is not None:
            look.keep(samples, kept)
        samples += 1
        if len(first) < FEEDS:
            first.append({name: np.array(array) for name, array in feed.items()})
        if progress is not None:
            progress(samples, total)
    findings = [work.finding(unit) for unit in units]
    report = partial(progress, samples, total) if progress is not None else None
    measure_outputs(float_model, isolated, work.run_apart, findings, first, samples, threads, report)
    return Diagnosis(ranked(findings), work.output_ratios(), samples)


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; those of equal error as they came."""
    return [findings[i] for i in sorted(range(len(findings)), key=lambda i: _rank(findings[i], i))]


def _rank(finding: Finding, index: int) -> tuple[bool, float, int]:
    if finding.output_sqnr_db is not None:
        return False, finding.output_sqnr_db, index
    return True, finding.own_sqnr_db, index


def _opened(model: Model, label: str, threads: int | None, engine: Engine | None) -> Session:
    if engine is None:
        return session_of(model, optimize=not has_float8(model), threads=threads, label=label)
    return EngineSession(open_session(io.to_bytes(model), threads=threads, label=label), engine)


class _Work:
    """The three sessions and what was summed up."""

    def __init__(self, float_model: Model, isolated: Isolated, threads: int | None, engine: Engine | None) -> None:
        self.isolated, self.threads = isolated, threads
        units = isolated.units
        outputs = [value.name or "" for value in float_model.graph.outputs]
        wanted = list(dict.fromkeys([*isolated.sources, *(unit.value for unit in units), *outputs]))
        augmented = with_outputs(float_model, wanted)
        self._fetch = augmented.outputs
        self.reference = session_of(augmented.model, threads=threads, label="float model")
        self.apart = _opened(isolated.model, "quantized nodes, each on its own", threads, engine)
        arriving = with_outputs(isolated.quantized, [*(unit.arriving for unit in units), *outputs])
        self._arriving = arriving.outputs
        self.whole = _opened(arriving.model, "quantized model", threads, engine)
        self._outputs = [name for name in outputs if name in arriving.outputs]
        self._inputs = {spec.name for spec in self.apart.input_specs}
        self._own = {unit.output: ErrorSum() for unit in units}
        self._arrived = {unit.output: ErrorSum() for unit in units}
        self._ranges = {unit.output: SeenRange(unit.grid) for unit in units if unit.grid is not None}
        self._ends = {name: ErrorSum() for name in self._outputs}
        read = {value.name: told_apart(value) for value in all_values(float_model.graph)}
        self._read = {
            unit.value: bounds for unit in units if (bounds := read.get(unit.value, EVERYTHING)) != EVERYTHING
        }

    def _as_read(self, name: str, array: Array) -> Array:
        """A value as far as those that read it in the float model tell its elements apart."""
        return np.clip(array, *self._read[name]) if name in self._read else array

    def values(self, feed: Feed) -> dict[str, Array]:
        """The float values of one sample."""
        return {**feed, **dict(zip(self._fetch, self.reference.run(feed, self._fetch), strict=True))}

    def run_apart(self, feed: Feed, values: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Quantized forms of values, each from float inputs."""
        given = {name: values[source] for source, name in self.isolated.sources.items() if name in self._inputs}
        given |= {name: array for name, array in feed.items() if name in self._inputs}
        return self.apart.run(given, outputs)

    def add(self, feed: Feed, kept: bool = False) -> list[Tensors]:
        """Run one sample; the arrays of each unit are given back where they are wanted."""
        values = self.values(feed)
        units = self.isolated.units
        apart = self.run_apart(feed, values, [u.output for u in units])
        for unit, got in zip(units, apart, strict=True):
            seen = self._as_read(unit.value, values[unit.value])
            if seen.shape == got.shape:
                self._own[unit.output].add(some(seen), some(self._as_read(unit.value, got)))
            if unit.output in self._ranges:
                self._ranges[unit.output].add(seen)
        arrived = dict(zip(self._arriving, self.whole.run(feed, self._arriving), strict=True))
        for unit in units:
            array = arrived.get(unit.arriving)
            if array is not None and array.shape == values[unit.value].shape:
                seen, got = some(values[unit.value]), as_real(some(array), unit)
                self._arrived[unit.output].add(self._as_read(unit.value, seen), self._as_read(unit.value, got))
        for name in self._outputs:
            if values[name].dtype.kind == "f":
                self._ends[name].add(values[name].ravel(), arrived[name].ravel())
        if not kept:
            return []
        whole = [None if (found := arrived.get(u.arriving)) is None else as_real(found, u) for u in units]
        return [
            Tensors(unit.name, unit.value, values[unit.value], own, there)
            for unit, own, there in zip(units, apart, whole, strict=True)
        ]

    def output_ratios(self) -> dict[str, float]:
        """SQNR by output."""
        return {name: error.db for name, error in self._ends.items() if error.signal or error.noise}

    def finding(self, unit: Unit) -> Finding:
        """What was found of one node, but for its effect on the outputs."""
        own = self._own[unit.output]
        weight = None
        if unit.weight is not None:
            error = ErrorSum()
            error.add(*(array.ravel() for array in unit.weight))
            weight = error.db
        found = Finding(unit.name, unit.op_type, unit.value, own.db, weight_sqnr_db=weight)
        if unit.arriving in self._arriving:
            found.arriving_sqnr_db = self._arrived[unit.output].db
        seen = self._ranges.get(unit.output)
        if seen is not None and unit.grid is not None and seen.count:
            found.low, found.high = unit.grid.low, unit.grid.high
            found.seen_low, found.seen_high = seen.low, seen.high
            found.clipped = seen.clipped / seen.count
        found.cause, found.remedy = _cause(own, seen, found, unit.rounds_inputs)
        return found


def _cause(own: ErrorSum, seen: SeenRange | None, found: Finding, rounds_inputs: bool) -> tuple[str, dict[str, Any]]:
    """Where most of a node's own error comes from, and the keys of a rule that helps."""
    leave = {"quantize": False}
    if seen is not None and seen.count and own.noise > 0:
        if seen.clip_noise > 0.5 * own.noise:
            share = f"{100 * found.clipped:.2g} % of its output" if found.clipped >= _CLIPS else "a few large elements"
            return f"its range clips {share}", {"range": "minmax"}
        width = (found.high or 0.0) - (found.low or 0.0)
        used = max(seen.high, 0.0) - min(seen.low, 0.0)
        if seen.rounding_noise > 0.5 * own.noise:
            if used > 0 and width > _WIDE * used:
                return f"its range is {width / used:.0f} times wider than its output", {"range": "mse"}
            return "8 bits are few for how its output is spread", leave
    if found.weight_sqnr_db is not None and (not rounds_inputs or found.weight_sqnr_db < found.own_sqnr_db + 6.0):
        if found.weight_sqnr_db > found.own_sqnr_db + _LARGE_ONES_DB:
            return "rounding its weights: large ones, which matter little, leave the others few levels", leave
        return f"rounding its weights ({found.weight_sqnr_db:.1f} dB)", leave
    return ("rounding its inputs and weights" if rounds_inputs else "rounding its weights"), leave
