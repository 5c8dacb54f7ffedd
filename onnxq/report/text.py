"""Results for people: the JSON form of each as figures in words and as tables."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq.report.printable import printable

NAMES_SHOWN = 3
ROWS_SHOWN = 12
_ROWS_TOO_FEW = 2
"""Rows that are not worth leaving out."""

_SAME_SPEED = 0.03
"""Differences of this much come and go from one measurement to the next."""

_FIGURES = re.compile(r": about [\d.]+ µs[^;]*")
"""What a reason says of one node's times, such as ``: about 31 µs against 11 µs``."""


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


def quantization_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a quantization as pairs of a name and a phrase.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.
    """
    how = result["format"] or ("scales found at inference" if result.get("at_inference") else "weights only")
    if result["preset"] == "float":
        how = "as it was"
    facts = [
        ("preset", f"{result['preset']} ({how}, for {result['target']}), in {result['seconds']:.1f} s"),
        ("size", change_of_size(result["size_bytes"]["before"], result["size_bytes"]["after"])),
        *(
            [("weights", f"{result['bits_per_weight']:.2f} bits each, scales included")]
            if result.get("bits_per_weight")
            else []
        ),
        *_outliers(result.get("at_inference") or ()),
        ("latency", latency(result)),
        ("SQNR", decibels(result["sqnr_db"]) + _over_samples(result.get("outputs") or {})),
    ]
    if result["top1_agreement"] is not None:
        several = len(result.get("outputs") or {}) > 1 and result.get("class_output")
        where = f", output {result['class_output']}" if several else ""
        facts.append(("top-1", f"agrees with the float model on {100 * result['top1_agreement']:.1f} %{where}"))
    facts += _loss(result)
    accuracy = result.get("accuracy")
    if accuracy:
        facts.append(("accuracy", f"{100 * accuracy['float']:.2f} % -> {100 * accuracy['quantized']:.2f} %"))
    return facts + token_facts(result)


def _loss(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The share of decisions that is expected to change, and the output that it is of."""
    loss, outputs = result.get("loss"), result.get("outputs") or {}
    worst = next((name for name, output in outputs.items() if output.get("loss") == loss), None)
    if loss is None or worst is None:
        return []
    where = f" of output {worst}" if len(outputs) > 1 else ""
    return [("loss", f"{shares(loss)} of decisions{where} ({outputs[worst]['kind']})")]


def shares(value: float) -> str:
    """A share in percent, with two digits that count."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def _outliers(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The share of channels that layers compute in float, where some do."""
    split = [node for node in nodes if node.get("outlier_channels")]
    if not split:
        return []
    products = [node for node in nodes if node["form"] in ("token", "split")]
    share = sum(node["outlier_channels"] for node in split) / sum(node["channels"] for node in split)
    return [("outliers", f"{share:.2%} of the input channels of {len(split)} of {len(products)} layers stay float")]


def token_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Perplexity and agreement over tokens, where they are known."""
    facts = []
    perplexity, agreement = result.get("perplexity"), result.get("token_agreement")
    if perplexity:
        change = 100 * (perplexity["quantized"] / perplexity["float"] - 1)
        facts.append(("perplexity", f"{perplexity['float']:.4g} -> {perplexity['quantized']:.4g} ({change:+.2f} %)"))
    if agreement is not None:
        apart = result.get("token_divergence")
        more = "" if apart is None else f", divergence {apart:.3g} nats"
        facts.append(("tokens", f"the same one most likely for {100 * agreement:.1f} %{more}"))
    return facts


def latency(result: Mapping[str, Any]) -> str:
    """The times of both models and how they compare."""
    times = result.get("latency_ms") or {}
    if len(times) < 2 or result["latency_ratio"] is None:
        return speed(result["latency_ratio"])
    before, after = times["float"], times["quantized"]
    return f"{before:.3g} ms -> {after:.3g} ms, {speed(_times(before, after))}"


def _times(before: float, after: float) -> float | None:
    """How many times faster: of the two figures that stand beside it, not of pairs of runs."""
    return before / after if after > 0 else None


def _over_samples(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """How many samples an SQNR is over, and which of several outputs it is of."""
    real = {name: output for name, output in outputs.items() if output["sqnr_db"] is not None}
    if not real:
        return ""
    worst = min(real, key=lambda name: float(real[name]["sqnr_db"]))
    count = real[worst]["samples"]
    samples = f"over {count} sample{'s' if count != 1 else ''}"
    return f" {samples}" if len(real) == 1 else f" {samples}, worst of {len(real)} outputs ({worst})"


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
        shown = [
            (entry["reason"] if everything else _FIGURES.sub("", entry["reason"]), entry["node"]) for entry in kept
        ]
        rows = [(str(len(names)), reason, _listed(names, everything)) for reason, names in _grouped(shown)]
        tables.append(_cut(("nodes", "stayed float because", "which"), rows, "reasons", everything, long=(1, 2)))
    return tables


def _trail(trail: Sequence[Mapping[str, Any]], everything: bool) -> Table:
    """A line for everything that a search tried; where that is many, the first steps that were kept and the choice."""
    first = trail[0]["estimated_us"]
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
            row["verdict"] + (", unbeaten" if row.get("frontier") and row["verdict"] != "chosen" else ""),
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
    header = ["output", "kind", "loss", "measure", "SQNR", "cosine", "largest error"]
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
            cell(output["max_abs_error"]),
        ]
        row += [_percent(output["agreement"])] if equal else []
        rows.append((*row, *([cell(output["finite"])] if broken else [])))
    header += (["equal elements"] if equal else []) + (["finite"] if broken else [])
    return Table(tuple(header), rows, right=(2, *range(4, 8 if equal else 7)), long=(0,))


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
            "-" if index == 0 else speed(_times(models[0]["median_ms"], row["median_ms"]), than=""),
            in_bytes(row["size_bytes"]),
            "-" if row["peak_memory_bytes"] is None else in_bytes(row["peak_memory_bytes"]),
        )
        for index, row in enumerate(models)
    ]
    header = ("model", "median ms", "10 %", "90 %", "against first", "size", "peak memory")
    return Table(header, rows, right=(1, 2, 3, 5, 6), long=(0,))


def inspection_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a model as pairs of a name and a phrase; a list takes one pair an entry, the later ones unnamed.

    Args:
        result: what `onnxq.report.results.Inspection.to_dict` gives.
    """
    facts = []
    for name, value in result["facts"].items():
        shown = name.removesuffix("_bytes").replace("_", " ")
        if name == "quantized":
            facts.append((shown, ", ".join(value) or "nothing"))
        elif isinstance(value, (list, tuple)):
            facts.extend((shown if not i else "", cell(entry)) for i, entry in enumerate(value))
        else:
            facts.append((shown, in_bytes(value) if name == "size_bytes" else cell(value)))
    return facts


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
            node["cause"],
        )
        for node in result["nodes"]
    ]
    header = ("node", "operator", "output dB", "own", "arriving", "weight", "range", "seen", "clipped", "mostly")
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


def speed(ratio: float | None, than: str = "float") -> str:
    """Say how a latency compares.

    Args:
        ratio: latency of the reference over this one's.
        than: the reference; empty where the context says it.
    """
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return "not measured"
    if abs(ratio - 1) < _SAME_SPEED:
        return f"about as fast as {than}" if than else "about as fast"
    words = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    return f"{words} than {than}" if than else words


def change_of_size(before: float, after: float) -> str:
    """Say how a file has changed."""
    ratio = before / after
    if round(ratio, 2) == 1:
        change = "as large as before"
    else:
        change = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return f"{in_bytes(before)} -> {in_bytes(after)}, {change}"


def decibels(sqnr: float | None) -> str:
    """Say a signal-to-noise ratio."""
    if sqnr is None:
        return "not measured"
    if math.isnan(sqnr):
        return "undefined: an output is not finite"
    if math.isinf(sqnr):
        return "outputs are equal" if sqnr > 0 else "no signal: an output is zero or not finite"
    return f"{sqnr:.1f} dB"


def in_bytes(size: float) -> str:
    """Say a size in the unit that fits it, with powers of ten."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def cell(value: object) -> str:
    """Put any value into a few words, for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(entry)}".strip() for key, entry in value.items()) or "-"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(cell(entry) for entry in value) or "-"
    return str(value)
