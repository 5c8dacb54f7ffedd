"""Results of `benchmarks.learned` as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import NONE, Row, cell, markdown, number, page

_ORDER = ("w8", "w8a8", "AdaRound", "reconstruction", "finetuning", "adaround", "adaquant", "plain")
LEARNED_WAYS = ("AdaRound", "reconstruction", "finetuning")
"""What ways to learn are called."""

_DYNAMIC = ("w8a8-dynamic", "w8a8-token", "zeroquant")

_WIDTHS = ("W4A8", "W4A4", "W3A8", "W2A8")

LEAST_LOSS = 0.005
"""Share of the metric that 8-bit activations must cost for a model to be shown."""

LEAST_DECIBELS = 3.0
"""The same of SQNR, against 8-bit weights alone."""


def render(results: dict[str, Any]) -> str:
    """All tables.

    Args:
        results: ``machine`` (facts by name), and ``rows``, each with ``model``, ``way``, ``metric`` (its name),
            ``higher_is_better``, ``float`` (the float model's), ``score``, ``minutes`` and what `benchmarks.rows`
            measures.
    """
    rows: list[Row] = results["rows"]
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    few = [row for row in rows if row["way"].startswith(_WIDTHS)]
    dynamic = [row for row in rows if row["way"].startswith(_DYNAMIC)]
    plain = [row for row in rows if row not in few and row not in dynamic]
    learned = {row["model"] for row in plain if row["way"] not in ("w8", "w8a8")}
    shown, others = ([r for r in plain if (r["model"] in learned) is known] for known in (True, False))
    minutes = sorted({row["minutes"] for row in rows if row["minutes"] is not None})
    parts = ["# What learning wins back", f"Machine: {machine}."]
    parts += ["What each figure means: benchmarks/README.md. One thread, one model at a time."]
    if len(minutes) == 1:
        parts[-1] += f" A way to learn may take {minutes[0]:g} minutes of computing."
    if shown:
        parts += [
            "## 8 bits, where they cost more than 0.5 % of the metric or 3 dB against weights alone, or were asked for"
        ]
        parts += [_table(shown)]
    if others:
        parts += ["## Measured with w8 and w8a8 alone", _table(others)]
    if dynamic:
        parts += ["## Dynamic activations, without and with layers that learn", _table(dynamic)]
    if few:
        parts += ["## Fewer bits, every layer on integers", _table(few)]
    errors = [f"- {row['model']}, {row['way']}: {row['error']}" for row in rows if row["error"] is not None]
    if missing := _missing(rows):
        parts += ["## Models that lose as much, with rows that were not measured", "\n".join(missing)]
    return page([*parts, *(["## Failures", "\n".join(errors)] if errors else [])])


def _table(rows: list[Row]) -> str:
    header = ["model", "metric", "float", "form", "its metric", "SQNR dB", "computing s", "peak MB"]
    lines, last = [], None
    for row in sorted(rows, key=_place):
        name = NONE if row["metric"] is None else row["metric"]
        first = [row["model"], name if row["higher_is_better"] else f"{name} (lower)", number(row["float"], ".4f")]
        figures = [cell(row, "score", ".4f"), _decibels(row), cell(row, "processor_seconds", ".0f")]
        figures.append(cell(row, "peak_bytes", ".0f", scale=1e-6))
        lines.append([*(first if row["model"] != last else [""] * 3), row["way"], *figures])
        last = row["model"]
    return markdown(header, lines)


def _decibels(row: Row) -> str:
    """JSON has no infinity, so that a row that was read holds a text in its place."""
    value = row.get("sqnr_db")
    return cell({**row, "sqnr_db": None if value is None else float(value)}, "sqnr_db", ".1f")


def _place(row: Row) -> tuple[str, int, int, int]:
    """Where a row stands: by model, width, tool and way."""
    words = row["way"].split()
    if words[0] in _DYNAMIC:
        return row["model"], _DYNAMIC.index(words[0]), False, len(words)
    width = _WIDTHS.index(words[0]) if words[0] in _WIDTHS else -1
    return row["model"], width, words[0] == "quark", _ORDER.index(words[-1])


def _missing(rows: list[Row]) -> list[str]:
    """A line for each model that 8-bit activations cost much, with the ways to learn that have no row."""
    found = []
    for model in sorted({row["model"] for row in rows}):
        own = {row["way"]: row for row in rows if row["model"] == model}
        ways = [way for name in LEARNED_WAYS if (way := f"w8a8 {name}") not in own]
        known = all(way in own and own[way]["error"] is None for way in ("w8", "w8a8"))
        if ways and known and loses(own["w8"], own["w8a8"]):
            found.append(f"- {model}: {', '.join(ways)}")
    return found


def loses(weights: Row | None, both: Row | None) -> bool:
    """Whether quantized activations cost enough that there is something to win back.

    Args:
        weights: the row with 8-bit weights alone; None where it is missing.
        both: that of ``w8a8``.
    """
    if weights is None or both is None or weights["error"] is not None or both["error"] is not None:
        return both is not None and both["error"] is None
    clear, noisy = weights.get("sqnr_db"), both.get("sqnr_db")
    noisier = clear is not None and noisy is not None and float(clear) - float(noisy) > LEAST_DECIBELS
    before, after = weights["score"], both["score"]
    if before is None or after is None:
        return noisier
    fall = (before - after) * (1 if weights["higher_is_better"] else -1)
    return bool(noisier or fall > LEAST_LOSS * abs(before))
