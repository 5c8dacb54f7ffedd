"""What the error of one form of a layer does to the outputs of the whole model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.files.shapeless import of_any_shape
from onnxq.graph.views.outputs import with_offsets
from onnxq.pipeline.clock import Clock
from onnxq.runtime.session import Session, open_session, session_of
from onnxq.search.choice import FLOAT, Layer, by_damage
from onnxq.search.layers import Bench, capturing, comparable, sqnr_of

_MOST_DB = 120.0
"""What the outputs of a sample in which nothing changes count as."""


def measure_damage(bench: Bench, layers: Mapping[str, Layer], form: str, feeds: Iterable[Feed], clock: Clock) -> None:
    """Fill in what one form of each layer alone does to the outputs of the model: its error is added to the float run.

    Of several samples it is the mean of the SQNR in dB: how far an error spreads differs by tens of decibels between
    samples, and the noise of all of them together is that of the one whose decision is closest.

    Args:
        bench: as `onnxq.search.layers.measure` left it.
        layers: changed in place, the largest errors first, until the time is over.
        form: whose errors are added.
        feeds: samples; the first is the one that `measure` ran.
        clock: takes the time.
    """
    unknown = [layer for layer in by_damage(layers.values(), form) if layer.forms[form].model_db is None]
    wanted = [layer for layer in unknown if (layer.name, form) in bench.offsets]
    if not wanted:
        return
    with clock.step("layers"), contextlib.suppress(ModelError):  # without it, the layers' own errors serve
        spread = _Spread(bench, wanted, form)
        for count, feed in enumerate(feeds):
            if time.monotonic() > bench.deadline or not spread.add(feed, first=not count):
                break
    _extrapolate(layers.values(), form)


class _Spread:
    """What reaches the outputs, sample by sample; the layers' damage is that of all samples so far."""

    def __init__(self, bench: Bench, layers: Sequence[Layer], form: str) -> None:
        self._bench, self._layers, self._form = bench, list(layers), form
        values = {name for layer in layers for name in bench.offsets[layer.name, form]}
        model, self._inputs = with_offsets(bench.prepared.model, sorted(values))
        self._none = dict.fromkeys(self._inputs.values(), np.zeros((), np.float32))
        self._session = session_of(model, threads=bench.threads, packed=False)
        self._ratios: dict[str, list[float]] = {}
        self._opened: dict[str, tuple[Session, Session]] = {}
        self._captured: Callable[[Feed], dict[str, Array]] | None = None

    def add(self, feed: Feed, *, first: bool) -> bool:
        """Take in a sample; False where time was too short for all layers: a further one does not count then."""
        bench = self._bench
        arrays = {} if first else self._read(feed)
        expected = self._session.run({**feed, **self._none})
        found: dict[str, float] = {}
        for layer in self._layers:
            if time.monotonic() > bench.deadline:
                break
            offsets = bench.offsets[layer.name, self._form] if first else self._offsets(layer, arrays)
            moved = {self._inputs[value]: array for value, array in offsets.items()}
            ratio = _worst_db(expected, self._session.run({**feed, **self._none, **moved}))
            if ratio is not None:
                found[layer.name] = ratio
        complete = bool(found) and len(found) == len(self._layers)
        for layer in self._layers if first or complete else ():
            if layer.name in found:
                known = self._ratios.setdefault(layer.name, [])
                known.append(found[layer.name])
                damage = known[0] if len(known) == 1 else float(np.mean(np.minimum(known, _MOST_DB)))
                layer.forms[self._form] = replace(layer.forms[self._form], model_db=damage)
        return complete

    def _read(self, feed: Feed) -> dict[str, Array]:
        """What the layers read in a further sample; those whose models were not kept are left out from there on."""
        if self._captured is None:
            self._layers = [one for one in self._layers if (one.name, self._form) in self._bench.models]
            nodes = {node.name or "": node for node in self._bench.prepared.model.graph}
            self._captured = capturing(self._bench, [nodes[layer.name] for layer in self._layers])
        return self._captured(feed)

    def _offsets(self, layer: Layer, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What the form adds to the values that the layer makes, in a further sample."""
        if layer.name not in self._opened:
            files = (self._bench.models[layer.name, form] for form in (FLOAT, self._form))
            before, after = (open_session(of_any_shape(file), threads=self._bench.threads) for file in files)
            self._opened[layer.name] = before, after
        before, after = self._opened[layer.name]
        given = {spec.name: arrays[spec.name] for spec in before.input_specs}
        results = [dict(zip(session.output_names, session.run(given), strict=True)) for session in (before, after)]
        pairs = {name: (array, results[1][name]) for name, array in results[0].items() if name in results[1]}
        return {
            name: actual - float_one for name, (float_one, actual) in pairs.items() if comparable(float_one, actual)
        }


def _worst_db(expected: Sequence[Array], actual: Sequence[Array]) -> float | None:
    """The SQNR of the worst real output, in dB; None where there is none."""
    real = [sqnr_of([pair]) for pair in zip(expected, actual, strict=True) if comparable(*pair)]
    return min(real, default=None)


def _extrapolate(layers: Iterable[Layer], form: str) -> None:
    """Give layers that there was no time for the damage that others of their error do."""
    known = [layer for layer in layers if form in layer.forms and layer.forms[form].sqnr_db is not None]
    found = [(layer.forms[form].model_db, layer.forms[form].sqnr_db) for layer in known]
    apart = [
        model - own for model, own in found if model is not None and own is not None and math.isfinite(model - own)
    ]
    for layer in known if apart else ():
        own = layer.forms[form]
        if own.model_db is None and own.sqnr_db is not None:
            layer.forms[form] = replace(own, model_db=own.sqnr_db + float(np.median(apart)))
