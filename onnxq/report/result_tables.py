"""Results as tables of text, from the JSON form of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq.report.printable import printable
from onnxq.report.words import cell, decibels, in_bytes, shares, speed, times_faster, without_figures

NAMES_SHOWN = 3
ROWS_SHOWN = 12
_ROWS_TOO_FEW = 2
"""Rows that are not worth leaving out."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
        header: names of the columns.
        rows: cells, one for each column.
        right: columns that are aligned to the right.
        long: columns that may take several lines where there is little room.
        more: what was left out, in words; empty where nothing was.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[int, ...] = ()
    long: tuple[int, ...] = ()
    more: str = ""

    def __post_init__(self) -> None:
        """Names of models come here: none may move the cursor or break a row."""
        object.__setattr__(self, "rows", [tuple(printable(cell) for cell in row) for row in self.rows])

    def text(self) -> str:
        """Plain text, as wide as it needs to be."""
        table = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        lines = []
        for row in table:
            cells = [
                cell.rjust(width) if i in self.right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *filter(None, [self.more])])


def quantization_tables(result: Mapping[str, Any], *, everything: bool = False) -> list[Table]:
    """How many nodes of each operator run on integers, and what stayed float, by reason.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.
        everything: all names and rows, and the times of each node, not only the first.
    """
    kept = result["kept_float"]
    count = Counter(entry["op_type"] for entry in kept)
    stored = {op: count[op] - (c["total"] - c["quantized"]) for op, c in result["coverage"].items()}
    tables = [_candidates(result["candidates"], everything)] if result.get("candidates") else []
    tables += [_trail(result["trail"], everything)] if result.get("trail") else []
    tables.append(_coverage(result["coverage"], stored))
    if kept:
        shown = [(entry["reason"] if everything else without_figures(entry["reason"]), entry["node"]) for entry in kept]
        rows = [(str(len(names)), reason, _listed(names, everything)) for reason, names in _grouped(shown)]
        tables.append(_cut(("nodes", "stayed float because", "which"), rows, "reasons", everything, long=(1, 2)))
    return tables


def _trail(trail: Sequence[Mapping[str, Any]], everything: bool) -> Table:
    """A line for everything that a search tried; where that is many, the first steps that were kept and the choice."""
    first = next((step["estimated_us"] for step in trail if step["estimated_us"]), None)
    shown = list(trail)
    if not everything and len(trail) > ROWS_SHOWN:
        told = [step for step in trail[1:] if step["kept"]]
        early = [step for step in told if "chosen" not in step["verdict"]][: ROWS_SHOWN - 2]
        shown = [trail[0], *(step for step in told if step in early or "chosen" in step["verdict"])]
    dropped = any(step["drop"] is not None for step in trail)
    rows = []
    for step in shown:
        cost = step["estimated_us"]
        row = (
            step["tried"],
            *(["-" if step["drop"] is None else f"{step['drop']:.3g}"] if dropped else []),
            "-" if step["sqnr_db"] is None else decibels(step["sqnr_db"]),
            "-" if cost is None or not first else f"{cost / first:.2f}",
            f"{step['seconds']:.1f} s",
            step["verdict"],
        )
        rows.append(row)
    left = len(trail) - len(shown)
    header = ("tried", *(["drop"] if dropped else []), "SQNR", "time, estimated", "took", "verdict")
    more = f"and {left} more; --verbose shows all" if left else ""
    last = len(header) - 1
    return Table(header, rows, right=tuple(range(1, last)), long=(0, last), more=more)


def _candidates(candidates: Sequence[Mapping[str, Any]], everything: bool) -> Table:
    """A line for each whole model that was timed, the fastest first; or for all that were tried."""
    timed = [row for row in candidates if row["latency_ratio"] is not None]
    shown = candidates if everything or not timed else timed
    rows = [
        (
            row["name"],
            "-" if row["latency_ratio"] is None else speed(row["latency_ratio"], than=""),
            "-" if row["size_bytes"] is None else in_bytes(row["size_bytes"]),
            "-" if row["sqnr_db"] is None else "equal" if row["sqnr_db"] == math.inf else decibels(row["sqnr_db"]),
            "-" if row.get("loss") is None else shares(row["loss"]),
            row.get("options") or "-",
            row["verdict"] + (" (unbeaten)" if row.get("frontier") and row["verdict"] != "chosen" else ""),
        )
        for row in shown
    ]
    left = len(candidates) - len(shown)
    more = f"and {left} more that {'were' if left > 1 else 'was'} not timed; --verbose shows all" if left else ""
    if any("unbeaten" in row[-1] for row in rows):
        more += ("\n" if more else "") + (
            "unbeaten: no other candidate is as fast, as small and as close to float at once; recipes are in --json"
        )
    header = ("candidate", "against float", "size", "SQNR", "loss", "options", "verdict")
    return Table(header, rows, right=(2, 3, 4), long=(6,), more=more)


def comparison_table(result: Mapping[str, Any]) -> Table:
    """A line for each output of a comparison, as `onnxq.verify.compare.Comparison.to_dict` gives it."""
    header = ["output", "kind", "loss", "measure", "SQNR", "cosine", "mean error", "largest error"]
    broken = any(not output["finite"] for output in result["outputs"].values())
    equal = any(output.get("agreement") is not None for output in result["outputs"].values())
    rows = []
    for name, output in result["outputs"].items():
        row = [
            name,
            output.get("kind") or "-",
            "-" if output.get("loss") is None else shares(output["loss"]),
            _measure(output),
            "-" if output["sqnr_db"] is None else decibels(output["sqnr_db"]),
            "-" if output["cosine"] is None else f"{output['cosine']:.6f}",
            cell(output.get("mean_abs_error")),
            cell(output["max_abs_error"]),
        ]
        row += [_percent(output["agreement"])] if equal else []
        rows.append((*row, *([cell(output["finite"])] if broken else [])))
    header += (["equal elements"] if equal else []) + (["finite"] if broken else [])
    return Table(tuple(header), rows, right=(2, *range(4, 9 if equal else 8)), long=(0,))


def _measure(output: Mapping[str, Any]) -> str:
    """What an output is judged by, in words."""
    measure, value = output.get("measure"), output.get("value")
    if measure is None or value is None:
        return "-"
    if measure == "SNR":
        return f"SNR {decibels(value)}"
    return f"cosine {value:.5f}" if measure == "cosine" else f"{shares(value)} {measure}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def benchmark_table(result: Mapping[str, Any]) -> Table:
    """A line for each model of a benchmark, as `onnxq.report.results.BenchmarkResult.to_dict` gives it."""
    models = result["models"]
    rows = [
        (
            row["name"],
            f"{row['median_ms']:.3f}",
            f"{row['p10']:.3f}",
            f"{row['p90']:.3f}",
            "-" if index == 0 else speed(times_faster(models[0]["median_ms"], row["median_ms"]), than=""),
            in_bytes(row["size_bytes"]),
            "-" if row["peak_memory_bytes"] is None else in_bytes(row["peak_memory_bytes"]),
        )
        for index, row in enumerate(models)
    ]
    header = ("model", "median ms", "10 %", "90 %", "against first", "size", "peak memory")
    return Table(header, rows, right=(1, 2, 3, 5, 6), long=(0,))


def inspection_tables(result: Mapping[str, Any], *, everything: bool = False) -> list[Table]:
    """How many nodes, what is quantized and how, what is not and why, and the weights.

    Args:
        result: what `onnxq.report.results.Inspection.to_dict` gives.
        everything: all names and rows, not only the first.
    """
    nodes = result["nodes"]
    quantized = [node for node in nodes if node["state"] != "float"]
    floats = [node for node in nodes if node["state"] == "float"]
    tables = []
    if quantized:
        stored = Counter(node["op_type"] for node in nodes if node["state"] == "stored")
        tables.append(_coverage(result["coverage"], stored))
        tables.append(_kinds("quantized as", [(node, node["how"]) for node in quantized], everything))
    if floats:
        heading = "float because" if quantized else "note"
        why = [(node, node["reason"] or "can run on integers") for node in floats]
        tables.append(_kinds(heading, why, everything))
    if result["weights"]:
        tables.append(_weights(result["weights"], everything))
    return tables


def diagnosis_table(result: Mapping[str, Any], *, everything: bool = False) -> Table:
    """A line for each quantized node, the worst first.

    Args:
        result: what `onnxq.diagnosis.examine.DiagnoseResult.to_dict` gives.
        everything: all nodes, not only the worst.
    """
    rows = [
        (
            node["node"],
            node["op_type"],
            _short_db(node["output_sqnr_db"]),
            _short_db(node["own_sqnr_db"]),
            _short_db(node["arriving_sqnr_db"]),
            _short_db(node["weight_sqnr_db"]),
            "-" if node["low"] is None else f"{node['low']:.4g} to {node['high']:.4g}",
            "-" if node["seen_low"] is None else f"{node['seen_low']:.4g} to {node['seen_high']:.4g}",
            "-" if node["low"] is None else f"{100 * node['clipped']:.2g} %",
            node["cause"] + (f" ({node['inside']})" if node["inside"] else ""),
        )
        for node in result["nodes"]
    ]
    header = (
        "node",
        "operator",
        "output dB",
        "local error",
        "inherited error",
        "weight",
        "range",
        "seen",
        "clipped",
        "main cause",
    )
    return _cut(header, rows, "nodes", everything, right=(2, 3, 4, 5, 8), long=(0, 9))


def _short_db(ratio: float | None) -> str:
    return "-" if ratio is None else "equal" if ratio == math.inf else f"{ratio:.1f}"


def _kinds(heading: str, nodes: Iterable[tuple[Mapping[str, Any], str]], everything: bool) -> Table:
    groups = _grouped(((node["op_type"], words), node["name"]) for node, words in nodes)
    rows = [(str(len(names)), op_type, words, _listed(names, everything)) for (op_type, words), names in groups]
    return _cut(("nodes", "operator", heading, "which"), rows, "kinds", everything, long=(2, 3))


def _weights(weights: Sequence[Mapping[str, Any]], everything: bool) -> Table:
    header = ("weight", "shape", "type", "scales", "range", "SQNR as int8")
    rows = [_weight_row(weight) for weight in weights]
    known = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    shown = [tuple(row[i] for i in known) for row in rows]
    right = tuple(place for place, i in enumerate(known) if i == len(header) - 1)
    return _cut(tuple(header[i] for i in known), shown, "weights", everything, right=right, long=(0,))


def _weight_row(weight: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        weight["name"],
        "x".join(map(str, weight["shape"])) or "scalar",
        weight["dtype"],
        weight["granularity"] or "-",
        "-" if weight["low"] is None else f"{weight['low']:.4g} to {weight['high']:.4g}",
        "-" if weight["sqnr_db"] is None else decibels(weight["sqnr_db"]),
    )


def _coverage(coverage: Mapping[str, Mapping[str, int]], stored: Mapping[str, int]) -> Table:
    """Nodes of each operator by how they compute; ways in which none does have no column."""
    rows = []
    for op_type, count in sorted(coverage.items(), key=lambda item: (-item[1]["total"], item[0])):
        held = max(stored.get(op_type, 0), 0)
        rows.append((op_type, count["total"], count["quantized"] - held, held, count["total"] - count["quantized"]))
    header = ("operator", "nodes", "on integers", "weights stored", "float")
    shown = [0, 1, *(i for i in (2, 3, 4) if any(row[i] for row in rows))]
    cells = [tuple(str(row[i]) if row[i] or i < 2 else "-" for i in shown) for row in rows]
    return Table(tuple(header[i] for i in shown), cells, right=tuple(range(1, len(shown))))


def _cut(
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    what: str,
    everything: bool,
    *,
    right: tuple[int, ...] = (0,),
    long: tuple[int, ...],
) -> Table:
    """A table, or its first rows and how many were left out."""
    shown = rows if everything or len(rows) <= ROWS_SHOWN + _ROWS_TOO_FEW else rows[:ROWS_SHOWN]
    more = f"and {len(rows) - len(shown)} more {what}; --verbose shows all" if len(shown) < len(rows) else ""
    return Table(header, shown, right, long, more)


def _grouped(pairs: Iterable[tuple[Any, str]]) -> list[tuple[Any, list[str]]]:
    """Gather names by key, the key with most names first."""
    groups: dict[Any, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _listed(names: Sequence[str], everything: bool) -> str:
    """Names after one another, the first few unless everything is wanted."""
    shown = names if everything else names[:NAMES_SHOWN]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")
