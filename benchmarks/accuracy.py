"""``python -m benchmarks.accuracy``: what each way of winning accuracy back wins, alone and together."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxq
from benchmarks import hard, machine, tables
from benchmarks.measure import alternate, compare
from benchmarks.workloads import DEFAULT_ZOO, ROOT, Workload, find
from onnxq.recipe.recipe import Recipe

RESULTS = ROOT / "benchmarks" / "results"
ERROR_SAMPLES = 64
LATENCY_SECONDS = 4.0
SHAPES = ("mobilenet_v2", "resnet50")
"""Left out: they have no metric."""


@dataclass(frozen=True)
class Setting:
    """The grid that all methods of a table start from.

    Attributes:
        name: as the table shows it.
        base: keys of the recipe.
        methods: keys of the recipe by method; the first is the plain one.
        groups: workloads it is for, by group or name.
    """

    name: str
    base: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    groups: tuple[str, ...] = field(default=())


_TOGETHER = {"equalize": True, "smooth": "auto"}
SETTINGS = (
    Setting(
        "8 bits per channel",
        {"preset": "w8a8"},
        {
            "plain": {},
            "without bias correction": {"bias_correct": False},
            "minmax": {"range": "minmax"},
            "percentile": {"range": "percentile"},
            "entropy": {"range": "entropy"},
            "equalize": {"equalize": True},
            "smooth": {"smooth": "auto"},
            "adaround": {"adaround": True},
            "together": _TOGETHER,
            "llm-int8": {"preset": "llm-int8"},
            "token": {"preset": "w8a8-token"},
        },
        ("zoo", "models", "hard"),
    ),
    Setting(
        "8 bits per tensor",
        {"preset": "w8a8", "per_channel": False},
        {"plain": {}, "equalize": {"equalize": True}, "without bias correction": {"bias_correct": False}},
        ("depthwise, channels spread", "digits_resnet", "digits_dsconv", "digits_mlp"),
    ),
    Setting(
        "4-bit weights, 8-bit activations, per tensor",
        {"preset": "w8a8", "per_channel": False, "bits": 4},
        {"adaround": {"adaround": True}},  # without learning, fewer bits are refused
        ("digits_resnet", "digits_dsconv", "digits_mlp"),
    ),
    Setting(
        "3-bit weights, 8-bit activations, per tensor",
        {"preset": "w8a8", "per_channel": False, "bits": 3},
        {"adaround": {"adaround": True}},  # without learning, fewer bits are refused
        ("digits_resnet", "digits_dsconv", "digits_mlp"),
    ),
)


def measure(workload: Workload, setting: Setting, folder: Path, *, quick: bool) -> dict[str, Any]:
    """All methods of a setting on one workload; what fails is a row with its error."""
    folder.mkdir(parents=True, exist_ok=True)
    model = workload.model(folder)
    feeds = workload.feeds()
    samples = (feeds if workload.error_feeds is None else workload.error_feeds())[:ERROR_SAMPLES]
    rows: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for number, (method, keys) in enumerate(setting.methods.items()):
        if quick and number > 1:
            break
        output = folder / f"{number}.onnx"
        row: dict[str, Any] = {"method": method, "error": None}
        started = time.perf_counter()
        try:
            recipe = Recipe(**{**setting.base, **keys})
            onnxq.quantize(model, output, calibration=feeds, recipe=recipe, threads=1, benchmark=False, force=True)
            row["seconds"] = time.perf_counter() - started
            row["sqnr_db"] = compare(model, output, samples).sqnr_db
            row["metric"] = None if workload.score is None else workload.score(output)
            files[method] = output
        except Exception as problem:  # any failure is a row of the table
            row["error"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        rows.append(row)
    latency = alternate({"float": model, **files}, feeds[:4], LATENCY_SECONDS)
    for row in rows:
        if row["method"] in files:
            row["ratio"] = latency[row["method"]].ratio
    return {
        "name": workload.name,
        "setting": setting.name,
        "metric": workload.metric,
        "float": None if workload.score is None else workload.score(model),
        "rows": rows,
    }


def render(results: dict[str, Any]) -> str:
    """The tables of a run as Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    parts = [
        "# Winning accuracy back",
        f"Machine: {facts}. One thread.",
        "SQNR is of the worst output, over up to 64 samples; latency is float ÷ quantized, above 1 is faster.",
        *(f"- {line}" for line in results["left_out"]),
    ]
    header = ["task", "method", "metric", "float", "quantized", "SQNR dB", "latency", "seconds"]
    for setting in SETTINGS:
        rows = [
            [
                entry["name"] if not number else "",
                row["method"],
                entry["metric"] or tables.NONE,
                tables.number(entry["float"], ".4f"),
                *(tables.cell(row, key, form) for key, form in (("metric", ".4f"), ("sqnr_db", ".1f"))),
                tables.cell(row, "ratio", ".2f", "x"),
                tables.cell(row, "seconds", ".1f"),
            ]
            for entry in results["tasks"]
            if entry["setting"] == setting.name
            for number, row in enumerate(entry["rows"])
        ]
        if rows:
            parts += [f"## {setting.name}", tables.markdown(header, rows)]
    errors = [
        f"- {entry['name']}, {entry['setting']}, {row['method']}: {row['error']}"
        for entry in results["tasks"]
        for row in entry["rows"]
        if row["error"] is not None
    ]
    if errors:
        parts += ["## Failures", "\n".join(errors)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--task", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--quick", action="store_true", help="the plain form and one method only")
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
    parser.add_argument("--list", action="store_true", help="show the tasks and stop")
    options = parser.parse_args(arguments)
    found, left_out = find(options.zoo.resolve())
    workloads = [*(w for w in found if w.name not in SHAPES), *hard.workloads()]
    known = [workload.name for workload in workloads]
    if options.list:
        print("\n".join(known))
        return 0
    unknown = sorted(set(options.task or ()) - set(known))
    if unknown:
        print(f"no task {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"machine": machine.facts(), "left_out": left_out, "tasks": []}
    stem = "accuracy-partial" if options.task or options.quick else "accuracy"
    private = [options.zoo.resolve(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()]
    for workload in workloads:
        if options.task and workload.name not in options.task:
            continue
        for setting in SETTINGS:
            if not {workload.group, workload.name} & set(setting.groups):
                continue
            print(f"{workload.name}, {setting.name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                entry = measure(workload, setting, Path(folder), quick=options.quick)
                results["tasks"].append(tables.without_paths(entry, [Path(folder), *private]))
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{stem}.md").write_text(render(results), encoding="utf-8")
        text = json.dumps(tables.finite(results), indent=1)
        (RESULTS / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
