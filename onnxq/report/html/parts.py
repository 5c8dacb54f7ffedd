"""The parts of a page: tables, pictures and their texts, from the JSON form of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from onnxq.report.command_lines import candidate_line
from onnxq.report.html import drawing
from onnxq.report.look_tables import schemes_tables
from onnxq.report.words import decibels, in_bytes, shares, speed, three_digits, without_figures

_WORST = 8
_MOST_ROWS = 300
_NAMES = 40
_TOLD = 12
"""Steps of a search that are not folded."""

_LONG = 3
"""Times as wide as high, from which on a picture stands above the outputs rather than beside them."""

_FLOAT_AHEAD = 0.12
"""Share of the width by which float, whose quality is perfect, stands right of the best candidate."""


def candidates(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of what was tried, with a command for each, and its picture; None where nothing was."""
    rows = result.get("candidates") or []
    if not rows:
        return None
    table = [
        {
            "name": row["name"],
            "speed": "–" if row["latency_ratio"] is None else speed(row["latency_ratio"], than=""),
            "size": "–" if row["size_bytes"] is None else in_bytes(row["size_bytes"]),
            "sqnr": "–" if row["sqnr_db"] is None else _decibels(row["sqnr_db"]),
            "loss": "–" if row.get("loss") is None else shares(row["loss"]),
            "verdict": row["verdict"],
            "chosen": row["verdict"] == "chosen",
            "unbeaten": bool(row.get("frontier")),
            "command": candidate_line(result, row),
            "recipe": row.get("recipe") or "",
        }
        for row in rows
    ]
    points = _points(rows, lambda row: row["latency_ratio"])
    return {"rows": table, "picture": _frontier_picture(points, "candidates")}


def trail(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of what a search within limits tried, and its picture; None where nothing was searched."""
    steps = result.get("trail") or []
    if not steps:
        return None
    first = next((step["estimated_us"] for step in steps if step["estimated_us"]), None)

    def fast(step: Mapping[str, Any]) -> float | None:
        return first / step["estimated_us"] if first and step["estimated_us"] else None

    rows = [
        {
            "name": step["tried"],
            "speed": "–" if fast(step) is None else f"{fast(step):.2f}x the first",
            "sqnr": "–" if step["sqnr_db"] is None else _decibels(step["sqnr_db"]),
            "drop": "–" if step["drop"] is None else f"{step['drop']:.3g}",
            "verdict": step["verdict"],
            "chosen": "chosen" in step["verdict"],
            "kept": bool(step["kept"]),
        }
        for step in steps[:_MOST_ROWS]
    ]
    told = [row for index, row in enumerate(rows) if index == 0 or row["kept"] or row["chosen"]]
    told = told if len(told) <= _TOLD else [*told[: _TOLD - 1], *(row for row in told[_TOLD - 1 :] if row["chosen"])]
    points = [
        {
            "name": "as given" if index == 0 else "chosen" if "chosen" in step["verdict"] else "",
            "x": step["sqnr_db"],
            "y": fast(step),
            "area": 0.15,
            "style": "float" if index == 0 else "chosen" if "chosen" in step["verdict"] else "other",
        }
        for index, step in enumerate(steps)
        if step["sqnr_db"] is not None and math.isfinite(step["sqnr_db"]) and fast(step) is not None
    ]
    text = f"{len(points)} steps of the search by quality (SQNR in dB) and estimated speed against the model as given."
    plot = ""
    if len(points) > 1:
        plot = drawing.picture(drawing.frontier(points, "times as fast as the first, estimated"), "The search", text)
    return {
        "picture": plot,
        "told": told,
        "rows": rows,
        "recipe": result.get("recipe") or "",
        "left": max(len(steps) - _MOST_ROWS, 0),
    }


def _points(rows: Sequence[Mapping[str, Any]], fast: Any) -> list[dict[str, Any]]:
    """Candidates with a time and a quality; float, whose SQNR is infinite, right of them all."""
    timed = [row for row in rows if fast(row) is not None and row["sqnr_db"] is not None and row["size_bytes"]]
    finite = [row["sqnr_db"] for row in timed if math.isfinite(row["sqnr_db"])]
    if not finite or len(timed) < 2:
        return []
    low, high = max(min(finite), -20.0), max(finite)
    beyond = high + max(_FLOAT_AHEAD * (high - low), 3.0)
    largest = max(row["size_bytes"] for row in timed)
    return [
        {
            "name": "float (exact)" if row["name"] == "float" else row["name"],
            "x": min(max(row["sqnr_db"], low), beyond),
            "y": fast(row),
            "area": row["size_bytes"] / largest,
            "style": "chosen"
            if row["verdict"] == "chosen"
            else "float"
            if row["name"] == "float"
            else "frontier"
            if row.get("frontier")
            else "other",
        }
        for row in timed
    ]


def _frontier_picture(points: Sequence[dict[str, Any]], what: str) -> str:
    if len(points) < 2:
        return ""
    best = [point for point in points if point["style"] == "chosen"]
    text = (
        f"{len(points)} {what} by quality (SQNR in dB) and speed against float; the area of a circle is the size of "
        "the file."
    )
    if best:
        text += f" Chosen: {best[0]['name']}, {best[0]['y']:.2f} times as fast as float."
    return drawing.picture(drawing.frontier(points), "Speed over quality", text)


def layers(evidence: Mapping[str, Any]) -> dict[str, Any] | None:
    """Error by layer: a picture, the worst layers in words, and all of them; None where nothing is known."""
    rows = evidence.get("layers") or []
    if not rows:
        return None
    worst = sorted(rows, key=lambda row: row["rank"])
    named = [row for row in worst if row["culprit"]][:_WORST] or worst[:1]
    numbers = {id(row): str(index + 1) for index, row in enumerate(named)}
    culprits = {place: numbers[id(row)] for place, row in enumerate(rows) if id(row) in numbers}
    text = (
        f"SQNR of {len(rows)} quantized layers in the order of the network: what each adds on its own, and what has "
        f"arrived there in the quantized model. Worst: {', '.join(str(row['node']) for row in named[:3])}."
    )
    plot = drawing.picture(
        drawing.layers([row["own_sqnr_db"] for row in rows], [row["arriving_sqnr_db"] for row in rows], culprits),
        "Error by layer",
        text,
    )
    table = [
        {
            "number": numbers.get(id(row), ""),
            "node": row["node"],
            "op_type": row["op_type"],
            "own": _decibels(row["own_sqnr_db"]),
            "arriving": "–" if row["arriving_sqnr_db"] is None else _decibels(row["arriving_sqnr_db"]),
            "output": "–" if row["output_sqnr_db"] is None else _decibels(row["output_sqnr_db"]),
            "cause": row["cause"] + (f" ({row['inside']})" if row.get("inside") else ""),
        }
        for row in worst[:_MOST_ROWS]
    ]
    count = max(len(named), min(_WORST, len(table)))
    return {
        "picture": plot,
        "worst": table[:count],
        "rest": table[count:],
        "left": max(len(rows) - _MOST_ROWS, 0),
        "samples": evidence.get("samples") or 0,
    }


def activations(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A picture and a caption for each activation with a histogram."""
    found = []
    for row in evidence.get("activations") or []:
        clipped = f"{shares(row['clipped'])} clipped" if row["clipped"] else "nothing clipped"
        text = (
            f"range {row['low']:.4g} to {row['high']:.4g}, seen {row['seen_low']:.4g} to {row['seen_high']:.4g}, "
            f"{clipped}; {_decibels(row['own_sqnr_db'])} on its own"
        )
        plot = drawing.picture(drawing.activation(row), f"Values of {row['node']}", text, small=True)
        found.append({"name": row["node"], "text": text, "picture": plot})
    return found


def weights(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A picture and a caption for each weight with a histogram."""
    found = []
    for row in evidence.get("weights") or []:
        shape = "×".join(str(length) for length in row["shape"])
        ratio = "not finite" if row["sqnr_db"] is None else _decibels(row["sqnr_db"])
        text = f"{shape}, {three_digits(row['edges'][0])} to {three_digits(row['edges'][1])}, {ratio}"
        plot = drawing.picture(drawing.weight(row), f"Weights of {row['node']}", text, small=True)
        found.append({"name": row["node"], "text": text, "picture": plot})
    return found


def schemes(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of the errors of other schemes: ``header``, ``rows`` of text, and ``right``."""
    found = evidence.get("schemes")
    if not found or not found["weights"]:
        return []
    tables = schemes_tables(found)
    return [{"header": table.header, "rows": table.rows, "right": table.right, "more": table.more} for table in tables]


def stayed_float(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reasons, the most frequent first, with the nodes that they are of."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in result["kept_float"]:
        groups.setdefault(without_figures(str(entry["reason"])), []).append(entry)
    return [
        {
            "reason": reason,
            "count": len(entries),
            "operators": ", ".join(sorted({entry["op_type"] for entry in entries})),
            "nodes": [entry["node"] for entry in entries[:_NAMES]],
            "left": max(len(entries) - _NAMES, 0),
        }
        for reason, entries in sorted(groups.items(), key=lambda pair: -len(pair[1]))
    ]


def coverage(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Operators with how many of their nodes are quantized, the most frequent first."""
    rows = [{"op_type": name, **row} for name, row in result["coverage"].items()]
    return sorted(rows, key=lambda row: -row["total"])


def outputs(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row of words for each output of the comparison."""
    rows = []
    for name, output in (result.get("outputs") or {}).items():
        rows.append(
            {
                "name": name,
                "kind": output.get("kind") or "–",
                "loss": "–" if output.get("loss") is None else shares(output["loss"]),
                "sqnr": "–" if output["sqnr_db"] is None else _decibels(output["sqnr_db"]),
                "cosine": "–" if output["cosine"] is None else f"{output['cosine']:.6f}",
                "error": "–" if output["max_abs_error"] is None else f"{output['max_abs_error']:.4g}",
            }
        )
    return rows


def samples(evidence: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """Outputs of both models for a few samples, drawn."""
    found = []
    for row in (evidence.get("outputs") or [])[:most]:
        given = row["input"]
        entry: dict[str, Any] = {"number": row["sample"] + 1, "picture": "", "plot": "", "long": False, "outputs": []}
        if given is not None and "picture" in given:
            entry["picture"] = drawing.image(given["picture"])
            height, width = given["picture"]["shape"][:2]
            entry["long"] = width > _LONG * height
        elif given is not None:
            entry["plot"] = drawing.picture(drawing.curve(given["curve"]), f"Input {given['name']}", "one", small=True)
        entry["outputs"] = [_drawn(shown) for shown in row["outputs"]]
        found.append(entry)
    return found


def _drawn(shown: Mapping[str, Any]) -> dict[str, Any]:
    """One output, with pictures where it is made of numbers."""
    entry = dict(shown)
    name, form = str(shown["output"]), shown["form"]
    if form == "scores":
        largest = max((max(abs(row[1]), abs(row[2])) for row in shown["rows"]), default=0.0) or 1.0
        entry["rows"] = [
            {
                "name": row[0],
                "float": row[1],
                "quantized": row[2],
                "bars": [abs(row[1]) / largest, abs(row[2]) / largest],
            }
            for row in shown["rows"]
        ]
    elif form in ("pictures", "classes"):
        for side in ("float", "quantized", "difference"):
            if side in shown:
                entry[side] = drawing.image(shown[side], classes=form == "classes")
    elif form == "curves":
        text = f"the {len(shown['float'])} points shown lie at most {_apart(shown):.4g} apart"
        entry["plot"] = drawing.picture(drawing.curves(shown["float"], shown["quantized"]), name, text, small=True)
        entry["text"] = text
    elif form == "points":
        text = f"{len(shown['float'])} of its elements, at most {_apart(shown):.4g} apart"
        entry["plot"] = drawing.picture(drawing.points(shown["float"], shown["quantized"]), name, text, small=True)
        entry["text"] = text
    elif form in ("symbols", "strings"):
        entry["marks"] = _marks(shown["float"], shown["quantized"])
    return entry


def _marks(expected: Sequence[object], got: Sequence[object]) -> dict[str, list[bool]]:
    """Which entries of two sequences have no like in the other: one that was left out does not mark all behind it."""
    marks = {"float": [True] * len(expected), "quantized": [True] * len(got)}
    for first, second, length in SequenceMatcher(None, expected, got, autojunk=False).get_matching_blocks():
        marks["float"][first : first + length] = marks["quantized"][second : second + length] = [False] * length
    return marks


def _apart(shown: Mapping[str, Any]) -> float:
    return max((abs(a - b) for a, b in zip(shown["float"], shown["quantized"], strict=True)), default=0.0)


def _decibels(ratio: float) -> str:
    return "equal" if ratio == math.inf else decibels(ratio)
