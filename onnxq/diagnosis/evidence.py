"""What a report shows beside the figures of a result: error by layer, histograms, and outputs side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import sqnr_db
from onnxq.data.feeds import Feed
from onnxq.diagnosis.examine import everywhere, spread, take_apart
from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.ranking import Diagnosis
from onnxq.diagnosis.value_errors import some
from onnxq.errors import OnnxqError
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.graph.views.apart.isolated_units import Unit
from onnxq.graph.views.outputs import with_outputs
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job
from onnxq.plan.weights.scheme_tables import scheme_tables
from onnxq.report.look_tables import SHOWN_SCHEMES
from onnxq.runtime.session import open_session, session_of
from onnxq.verify.kinds.side_by_side import shown_sample

SHOWN = 6
"""Activations, and weights, that a report shows a histogram of."""

SAMPLES_SHOWN = 4
"""Held-out samples whose outputs a report shows."""

SCHEME_ELEMENTS, SCHEME_WEIGHTS = 1 << 15, 40
"""Elements of a weight, and weights, that other schemes are tried on for a report."""

BINS = 48
_RESCALED_DB = 6.0
"""What a factor for each channel has to gain for a weight to have been scaled: rounding alone gains less by one."""

_LARGEST = 1 << 22
"""Elements of a weight that a histogram counts; of larger ones evenly spaced elements."""


def gather(job: Job, chosen: Candidate, source: object) -> dict[str, Any]:
    """Look into the model that a quantization chose; what cannot be found is said under ``missing``.

    Args:
        job: the float model and the samples.
        chosen: the quantized model.
        source: the float model as the user gave it.

    Returns:
        ``layers`` (`onnxq.diagnosis.ranking.Finding` in the order of the graph, ``culprit`` where one is among the
        worst), ``samples`` that were run for them, ``activations`` and ``weights`` with histograms, ``outputs`` side by
        side, ``schemes`` (`onnxq.plan.weights.scheme_tables`), and ``missing``: why a part is empty, one line each.
    """
    found: dict[str, Any] = {
        "layers": [], "samples": 0, "activations": [], "weights": [], "outputs": [], "missing": [], "schemes": None,
    }  # fmt: skip
    with job.clock.step("report"):
        try:
            found["schemes"] = _schemes(source)
        except OnnxqError as error:
            found["missing"].append(f"errors of other schemes: {error}")
    if job.data is None:
        found["missing"].append(
            "error by layer, histograms and outputs side by side need samples: pass --calibration DATA"
        )
        return found
    if chosen.model is None:
        found["missing"].append("the float model was returned unchanged: nothing in it is quantized")
        return found
    with job.clock.step("report"):
        for part in (_layers, _outputs):
            try:
                part(job, chosen, source, found)
            except OnnxqError as error:
                found["missing"].append(f"{'error by layer' if part is _layers else 'outputs side by side'}: {error}")
    return found


def _schemes(source: Any) -> dict[str, Any]:
    """What rounding the weights by other schemes would cost; of each weight those schemes that the page shows."""
    tables = scheme_tables(source, elements=SCHEME_ELEMENTS, most=SCHEME_WEIGHTS)
    shown = {scheme for _, scheme in SHOWN_SCHEMES}
    for weight in tables["weights"]:
        weight["errors"] = [row for row in weight["errors"] if row["scheme"] in shown]
    return tables


def _layers(job: Job, chosen: Candidate, source: Any, found: dict[str, Any]) -> None:
    assert job.data is not None
    original, quantized = io.load(source), chosen.quantized.clone()
    reference, apart = take_apart(job.prepared.model, original, quantized, job.data.first, job.threads)
    samples = job.data.held_out
    diagnosis, places = everywhere(reference, apart, samples, job.threads, job.clock.report("report"))
    found["layers"] = in_graph_order(diagnosis, places)
    found["samples"] = diagnosis.samples
    found["missing"] += [f"error by layer: {line}" for line in diagnosis.warnings]
    main = replace(diagnosis, findings=[finding for finding in diagnosis.findings if not finding.inside])
    found["activations"] = _activations(reference, main, list(spread(samples)), job.threads)
    found["weights"] = _weights(apart.units)


def in_graph_order(diagnosis: Diagnosis, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """The findings as plain data, in the order of the graph; ``rank`` 0 hurts most.

    Args:
        diagnosis: has the findings.
        places: place in the graph by value.
    """
    worst = {id(finding) for finding in diagnosis.worst}
    rows = [
        asdict(finding) | {"rank": rank, "culprit": id(finding) in worst}
        for rank, finding in enumerate(diagnosis.findings)
    ]
    return sorted(rows, key=lambda row: places.get(row["value"], -1))


def _activations(
    reference: Model, diagnosis: Diagnosis, feeds: Sequence[Feed], threads: int | None
) -> list[dict[str, Any]]:
    """Histograms of the float values whose grids add the largest errors, beside their ranges."""
    with_range = [f for f in diagnosis.findings if f.low is not None and f.seen_low is not None]
    worst = sorted(with_range, key=lambda finding: finding.own_sqnr_db)[:SHOWN]
    if not worst:
        return []
    augmented = with_outputs(reference, [finding.value for finding in worst])
    session = session_of(augmented.model, threads=threads, label="float model")
    edges = {finding.value: _edges(finding) for finding in worst}
    counts = {finding.value: np.zeros(BINS, np.int64) for finding in worst}
    for feed in feeds:
        values = {**feed, **dict(zip(augmented.outputs, session.run(feed, augmented.outputs), strict=True))}
        for name, count in counts.items():
            if name in values:
                flat = some(np.asarray(values[name], np.float64))
                np.add(count, np.histogram(flat[np.isfinite(flat)], edges[name])[0], out=count)
    return [
        {
            "node": finding.node,
            "value": finding.value,
            "own_sqnr_db": finding.own_sqnr_db,
            "low": finding.low,
            "high": finding.high,
            "seen_low": finding.seen_low,
            "seen_high": finding.seen_high,
            "clipped": finding.clipped,
            "edges": [float(edges[finding.value][0]), float(edges[finding.value][-1])],
            "counts": counts[finding.value].tolist(),
        }
        for finding in worst
    ]


def _edges(finding: Finding) -> Array:
    """Evenly spaced bounds of bins over the range and over what was seen."""
    ends = [end for end in (finding.low, finding.high, finding.seen_low, finding.seen_high) if end is not None]
    low, high = min(ends), max(ends)
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)


def _weights(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Histograms of the weights that lose most, in float and as they are now."""
    pairs = [
        (unit.name, unit.weight[0], unscaled(*unit.weight))
        for unit in units
        if unit.weight is not None and unit.weight[0].size and np.isfinite(unit.weight[0]).all()
    ]
    rated = [(float(sqnr_db(before, after)), name, (before, after)) for name, before, after in pairs]
    rows = []
    for ratio, name, pair in sorted(rated, key=lambda entry: entry[0])[:SHOWN]:
        before, after = (_thinned(array) for array in pair)
        low, high = min(float(before.min()), float(after.min())), max(float(before.max()), float(after.max()))
        edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
        rows.append(
            {
                "node": name,
                "shape": list(pair[0].shape),
                "sqnr_db": ratio if not math.isnan(ratio) else None,
                "edges": [float(edges[0]), float(edges[-1])],
                "float": np.histogram(before, edges)[0].tolist(),
                "quantized": np.histogram(after, edges)[0].tolist(),
            }
        )
    return rows


def unscaled(before: Array, after: Array) -> Array:
    """A rounded weight without the factors that equalization or its like gave to its channels.

    Args:
        before: the float weight.
        after: the weight now; channels of its first or second axis may be scaled.
    """
    best, ratio = after, float(sqnr_db(before, after)) + _RESCALED_DB
    for axis in range(min(before.ndim, 2)):
        others = tuple(index for index in range(before.ndim) if index != axis)
        power = np.square(after, dtype=np.float64).sum(axis=others, keepdims=True)
        shared = (before.astype(np.float64) * after).sum(axis=others, keepdims=True)
        fitted = (after * np.divide(shared, power, out=np.ones_like(shared), where=power > 0)).astype(np.float32)
        if (found := float(sqnr_db(before, fitted))) > ratio:
            best, ratio = fitted, found
    return best


def _thinned(array: Array) -> Array:
    flat = array.reshape(-1).astype(np.float64)
    return flat[:: -(-flat.size // _LARGEST)] if flat.size > _LARGEST else flat


def _outputs(job: Job, chosen: Candidate, source: Any, found: dict[str, Any]) -> None:
    assert job.data is not None
    comparison = chosen.verdict.comparison
    if comparison is None:
        return
    kinds = {name: output.kind or "" for name, output in comparison.outputs.items()}
    found["outputs"] = side_by_side(
        job.prepared.original, chosen.content, list(itertools.islice(job.data.held_out, SAMPLES_SHOWN)), kinds,
        threads=job.threads,
    )  # fmt: skip


def side_by_side(
    before: bytes | Path, after: bytes | Path, feeds: Sequence[Feed], kinds: Mapping[str, str], *, threads: int | None
) -> list[dict[str, Any]]:
    """What both models give for a few samples, as data to be drawn (`onnxq.verify.kinds.side_by_side`).

    Args:
        before: the float model.
        after: the quantized model.
        feeds: samples.
        kinds: what each output of the float model holds.
        threads: threads an operator may use.
    """
    sessions = [open_session(model, threads=threads) for model in (before, after)]
    names = [name for name in sessions[0].output_names if name in kinds and name in sessions[1].output_names]
    rows: list[dict[str, Any]] = []
    for feed in feeds:
        expected, got = (dict(zip(names, session.run(feed, names), strict=True)) for session in sessions)
        arrays = {
            name: (expected[name], got[name])
            for name in names
            if isinstance(expected[name], np.ndarray) and isinstance(got[name], np.ndarray)
        }
        rows += shown_sample(feed, arrays, kinds, len(rows), most=SAMPLES_SHOWN - len(rows))
        if len(rows) >= SAMPLES_SHOWN:
            break
    return rows
