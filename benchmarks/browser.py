"""``python -m benchmarks.browser``: forms of a model in onnxruntime-web, in Node and in a page in Chromium.

For each form: its size, the median time of a run, and how near its outputs are to those of ONNX Runtime here, on the
same file and on the float model. All forms of a model take turns. Needs Node, onnxruntime-web (named by
``ONNXQ_NODE_MODULES``) and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

import onnxq
from benchmarks import wild, workloads
from benchmarks.browser_page import in_chromium
from benchmarks.command import RESULTS
from benchmarks.feeds import Feed
from benchmarks.kept_rows import Row, add_choice, chosen, measured, rows_in
from benchmarks.measure import open_session
from benchmarks.tables import NONE, markdown, number
from benchmarks.workloads import Workload
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import OnnxqError
from onnxq.runtime.engines.places import NODE_MODULES, RunsOn

FORMS: dict[str, dict[str, Any]] = {
    "int8 (`w8a8`)": {"preset": "w8a8"},
    "q8 (`w8a8-dynamic`)": {"preset": "w8a8-dynamic"},
    "q8 (`w8`)": {"preset": "w8"},
    "q4 (`w4`)": {"preset": "w4"},
    "q4f16 (`w4`, float16)": {"preset": "w4", "float_type": "float16"},
    "fp16 (`fp16`)": {"preset": "fp16"},
}
"""Forms by the names that pages give them, and how they are made."""

FLOAT = "float"
CALIBRATED, COMPARED = 64, 4

Outputs = Sequence[Sequence[Any]]
"""For each feed the outputs of a model."""


def measure(workload: Workload, folder: Path, modules: Path, chromium: str, seconds: float) -> Row:
    """Everything about one model; a form that is refused has the reason."""
    model = workload.model(folder)
    feeds = workload.feeds()
    feeds = feeds[:: max(len(feeds) // CALIBRATED, 1)][:CALIBRATED]
    paths, forms = {FLOAT: model}, dict[str, dict[str, Any]]()
    for i, (name, options) in enumerate(FORMS.items()):
        path = folder / f"{i}.onnx"
        try:
            onnxq.quantize(model, path, target="web", calibration=feeds, benchmark=False, **options)
            paths[name] = path
        except OnnxqError as error:
            forms[name] = {"error": str(error)}
    compared = _of_one_shape(feeds)[:COMPARED]
    native = {name: _run_here(path, compared) for name, path in paths.items()}
    engine = RunsOn(engine="web", node_modules=modules).open()
    try:
        about = engine.about()
        in_node = {name: engine.run(path, compared) for name, path in paths.items()}
        node_ms = dict(zip(paths, engine.time(list(paths.values()), compared, seconds), strict=True))
    finally:
        engine.close()
    page = in_chromium(chromium, modules, paths, compared, seconds)
    for name, path in paths.items():
        forms[name] = {
            "bytes": path.stat().st_size,
            "sqnr_db here": _nearness(native[FLOAT], native[name]),
            **_place("node", native, in_node[name], name, node_ms[name]),
            **_place("chromium", native, page.outputs[name], name, page.ms[name]),
        }
    said = [f"{about.runtime}, {about.device}", page.version]
    return {"model": workload.name, "where": "web", "engines": said, "forms": forms}


def _place(where: str, native: Mapping[str, Outputs], found: Outputs, name: str, ms: list[float]) -> dict[str, float]:
    return {
        f"sqnr_db {where}": _nearness(native[FLOAT], found),
        f"to native db {where}": _nearness(native[name], found),
        f"ms {where}": statistics.median(ms),
    }


def _of_one_shape(feeds: Sequence[Feed]) -> list[Feed]:
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    return [feed for feed, shape in zip(feeds, shapes, strict=True) if shape == shapes[0]]


def _run_here(path: Path, feeds: Sequence[Feed]) -> list[list[Any]]:
    session = open_session(path)
    return [session.run(None, feed) for feed in feeds]


def _nearness(expected: Outputs, found: Outputs) -> float:
    """SQNR of the worst real-valued output over all feeds, in dB; infinite where all are equal."""
    pairs = zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True)
    return min((sqnr_db(_joined(want), _joined(got)) for want, got in pairs if want[0].dtype.kind == "f"), default=inf)


def _joined(arrays: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in arrays])


def render(results: dict[str, Any]) -> str:
    """A table a model."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = ["# Models in onnxruntime-web, in Node and in Chromium", facts]
    parts.append(
        "Median ms of a run, one thread, all forms in turns. `float` is the model as it came. SQNR is against the "
        'float model in ONNX Runtime here; "to native" is how near the outputs are to those of the same file there.'
    )
    for row in results["rows"]:
        parts += [f"## {row['model']}", "; ".join(row["engines"]), _table(row["forms"])]
    return "\n\n".join(parts) + "\n"


_PLACE = "to native", "ms", "over float"
_HEADER = "form", "kB", "SQNR here", "Node", *_PLACE, "Chromium", *_PLACE


def _table(forms: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name in (FLOAT, *FORMS):
        form = forms[name]
        if "error" in form:
            lines.append([name, form["error"], *[NONE] * (len(_HEADER) - 2)])
            continue
        line = [name, f"{form['bytes'] / 1000:.0f}", number(form["sqnr_db here"], ".1f", " dB")]
        for where in ("node", "chromium"):
            faster = forms[FLOAT][f"ms {where}"] / form[f"ms {where}"]
            line += [
                number(form[f"sqnr_db {where}"], ".1f", " dB"),
                number(form[f"to native db {where}"], ".1f", " dB"),
                number(form[f"ms {where}"], ".3g"),
                f"{faster:.2f}x",
            ]
        lines.append(line)
    return markdown(list(_HEADER), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown or a program is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.browser", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="to time each form for, in Node and in Chromium")
    add_choice(parser)
    options = parser.parse_args(arguments)
    zoo = options.zoo.resolve()
    tasks = chosen([*workloads.find(zoo)[0], *wild.find(zoo)[0]], options)
    if isinstance(tasks, int):
        return tasks
    modules, chromium = os.environ.get(NODE_MODULES), shutil.which("chromium")
    if modules is None or chromium is None:
        print(f"needs chromium on the PATH, and {NODE_MODULES} to name a folder with onnxruntime-web", file=sys.stderr)
        return 2
    path = RESULTS / "browser.json"

    def in_page(workload: Workload, folder: Path) -> Row:
        return measure(workload, folder, Path(modules).resolve(), chromium, options.seconds)

    for _ in measured(tasks, in_page, path, "where", render):
        pass
    print(render(rows_in(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
