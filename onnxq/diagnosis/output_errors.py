"""What the error of one node does to the outputs of the model: the rest stays float."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.value_errors import ErrorSum
from onnxq.graph.types import FLOAT32, Model
from onnxq.graph.views.isolate import Isolated
from onnxq.graph.views.outputs import weight_bytes, with_offsets, with_outputs
from onnxq.graph.views.tail import tail
from onnxq.runtime.session import session_of

RunApart = Callable[[Feed, Mapping[str, Array], Sequence[str]], list[Array]]
"""Quantized forms of values from float ones: (sample, float values by name, outputs of the isolated model)."""

FEEDS = 8
"""Samples on which the effect on the outputs is measured: how far an error spreads is a matter of the sample."""

_SECONDS = 20.0
"""From this time on no further sample is begun."""

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
    if weight_bytes(float_model) <= _LARGE and len(plain) == len(known):
        errors = _by_offsets(float_model, isolated, run_apart, findings, known, feeds, threads, report)
    else:
        number = min(_SUSPECTS, max(_FEWER, samples // _PER_SUSPECT))
        suspects = [i for i in known if i in order[:number]]
        errors = _by_tails(float_model, isolated, run_apart, findings, suspects, feeds[:_FEW_FEEDS], threads, report)
    for i, outputs in errors.items():
        findings[i].output_sqnr_db = min((error.db for error in outputs.values()), default=None)


def _by_offsets(
    float_model: Model,
    isolated: Isolated,
    run_apart: RunApart,
    findings: Sequence[Finding],
    chosen: Sequence[int],
    feeds: Sequence[Feed],
    threads: int | None,
    report: Callable[[], None] | None,
) -> dict[int, dict[str, _Mean]]:
    """All nodes in one session of the whole model, to whose values their errors are added."""
    errors: dict[int, dict[str, _Mean]] = {i: {} for i in chosen}
    model, given = with_offsets(float_model, [findings[i].value for i in chosen])
    moved = session_of(model, threads=threads, packed=False, label="float model")
    values_of = with_outputs(float_model, [*isolated.sources, *(findings[i].value for i in chosen)])
    plain = session_of(values_of.model, threads=threads, packed=False, label="float model")
    none = dict.fromkeys(given.values(), np.zeros((), np.float32))
    ends = [value.name or "" for value in float_model.graph.outputs]
    end = time.monotonic() + _SECONDS
    for feed in feeds:
        if time.monotonic() > end:
            break
        values = {**feed, **dict(zip(values_of.outputs, plain.run(feed, values_of.outputs), strict=True))}
        expected = moved.run({**feed, **none})
        got = run_apart(feed, values, [isolated.units[i].output for i in chosen])
        for i, array in zip(chosen, got, strict=True):
            if report is not None:
                report()
            value = values[findings[i].value]
            if array.shape != value.shape:
                continue
            with np.errstate(invalid="ignore"):
                offset = np.nan_to_num(array - value, nan=0.0, posinf=0.0, neginf=0.0)
            results = moved.run({**feed, **none, given[findings[i].value]: offset})
            for name, before, after in zip(ends, expected, results, strict=True):
                _add(errors[i], name, before, after)
    return errors


def _by_tails(
    float_model: Model,
    isolated: Isolated,
    run_apart: RunApart,
    findings: Sequence[Finding],
    chosen: Sequence[int],
    feeds: Sequence[Feed],
    threads: int | None,
    report: Callable[[], None] | None,
) -> dict[int, dict[str, _Mean]]:
    """A session for each node, of what lies behind it."""
    errors: dict[int, dict[str, _Mean]] = {i: {} for i in chosen}
    tails = {i: tail(float_model, findings[i].value) for i in errors}
    sessions = {i: session_of(t.model, threads=threads, packed=False, label="float model") for i, t in tails.items()}
    beside = dict.fromkeys(name for t in tails.values() for name in t.beside)
    ends = [value.name or "" for value in float_model.graph.outputs]
    around = with_outputs(float_model, [*beside, *ends, *isolated.sources])
    float_session = session_of(around.model, threads=threads, packed=False, label="float model")
    for feed in feeds:
        if report is not None:
            report()
        values = {**feed, **dict(zip(around.outputs, float_session.run(feed, around.outputs), strict=True))}
        got = run_apart(feed, values, [isolated.units[i].output for i in errors])
        for i, array in zip(errors, got, strict=True):
            given = {tails[i].beside[name]: values[name] for name in tails[i].beside}
            given[tails[i].given] = array
            session = sessions[i]
            for output, result in zip(session.output_names, session.run(given), strict=True):
                name = tails[i].outputs.get(output)
                if name is not None:
                    _add(errors[i], name, values[name], result)
    return errors


class _Mean:
    """The mean SQNR of an output over samples, in dB.

    The SQNR of all of them together would be that of the one sample whose decision is closest.
    """

    def __init__(self) -> None:
        self._all: list[float] = []

    def add(self, before: Array, after: Array) -> None:
        """Take in one sample."""
        error = ErrorSum()
        error.add(before.ravel(), after.ravel())
        if error.signal or error.noise:
            self._all.append(error.db)

    @property
    def db(self) -> float:
        """Infinite where nothing differs in any sample; samples where nothing does count as `_MOST_DB`."""
        if not self._all or min(self._all) == math.inf:
            return math.inf
        return float(np.mean(np.minimum(self._all, _MOST_DB)))


def _add(errors: dict[str, _Mean], name: str, before: object, after: object) -> None:
    """Count one output, if it holds real numbers."""
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and after.dtype.kind == "f":
        errors.setdefault(name, _Mean()).add(before, after)
