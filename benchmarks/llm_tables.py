"""Tables of `benchmarks.llm`."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from benchmarks.tables import Row, cell, markdown, number

ABOUT = {
    "llama_152m": "A Llama shape with random weights, 12 layers, 1024 wide, 4 of 16 heads for keys and values; it runs "
    "in onnxruntime-genai with all processors. Behind 128 tokens, and behind 2048.",
    "tiny_lm": "The decoder of models/, without caches: a pass of 128 tokens and one of 1, in ONNX Runtime, one "
    "thread.",
    "charrnn_shakespeare": "Two LSTM layers and a MatMul: a pass of 128 characters and one of 1, in ONNX Runtime, one "
    "thread. The peers pack the MatMul alone.",
}
PHASES = {"prefill": "prefill", "decode": "decode", "decode_long": "decode at 2048"}


def render(kept: dict[str, Any]) -> str:
    """All tables; ``kept`` is what ``results/llm.json`` holds."""
    found = {"machine": kept.get("machine", {}), "settings": {}, "left_out": kept.get("left_out", [])}
    parts = [part for part in tables.head(found, "Language models") if not part.startswith("Settings")]
    parts.append("Times faster than float32; what each figure means: benchmarks/README.md.")
    errors = []
    for name, task in kept["tasks"].items():
        parts += [
            f"## {name}",
            " ".join(filter(None, (ABOUT.get(name, ""), task.get("note")))),
            _float(task),
            _table(task),
        ]
        errors.append({"name": name, "rows": task["rows"]})
    return tables.page([*parts, *tables.failures(errors)])


def _float(task: dict[str, Any]) -> str:
    own, times = task["float"], task.get("times", {})
    facts = [f"{own['bytes'] / 1e6:.1f} MB"]
    if "perplexity" in own:
        facts.insert(0, f"perplexity {own['perplexity']:.4f}")
    for key, label in PHASES.items():
        if times.get(key):
            facts.append(f"{label} {times[key]['float']['ms']:.2f} ms")
    return f"Float: {', '.join(facts)}."


def _table(task: dict[str, Any]) -> str:
    times: dict[str, Any] = task.get("times", {})
    rows: list[Row] = task["rows"]
    phases = [key for key in PHASES if times.get(key)]
    quality = ("perplexity", "perplexity", ".4f", "", 1.0)
    if "perplexity" not in task["float"]:
        quality = ("SQNR dB", "sqnr_db", ".1f", "", 1.0)
    columns = [quality, ("MB", "bytes", ".1f", "", 1e-6)]
    last = [("quantize s", "seconds", ".1f", "", 1.0), ("processor s", "processor_seconds", ".1f", "", 1.0)]
    last.append(("peak MB", "peak_bytes", ".0f", "", 1e-6))
    body = []
    for row in rows:
        speeds = [times[key].get(f"{row['by']} {row['config']}", {}).get("ratio") for key in phases]
        name = row["config"] + (f" ({row['chosen']})" if row["config"] == "auto" and row.get("chosen") else "")
        cells = [cell(row, *column[1:]) for column in columns]
        ends = [cell(row, *column[1:]) for column in last]
        body.append([row["by"], name, *cells, *(number(speed, ".2f", "x") for speed in speeds), *ends])
    header = ["by", "configuration", *(column[0] for column in columns), *(PHASES[key] for key in phases)]
    return markdown([*header, *(column[0] for column in last)], body)
