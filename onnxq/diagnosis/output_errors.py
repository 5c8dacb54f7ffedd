"""What the error of one node does to the outputs of the model: the rest stays float."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.value_errors import ErrorSum
from onnxq.graph.types import FLOAT32, Model
from onnxq.graph.views.apart.isolated_units import Isolated
from onnxq.graph.views.outputs import weight_bytes, with_offsets, with_outputs
from onnxq.graph.views.tail import tail
from onnxq.runtime.session import Session, session_of

RunApart = Callable[[Feed, Mapping[str, Array], Sequence[str]], list[Array]]
"""Quantized forms of values from float ones: (sample, float values by name, outputs of the isolated model)."""

FEEDS = 8
"""Samples on which the effect on the outputs is measured: how far an error spreads is a matter of the sample."""

_SECONDS = 12.0
"""From this time on no further node is looked at; those with the largest errors of their own come first."""

_MOST_DB = 120.0

_LARGE = 32 << 20
"""Bytes of weights from which a model is large: a few nodes alone are measured, on few samples."""

_SUSPECTS, _FEWER, _PER_SUSPECT, _FEW_FEEDS = 6, 2, 16, 2
"""Of a large model: nodes with the largest errors of their own, fewer where there is but one for so many samples, and
the samples. Each node takes a session there, of what lies behind it."""


def measure_outputs(
    float_model: Model,
    isolated: Isolated,
    run_apart: RunApart,
    findings: Sequence[Finding],
    feeds: Sequence[Feed],
    samples: int,
    threads: int | None,
    report: Callable[[], None] | None,
) -> None:
    """Let nodes, one at a time, be the only quantized one, and look at the outputs of the float model.

    Args:
        float_model: the reference.
        isolated: the quantized model, taken apart.
        run_apart: gives the quantized forms of values.
        findings: of each unit, in their order; their ``output_sqnr_db`` is filled in.
        feeds: at most `FEEDS` samples.
        samples: that were looked at otherwise.
        threads: threads an operator may use.
        report: called now and then, that time goes on.
    """
    made = {value.name: value for node in float_model.graph for value in node.outputs}
    order = sorted(range(len(findings)), key=lambda i: (findings[i].own_sqnr_db, i))
    known = [i for i in order if findings[i].value in made and math.isfinite(findings[i].own_sqnr_db)]
    if not known or not feeds:
        return
    plain = [i for i in known if made[findings[i].value].dtype == FLOAT32]
    values = {i: findings[i].value for i in known}
    nodes = _Nodes(float_model, isolated, run_apart, values, threads, report)
    if weight_bytes(float_model) <= _LARGE and len(plain) == len(known):
        errors = _by_offsets(nodes, feeds)
    else:
        suspects = order[: min(_SUSPECTS, max(_FEWER, samples // _PER_SUSPECT))]
        chosen = {i: name for i, name in values.items() if i in suspects}
        errors = _by_tails(replace(nodes, values=chosen), feeds[:_FEW_FEEDS])
    for i, outputs in errors.items():
        findings[i].output_sqnr_db = min(map(_mean, outputs.values()), default=None)


_Ratios = dict[int, dict[str, list[float]]]
"""SQNR in dB of each output in each sample, by the place of the node."""


@dataclass(frozen=True)
class _Nodes:
    """What `measure_outputs` is given, and the values of the nodes that are looked at, by place, the worst first."""

    float_model: Model
    isolated: Isolated
    run_apart: RunApart
    values: Mapping[int, str]
    threads: int | None
    report: Callable[[], None] | None

    def opened(self, model: Model) -> Session:
        """A session of a form of the float model."""
        return session_of(model, threads=self.threads, packed=False, label="float model")

    def alone(self, feed: Feed, values: Mapping[str, Array]) -> Iterator[tuple[int, Array]]:
        """The quantized form of each node's value, from float inputs."""
        outputs = [self.isolated.units[i].output for i in self.values]
        return zip(self.values, self.run_apart(feed, values, outputs), strict=True)

    def tell(self) -> None:
        """That time goes on."""
        if self.report is not None:
            self.report()


def _by_offsets(nodes: _Nodes, feeds: Sequence[Feed]) -> _Ratios:
    """All nodes in one session of the whole model, to whose values their errors are added."""
    errors: _Ratios = {i: {} for i in nodes.values}
    model, given = with_offsets(nodes.float_model, nodes.values.values())
    moved = nodes.opened(model)
    values_of = with_outputs(nodes.float_model, [*nodes.isolated.sources, *nodes.values.values()])
    plain = nodes.opened(values_of.model)
    none = dict.fromkeys(given.values(), np.zeros((), np.float32))
    ends = [value.name or "" for value in nodes.float_model.graph.outputs]
    end = time.monotonic() + _SECONDS
    for count, feed in enumerate(feeds):
        values = {**feed, **dict(zip(values_of.outputs, plain.run(feed, values_of.outputs), strict=True))}
        expected = moved.run({**feed, **none})
        found: dict[int, dict[str, float]] = {}
        for i, array in nodes.alone(feed, values):
            if time.monotonic() > end:
                break
            nodes.tell()
            name, value = given[nodes.values[i]], values[nodes.values[i]]
            if array.shape != value.shape:
                found[i] = {}
                continue
            results = moved.run({**feed, **none, name: _difference(array, value)})
            found[i] = _ratios(zip(ends, expected, results, strict=True))
        if count and len(found) < len(errors):  # all nodes are told by the same samples
            break
        for i, ratios in found.items():
            _add(errors[i], ratios)
    return errors


def _difference(array: Array, value: Array) -> Array:
    """What is to be added to a value; nothing where it is not finite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(array - value, nan=0.0, posinf=0.0, neginf=0.0))


def _by_tails(nodes: _Nodes, feeds: Sequence[Feed]) -> _Ratios:
    """A session for each node, of what lies behind it."""
    errors: _Ratios = {i: {} for i in nodes.values}
    tails = {i: tail(nodes.float_model, name) for i, name in nodes.values.items()}
    sessions = {i: nodes.opened(part.model) for i, part in tails.items()}
    beside = dict.fromkeys(name for part in tails.values() for name in part.beside)
    ends = [value.name or "" for value in nodes.float_model.graph.outputs]
    around = with_outputs(nodes.float_model, [*beside, *ends, *nodes.isolated.sources])
    float_session = nodes.opened(around.model)
    for feed in feeds:
        nodes.tell()
        values = {**feed, **dict(zip(around.outputs, float_session.run(feed, around.outputs), strict=True))}
        for i, array in nodes.alone(feed, values):
            given = {tails[i].beside[name]: values[name] for name in tails[i].beside}
            given[tails[i].given] = array
            results = zip(sessions[i].output_names, sessions[i].run(given), strict=True)
            named = ((tails[i].outputs.get(output), result) for output, result in results)
            _add(errors[i], _ratios((name, values[name], result) for name, result in named if name is not None))
    return errors


def _ratios(outputs: Iterable[tuple[str, object, object]]) -> dict[str, float]:
    """SQNR in dB of each output that holds real numbers, in one sample: (name, float, quantized)."""
    found = {}
    for name, before, after in outputs:
        if isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and after.dtype.kind == "f":
            error = ErrorSum()
            error.add(before.ravel(), after.ravel())
            if error.signal or error.noise:
                found[name] = error.db
    return found


def _add(errors: dict[str, list[float]], ratios: Mapping[str, float]) -> None:
    for name, ratio in ratios.items():
        errors.setdefault(name, []).append(ratio)


def _mean(ratios: Sequence[float]) -> float:
    """The mean over samples: the SQNR of all of them together would be that of the one whose decision is closest.

    Infinite where nothing differs in any sample; samples where nothing does count as `_MOST_DB`.
    """
    return math.inf if min(ratios) == math.inf else float(np.mean(np.minimum(ratios, _MOST_DB)))
