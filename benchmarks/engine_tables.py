"""Results of `benchmarks.engines` as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import NONE, markdown, number

_NAMED = 4


def render(results: dict[str, Any]) -> str:
    """A table an engine, and what was refused."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = ["# Models on other engines", facts]
    for engine in dict.fromkeys(row["engine"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["engine"] == engine]
        parts += [f"## {engine}: {_about(rows)}", _errors(rows)]
        if any("float ms" in form for row in rows for form in row["forms"].values()):
            parts += ["Median ms on the engine and on ONNX Runtime's CPU provider; above 1 is faster.", _times(rows)]
        refusals = _refusals(rows)
        if refusals:
            parts += ["### Refused", "\n".join(refusals)]
    return "\n\n".join(parts) + "\n"


def _about(rows: list[dict[str, Any]]) -> str:
    said = (form.get("engine") for row in rows for form in row["forms"].values())
    return next((text for text in said if text), "the engine is not here")


def _errors(rows: list[dict[str, Any]]) -> str:
    presets = list(dict.fromkeys(preset for row in rows for preset in row["forms"]))
    header = ["model", "nodes"]
    for preset in presets:
        header += [f"{preset} here", "there", "nodes refused"]
    lines = []
    for row in rows:
        line = [row["model"], str(row["nodes"])]
        for preset in presets:
            form = row["forms"].get(preset)
            if form is None or form["error"] or form["note"]:
                line += [NONE, NONE, NONE if form is None else "the whole model"]
                continue
            figures = (form["sqnr_db_on_cpu"], form["sqnr_db"])
            line += [*(number(db, ".1f", " dB") for db in figures), str(len(form["refused"]))]
        lines.append(line)
    return markdown(header, lines)


def _times(rows: list[dict[str, Any]]) -> str:
    header = ["model", "float here", "float there", "int8 there", "over float there", "over float here", "int8 here"]
    lines = []
    for row in rows:
        for form in row["forms"].values():
            if "float ms" not in form:
                continue
            there, here = form["float ms"] / form["quantized ms"], form["float here ms"] / form["quantized ms"]
            mark = "**" if there < 1 else ""
            lines.append(
                [
                    row["model"],
                    *(number(form[f"{name} ms"], ".3g") for name in ("float here", "float", "quantized")),
                    f"{mark}{there:.2f}x{mark}",
                    f"{here:.2f}x",
                    number(form["quantized here ms"], ".3g"),
                ]
            )
    return markdown(header, lines)


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        for preset, form in row["forms"].items():
            if form["error"] or form["note"]:
                lines.append(f"- {row['model']}, {preset}: {form['error'] or form['note']}")
            elif form["refused"]:
                said = [f"{r['op_type']} `{r['node']}` ({r['reason'] or 'no reason given'})" for r in form["refused"]]
                more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
                lines.append(f"- {row['model']}, {preset}: {'; '.join(said[:_NAMED])}{more}")
    return lines
