"""What quantizing a folder gives back: the results of its graphs, and what became of the folder as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.report.facts import generated_fact
from onnxq.report.result_tables import Table
from onnxq.report.results import QuantizeResult
from onnxq.report.words import change_of_size, decibels, speed

if TYPE_CHECKING:
    from onnxq.verify.language.generation import Generated


@dataclass
class GraphResult:
    """One graph of a folder.

    Attributes:
        source: its file, relative to the folder that came in.
        output: the file that it became, relative to the folder that goes out.
        result: how it was quantized; None where there was nothing to quantize, so that it was copied.
        reason: why it was copied.
    """

    source: str
    output: str
    result: QuantizeResult | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: that of the result, with the files."""
        body = {} if self.result is None else self.result.to_dict()
        return {**body, "source": self.source, "output": self.output, "copied_because": self.reason or None}


@dataclass
class FolderResult:
    """A finished quantization of a folder.

    Attributes:
        folder: what came in.
        output: what goes out.
        kind: the runtime that opens it.
        graphs: one entry a graph.
        copied: files that were copied as they are.
        left_out: files that do not go with the quantized graphs.
        updated: configurations that were changed.
        generated: how all graphs together follow, on their own cache, what the float model generates behind texts; None
            without texts or a cache.
        hints: what is needed to open the folder; one line each.
        seconds: all of it took.
        warnings: one line each.
    """

    folder: Path
    output: Path
    kind: str
    graphs: list[GraphResult]
    copied: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    generated: Generated | None = None
    hints: list[str] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "folder": str(self.folder),
            "output": str(self.output),
            "kind": self.kind,
            "graphs": [graph.to_dict() for graph in self.graphs],
            "copied": self.copied,
            "left_out": self.left_out,
            "updated": self.updated,
            "generated": None if self.generated is None else self.generated.to_dict(),
            "hints": self.hints,
            "seconds": round(self.seconds, 4),
            "warnings": self.warnings,
        }

    def summary(self) -> str:
        """A line a graph, what the graphs do together, and warnings, as plain text."""
        result = self.to_dict()
        facts = folder_facts(result)
        width = max(len(name) for name, _ in facts) + 2
        lines = [f"{name:{width}}{value}" for name, value in facts]
        said = [f"warning: {line}" for line in self.warnings]
        return "\n\n".join(["\n".join(lines), folder_table(result).text(), *(["\n".join(said)] if said else [])])


def folder_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a folder as pairs of a name and a phrase.

    Args:
        result: what `FolderResult.to_dict` gives.
    """
    sizes = [graph["size_bytes"] for graph in result["graphs"] if "size_bytes" in graph]
    count = len(result["graphs"])
    facts = [("kind", f"{result['kind']}, {count} graph{'s' if count != 1 else ''}, in {result['seconds']:.1f} s")]
    if sizes:
        facts.append(("size", change_of_size(*(sum(size[when] for size in sizes) for when in ("before", "after")))))
    facts += generated_fact(result)
    files = len(result["copied"])
    facts.append(("files", f"{files} copied, {len(result['updated'])} updated{_left_out(result['left_out'])}"))
    facts += [("open", hint) for hint in result["hints"]]
    facts += [("report", graph["report"]) for graph in result["graphs"] if graph.get("report")]
    return facts


def _left_out(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f", left out: {shown}" if names else ""


def folder_table(result: Mapping[str, Any]) -> Table:
    """A line a graph: what it became, its size, its latency and its error.

    Args:
        result: what `FolderResult.to_dict` gives.
    """
    rows = []
    for graph in result["graphs"]:
        if graph["copied_because"]:
            rows.append((graph["output"], "float", "-", "-", "-", "-", graph["copied_because"]))
            continue
        phases = {phase["name"]: phase.get("latency_ratio") for phase in (graph["workload"] or {}).get("phases", ())}
        ratio = graph["latency_ratio"]
        rows.append(
            (
                graph["output"],
                graph["preset"],
                change_of_size(graph["size_bytes"]["before"], graph["size_bytes"]["after"]).split(",")[0],
                *("-" if phases.get(name) is None else speed(phases[name], than="") for name in ("prefill", "decode")),
                "-" if ratio is None else speed(ratio, than=""),
                decibels(graph["sqnr_db"]),
            )
        )
    header = ("graph", "preset", "size", "prefill", "decode", "latency", "SQNR")
    return Table(header, rows, long=(0,))
