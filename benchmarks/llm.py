"""``python -m benchmarks.llm``: language models quantized by onnxq and by others, and what they cost as they are used.

Three models: ``llama_152m``, a Llama shape with random weights that onnxruntime-genai's builder makes, for speed;
``tiny_lm`` of ``models/`` and ``charrnn_shakespeare`` of the zoo, which are trained, for perplexity. Rows and times are
kept by name in ``results/llm.json``, so that a run may be made in parts: ``--row`` takes some rows, ``--folder`` keeps
the models, ``--times`` measures those that are kept there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import llm_models, machine, olive_peer, tables
from benchmarks.command import RESULTS
from benchmarks.jobs import ROOT, run_job
from benchmarks.llm_models import Language
from benchmarks.llm_tables import render
from benchmarks.weight_peers import PEERS, environment
from benchmarks.workloads import DEFAULT_ZOO

OURS: dict[str, dict[str, Any]] = {
    "w8": {"preset": "w8"},
    **{
        f"w4 {name}": {"preset": "w4", "algorithm": name}
        for name in ("rtn", "kquant", "hqq", "gptq", "awq", "autoround")
    },
    "w4 gptq, sequential": {"preset": "w4", "algorithm": "gptq", "sequential": True},
    "w4 gptq, rotated, sequential": {"preset": "w4", "algorithm": "gptq", "rotate": True, "sequential": True},
    "w8a8-dynamic": {"preset": "w8a8-dynamic"},
    "auto": {"preset": "auto"},
    "w8, int8 caches": {"preset": "w8", "kv_cache": "int8"},
}
"""What onnxq is asked for, by the name of the row."""

BUILDER = "int4"
TIMED = ("w8", "w4 rtn", "w8a8-dynamic", "auto", "w8, int8 caches", BUILDER, *("4 bits rtn symmetric", "4 bits hqq"),
         *("8 bits rtn symmetric", "4 bits k_quant", "4 bits gptq", "4 bits awq"))  # fmt: skip
"""Rows whose times are taken: how a weight was rounded does not show in them, its form does."""

COMPRESSOR = ROOT / ".venv-peers"


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Attributes:
        genai: the interpreter that has onnxruntime-genai, torch and transformers; None without.
        limit: seconds that a row may take.
        rounds: turns of each model where times are taken.
        rows: names of the rows that are made; empty for all.
        resume: rows that are kept without an error are not made again.
    """

    genai: str | None
    limit: int
    rounds: int
    rows: Sequence[str] = ()
    resume: bool = False

    def wants(self, by: str, name: str, kept: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a row is asked for, and has to be made."""
        there = any((row["by"], row["config"], row["error"]) == (by, name, None) for row in kept)
        return (not self.rows or name in self.rows) and not (self.resume and there)


def rows_of(task: Language) -> list[tuple[str, str]]:
    """Who makes each row, and the row's name."""
    ours = [("onnxq", name) for name in OURS if "caches" not in name or task.folder]
    peers = [(peer.by, name) for name, peer in PEERS.items() if peer.bits != 2]
    olive = [("Olive", name) for name in olive_peer.CONFIGS]
    return [*ours, *([("genai", BUILDER)] if task.folder else []), *peers, *olive]


def place_of(task: Language, by: str, name: str) -> Path:
    """Where the model of a row is."""
    stem = f"{by}_{name}".replace(" ", "_").replace(",", "")
    return task.place / (stem if task.folder else f"{stem}.onnx")


def make_row(task: Language, by: str, name: str, settings: Settings) -> dict[str, Any]:
    """Quantize in a process of its own; what fails is a row with its error."""
    output = place_of(task, by, name)
    row: dict[str, Any] = {"by": by, "config": name}
    done = _run(task, by, name, output, settings)
    row |= {"error": done.error, "peak_bytes": done.values.pop("builder_peak_bytes", done.peak_bytes), **done.values}
    if done.error is None:
        row["bytes"] = llm_models.size_of(output)
    return row


def _run(task: Language, by: str, name: str, output: Path, settings: Settings) -> Any:
    if by == "onnxq":
        options = {"benchmark": False, **OURS[name]}
        if task.folder:
            texts = str(task.texts)
            paths = {"folder": str(task.model), "output": str(output), "calibration": texts}
            return run_job("onnxq-folder", options={"force": True, **options}, limit=settings.limit, **paths)
        paths = {"model": str(task.model), "feeds": str(task.feeds), "output": str(output)}
        return run_job("onnxq", options=options, limit=settings.limit, **paths)
    if by == "genai":
        built = {"source": str(task.place / "hf"), "output": str(output), "precision": name}
        return run_job("genai", settings.genai, call="build", limit=settings.limit, **built)
    target = output
    if task.folder:
        llm_models.copy_companions(task.model, output)
        target = output / llm_models.GRAPH
    paths = {"model": str(task.graph), "output": str(target)}
    if by == "Olive":
        asked = olive_peer.interpreter()
        if asked is None:
            return _Failed(f"{olive_peer.VARIABLE} names no interpreter")
        return run_job("olive", asked, config=name, limit=settings.limit, **paths)
    python, problem = sys.executable, None
    if PEERS[name].needs_environment:
        made, problem = environment(COMPRESSOR)
        python = str(made)
    if problem is not None:
        return _Failed(problem)
    return run_job("weight-peer", python, config=name, feeds=str(task.feeds), limit=settings.limit, **paths)


@dataclass(frozen=True)
class _Failed:
    """What came of a row that could not begin."""

    error: str
    peak_bytes: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


def take_times(task: Language, rows: Sequence[Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """Times of the rows whose models are there, all in turns; by tool and name, beside those of the float model."""
    made = [(row["by"], row["config"]) for row in rows if row["error"] is None and row["config"] in TIMED]
    there = {f"{by} {name}": place_of(task, by, name) for by, name in made}
    there = {name: path for name, path in there.items() if path.exists()}
    return llm_models.times_of(task, {"float": task.model, **there}, settings.genai, settings.rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task or a row is unknown."""
    options = _parser().parse_args(arguments)
    zoo = options.zoo.resolve()
    known, left_out = llm_models.names(zoo, options.genai_python)
    if options.list:
        print("\n".join(known))
        return 0
    for asked in options.task or ():
        if asked not in known:
            print(f"no task {asked!r}; there are {', '.join([*known, *left_out])}", file=sys.stderr)
            return 2
    names = {name for _, name in rows_of(Language("", folder=True))}
    for asked in options.row or ():
        if asked not in names:
            print(f"no row {asked!r}; there are {', '.join(sorted(names))}", file=sys.stderr)
            return 2
    settings = Settings(options.genai_python, options.limit, options.rounds, tuple(options.row or ()), options.resume)
    path = RESULTS / "llm.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf8")) if path.is_file() else {"tasks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        for name in options.task or known:
            task = llm_models.opened(name, folder, zoo, settings.genai)
            found = kept["tasks"].setdefault(name, {"rows": []})
            found |= llm_models.facts(task)
            if not options.times:
                _make(task, found, settings, kept, path)
            if not settings.rows or options.times:
                print(f"{name}: times ...", file=sys.stderr, flush=True)
                found["times"] = take_times(task, found["rows"], settings)
            _write(kept, path, left_out)
    print(render(kept))
    return 0


def _make(task: Language, found: dict[str, Any], settings: Settings, kept: dict[str, Any], path: Path) -> None:
    private = [task.place, ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()]
    for by, name in rows_of(task):
        if not settings.wants(by, name, found["rows"]):
            continue
        print(f"{task.name}: {by} {name} ...", file=sys.stderr, flush=True)
        row = make_row(task, by, name, settings)
        if row["error"] is None:
            row |= llm_models.quality(task, place_of(task, by, name))
        row = tables.without_paths(row, private)
        found["rows"] = [r for r in found["rows"] if (r["by"], r["config"]) != (by, name)] + [row]
        order = rows_of(task)
        found["rows"].sort(key=lambda r: order.index((r["by"], r["config"])))
        path.write_text(json.dumps(tables.finite(kept), indent=1) + "\n", "utf8")


def _write(kept: dict[str, Any], path: Path, left_out: Sequence[str]) -> None:
    kept |= {"machine": machine.facts(), "left_out": list(left_out)}
    path.write_text(json.dumps(tables.finite(kept), indent=1) + "\n", "utf8")
    path.with_suffix(".md").write_text(render(kept), "utf8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--resume", action="store_true", help="make only rows that are not there without an error")
    parser.add_argument("--times", action="store_true", help="take the times of the models in --folder, and no more")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where models are kept")
    parser.add_argument("--genai-python", metavar="PATH", help="the Python that has onnxruntime-genai and torch")
    parser.add_argument("--limit", type=int, default=1800, metavar="SECONDS", help="that a row may take")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="turns of each model that is timed")
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
    parser.add_argument("--list", action="store_true", help="show the tasks and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
