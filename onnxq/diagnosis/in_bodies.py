"""Quantized nodes in subgraphs of If, Loop and Scan: each body is looked at as a model of its own.

What a body is given is handed out of the float model, run by run, so that the error of each node is its own. What has
arrived there from outside, and what it does to the outputs of the model, is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.ranking import diagnose
from onnxq.errors import ModelError
from onnxq.graph import walk
from onnxq.graph.types import Model, Node, Value
from onnxq.graph.views.apart.isolate import is_quantized
from onnxq.graph.views.apart.isolated_units import Isolated
from onnxq.graph.views.body_models import BodyModel, bodies_of, body_model
from onnxq.graph.views.inner import arrays_of, chains, own_values, why_hidden
from onnxq.graph.views.outputs import with_outputs
from onnxq.runtime.session import session_of

RUNS = 32
"""Runs of a body that are looked at, evenly spaced over all samples."""

_COUNTED = {"Loop": 2}
"""Inputs of a body that need not be handed out: the number of the iteration, and that it goes on."""

TakeApart = Callable[[Model, Model, Model, Feed, int | None], tuple[Model, Isolated]]
"""`onnxq.diagnosis.examine.take_apart`."""


@dataclass
class InBodies:
    """What was found in subgraphs.

    Attributes:
        findings: with the place in the main graph of the node that holds the body, in graph order.
        notes: why a body could not be looked into, one line each.
    """

    findings: list[tuple[int, Finding]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_into_bodies(
    reference: Model, quantized: Model, feeds: Sequence[Feed], threads: int | None, take_apart: TakeApart
) -> InBodies:
    """Look at the quantized nodes in the subgraphs of a model.

    Args:
        reference: the float model.
        quantized: its quantized form.
        feeds: samples.
        threads: threads an operator may use.
        take_apart: takes a quantized body apart.
    """
    found = InBodies()
    places = {node.name: place for place, node in enumerate(reference.graph)}
    for holder, attribute in bodies_of(reference):
        called = f"{attribute} of {holder.op_type} {holder.name!r}"
        after = body_model(quantized, holder.name or "", attribute, {})
        if after is None or not is_quantized(after.model):
            continue
        try:
            before, runs = _runs(reference, holder, attribute, feeds, threads)
            after = body_model(quantized, holder.name or "", attribute, before.dtypes)
            assert after is not None
            if missing := sorted({*after.given, *after.captured} - {*before.given, *before.captured}):
                raise ModelError(f"it reads {missing[0]!r}, which the float model does not give it")
            if not runs:
                raise ModelError("no sample ran it")
            findings, deeper = _look(before.model, after.model, runs, threads, take_apart)
        except ModelError as error:
            found.notes.append(f"{called}: {error}")
            continue
        place = places[holder.name]
        inside = [replace(f, inside=f"{f.inside}, in {called}" if f.inside else called) for f in findings]
        found.findings += [(place, finding) for finding in inside]
        found.notes += [f"{called}, in it {note}" for note in deeper]
    return found


def _look(
    before: Model, after: Model, runs: list[Feed], threads: int | None, take_apart: TakeApart
) -> tuple[list[Finding], list[str]]:
    """Findings of a body's own nodes and of subgraphs in it, and why others could not be looked into."""
    reference, apart = take_apart(before, before, after, runs[0], threads)
    findings: list[Finding] = []
    if apart.units:
        order = {unit.value: place for place, unit in enumerate(apart.units)}
        seen = diagnose(reference, apart, runs, threads=threads)
        # What arrives is counted from the body's own inputs, and its outputs are not those of the model.
        own = [replace(f, arriving_sqnr_db=None, output_sqnr_db=None) for f in seen.findings]
        findings = sorted(own, key=lambda f: order[f.value])
    deeper = look_into_bodies(reference, after, runs, threads, take_apart)
    return [*findings, *(finding for _, finding in deeper.findings)], deeper.notes


def _runs(
    model: Model, holder: Node, attribute: str, feeds: Sequence[Feed], threads: int | None
) -> tuple[BodyModel, list[Feed]]:
    """A float body as a model, and what it is given each time it runs.

    Raises:
        ModelError: that cannot be known.
    """
    body = dict(walk.subgraphs(holder))[attribute]
    if why := why_hidden(chains(model.graph)[id(body)], walk.opset(model)):
        raise ModelError(why)
    counted = [value.name or "" for value in list(body.inputs)[: _COUNTED.get(holder.op_type, 0)]]
    carried = [value for value in list(body.inputs)[len(counted) :] if value.name]
    if whole := next((value.name for value in carried if value.dtype is not None and not walk.is_float(value)), None):
        raise ModelError(f"its input {whole!r} holds no real numbers and cannot be handed out")
    before = body_model(model, holder.name or "", attribute, dict(zip(counted, ("int64", "bool"), strict=False)))
    assert before is not None
    teller = next((value for value in own_values(body) if _tells(value)), None)
    if teller is None:
        raise ModelError("nothing in it tells how often it runs")
    names = [teller.name or "", *(value.name or "" for value in carried)]
    augmented = with_outputs(model, [*names, *before.captured])
    hidden = next((name for name in names if name not in augmented.inner), None) or next(iter(augmented.missing), None)
    if hidden is not None:
        raise ModelError(f"value {hidden!r} cannot be handed out")
    session = session_of(augmented.model, threads=threads, label="float model")
    fetch = list(dict.fromkeys([*augmented.outputs, *(augmented.inner[name] for name in names)]))
    defaults = {v.name or "": v.const_value.numpy() for v in model.graph.inputs if v.const_value is not None}
    runs: list[Feed] = []
    for feed in feeds:
        got = dict(zip(fetch, session.run(feed, fetch), strict=True))
        known = {**defaults, **feed, **got}
        around = {name: known[name] for name in before.captured}
        given = {name: _each(got[augmented.inner[name]], holder.op_type) for name in names}
        count = len(given[names[0]])
        if any(len(arrays) != count for arrays in given.values()):
            raise ModelError("it is given arrays without elements")
        for index in range(count):
            run = {**around, **{value.name or "": given[value.name or ""][index] for value in carried}}
            run |= dict(zip(counted, (np.array(index, np.int64), np.array(True)), strict=False))
            runs.append(run)
    step = -(-len(runs) // RUNS) or 1
    return before, runs[::step]


def _tells(value: Value) -> bool:
    return value.producer() is not None and walk.is_float(value)


def _each(result: object, op_type: str) -> list[np.ndarray]:
    """The array of each run; a Scan stacks them."""
    arrays = arrays_of(result)
    return [row for array in arrays for row in array] if op_type == "Scan" else arrays
