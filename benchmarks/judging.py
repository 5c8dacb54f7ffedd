"""``python -m benchmarks.judging``: whether the loss orders models, and divides them, as their own metrics do."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxq
from benchmarks import machine, tables
from benchmarks.workloads import DEFAULT_ZOO, ROOT
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError, OnnxqError
from onnxq.graph.reading.output_facts import facts_of_file
from onnxq.runtime.session import open_session
from onnxq.verify import loss
from onnxq.verify.output_judges import OutputJudges

RESULTS = ROOT / "benchmarks" / "results"
SAMPLES = 24
"""Held out of the calibration samples: what the loss is taken on."""

FORMS: dict[str, dict[str, Any]] = {
    "w8": {"preset": "w8"},
    "w8a8-dynamic": {"preset": "w8a8-dynamic"},
    "w8a8": {"preset": "w8a8"},
    "w8a8 minmax": {"preset": "w8a8", "range": "minmax"},
    "w8a8 percentile 99": {"preset": "w8a8", "range": "percentile", "percentile": 99.0},
    "w4": {"preset": "w4"},
    "w2": {"preset": "w2"},
}
"""From good to bad; the clipped ranges and two bits are there to be refused."""

ALLOWED = 0.01
"""A metric that falls by more than this is one that the budget should refuse."""


@dataclass(frozen=True)
class Subject:
    """A trained model.

    Attributes:
        name: of its task.
        model: the float model.
        feeds: calibration samples.
        score: its own metric of a file, on test data.
        before: the metric of the float model.
        sign: 1 where a higher metric is better, else −1.
    """

    name: str
    model: Path
    feeds: Callable[[], list[Feed]]
    score: Callable[[Path], float]
    before: float
    sign: int = 1


def subjects(zoo: Path) -> Iterator[Subject]:
    """The tasks of the zoo and of its folder ``wild``, those that are there."""
    sys.path[:0] = [str(zoo), str(zoo / "wild")]
    tasks = importlib.import_module("zoo")
    for task in tasks.tasks():
        if task.present:
            yield Subject(
                task.name,
                task.model,
                functools.partial(tasks.calibration_feeds, task),
                functools.partial(_task_score, tasks, task),
                task.fp32,
                1 if task.higher_is_better else -1,
            )
    if (zoo / "wild" / "wild.py").is_file():
        wild = importlib.import_module("wild")
        for name in wild.METRICS:
            model = wild.HERE / name / "model.onnx"
            yield Subject(
                f"wild/{name}",
                model,
                functools.partial(wild.feeds, name, "calib"),
                functools.partial(_wild_score, wild, name, model),
                1.0,
            )


def _task_score(tasks: Any, task: Any, path: Path) -> float:
    return float(tasks.evaluate(task, path)[task.metric])


def _wild_score(wild: Any, name: str, model: Path, path: Path) -> float:
    return float(wild.evaluate(name, model, path)["quality"])


def measured(subject: Subject, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for float with its inputs moved inside their resolution, and one for each form."""
    feeds = subject.feeds()
    half = max(1, len(feeds) // 2)
    used, held_out = (feeds[:half], feeds[half:][:SAMPLES]) if len(feeds) > 3 else (feeds, feeds)
    yield {"model": subject.name, "form": "float, moved", "loss": own_loss(subject.model, held_out)}
    for form, options in FORMS.items():
        path = folder / f"{subject.name.replace('/', '-')}.{form.replace(' ', '-')}.onnx"
        row: dict[str, Any] = {"model": subject.name, "form": form}
        try:
            onnxq.quantize(subject.model, path, calibration=used, force=True, benchmark=False, threads=1, **options)
            found = onnxq.compare(subject.model, path, data=held_out, threads=1)
        except OnnxqError as error:
            yield {**row, "error": str(error).splitlines()[0][:100]}
            continue
        judged = [(output.loss, output.kind) for output in found.outputs.values() if output.loss is not None]
        kind = next((kind for value, kind in judged if value == found.loss), None)
        score = subject.score(path)
        fall = subject.sign * (subject.before - score)
        yield {**row, "kind": kind, "sqnr_db": found.sqnr_db, "loss": found.loss, "metric": score, "fall": fall}


def own_loss(model: Path, feeds: list[Feed]) -> float | None:
    """The loss of the float model against itself, with its inputs moved by less than half of their resolution."""
    session = open_session(model, threads=1)
    judges = OutputJudges(facts_of_file(model))
    generator = np.random.default_rng(0)
    names = session.output_names
    for feed in feeds:
        moved = {name: _moved(array, generator) for name, array in feed.items()}
        try:
            both = [dict(zip(names, session.run(given), strict=True)) for given in (feed, moved)]
        except ModelError:  # numbers that were indices
            return None
        judges.add(feed, *both)
    return loss.worst(judges.judged())


def _moved(array: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Real numbers that lie on a grid, moved by a number between −½ and ½ of its step; others stay."""
    if array.dtype.kind != "f" or array.size < 2:
        return array
    values = np.unique(array)
    if len(values) < 2 or len(values) > array.size / 2:
        return array
    step = float(np.median(np.diff(values)))
    return np.asarray(array + step * generator.uniform(-0.5, 0.5, array.shape), array.dtype)


def text(rows: list[dict[str, Any]], facts: dict[str, str]) -> str:
    """The table, and how often the budget and the metric are of one mind."""
    known = [row for row in rows if row.get("fall") is not None and row["loss"] is not None]
    inside = [row for row in known if loss.inside_budget(row["loss"])]
    good = [row for row in known if row["fall"] <= ALLOWED]
    wrong = [row for row in inside if row["fall"] > ALLOWED]
    strict = [row for row in good if not loss.inside_budget(row["loss"])]
    lines = [
        "# Loss beside the models' own metrics",
        "",
        f"`python -m benchmarks.judging`: *loss* is onnxq's, on up to {SAMPLES} calibration samples that made no",
        "ranges; *metric* and its *fall* are the model's own, on test data. *Float, moved* is the float model against",
        "itself, its inputs moved inside their resolution. *Passes*: inside the budget though the metric falls;",
        "*strict*: outside though it does not.",
        "",
        f"{len(known)} forms. Inside the budget of {loss.share(loss.BUDGET)}: {len(inside)}, of which {len(wrong)}",
        f"lose more than {loss.share(ALLOWED)} of their metric. Outside: {len(known) - len(inside)}, of which",
        f"{len(strict)} lose less.",
        "",
        "; ".join(f"{name} {value}" for name, value in facts.items()),
        "",
    ]
    header = ("model", "form", "kind", "SQNR dB", "loss %", "metric", "fall", "")
    cells = []
    for row in rows:
        if row.get("error"):
            cells.append((row["model"], row["form"], row["error"].partition(" (")[0].rpartition(": ")[2], *[""] * 5))
            continue
        mark = "passes" if row in wrong else "strict" if row in strict else ""
        percent = None if row["loss"] is None else 100 * row["loss"]
        cells.append(
            (
                row["model"],
                row["form"],
                row.get("kind") or "",
                tables.number(row.get("sqnr_db"), ".1f"),
                tables.number(percent, ".2f"),
                tables.number(row.get("metric"), ".4f"),
                tables.number(row.get("fall"), ".4f"),
                mark,
            )
        )
    return "\n".join([*lines, tables.markdown(header, cells), ""])


def main() -> None:
    """Measure what is there and write ``results/judging.*``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FOLDER", help="the folder with zoo.py")
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="only these; nothing is written")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(options.zoo.resolve()):
            if options.task and subject.name not in options.task:
                continue
            for row in measured(subject, Path(folder)):
                rows.append(row)
                print(json.dumps(row), flush=True)
    found = text(rows, machine.facts())
    print(found)
    if not options.task:
        (RESULTS / "judging.md").write_text(found, encoding="utf-8")
        (RESULTS / "judging.json").write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
