"""What is measured: the zoo's tasks, the project's own models, and two networks of well-known shape."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.feeds import Feed
from benchmarks.measure import open_session
from benchmarks.networks import NETWORKS, images

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ZOO = ROOT.parent / "shared" / "zoo"
SHAPE_SAMPLES = 32
SCORED_SHAPE_SAMPLES = 16


@dataclass(frozen=True)
class Workload:
    """A float model with everything needed to quantize and score it.

    Attributes:
        name: as the tables show it.
        group: ``zoo``, ``models`` or ``shapes``.
        model: writes the model where it must be made, and gives its path; the argument is a folder to write to.
        feeds: the calibration samples.
        error_feeds: samples for SQNR; None takes the calibration samples.
        metric: what ``score`` computes, or None where there are no labels.
        higher_is_better: the direction of the metric.
        score: the metric of a model file.
    """

    name: str
    group: str
    model: Callable[[Path], Path]
    feeds: Callable[[], list[Feed]]
    error_feeds: Callable[[], list[Feed]] | None = None
    metric: str | None = None
    higher_is_better: bool = True
    score: Callable[[Path], float] | None = None


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """All workloads, and a line for each that cannot be measured here."""
    from_zoo, left_out = _zoo(zoo)
    return [*_shapes(), *from_zoo, *_models()], left_out


def _zoo(folder: Path) -> tuple[list[Workload], list[str]]:
    if not (folder / "zoo.py").is_file():
        return [], ["the zoo is absent: its tasks are left out (--zoo FOLDER names it)"]
    sys.path.insert(0, str(folder))
    zoo = importlib.import_module("zoo")
    present = [task for task in zoo.tasks() if task.present]
    absent = [f"{task.name} is left out: its model is absent" for task in zoo.tasks() if not task.present]
    return [_zoo_task(zoo, task) for task in present], absent


def _zoo_task(zoo: Any, task: Any) -> Workload:
    def model(folder: Path) -> Path:
        return Path(task.model)

    def feeds() -> list[Feed]:
        return list(zoo.calibration_feeds(task))

    def score(path: Path) -> float:
        return float(zoo.evaluate(task, path)[task.metric])

    return Workload(
        task.name,
        "zoo",
        model,
        feeds,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        score=score,
    )


def _models() -> list[Workload]:
    # A second dot is in what onnxq wrote beside a model: <stem>.<preset>.onnx.
    return [own_model(path) for path in sorted((ROOT / "models").glob("*.onnx")) if "." not in path.stem]


def own_model(path: Path) -> Workload:
    """A model of ``models/`` with its calibration and test data."""
    test = path.with_suffix(".test.npz")
    with np.load(test, allow_pickle=False) as arrays:
        predicts_next = arrays["labels"].ndim == 2

    def score(candidate: Path) -> float:
        samples, labels = _samples(test)
        assert labels is not None
        logits = open_session(candidate).run(None, samples)[0]
        return negative_log_likelihood(logits, labels) if predicts_next else float((logits.argmax(1) == labels).mean())

    return Workload(
        path.stem,
        "models",
        lambda folder: path,
        lambda: one_by_one(ROOT / "calibration_data" / f"{path.stem}.npz"),
        error_feeds=lambda: one_by_one(test)[:64],
        metric="nll" if predicts_next else "acc",
        higher_is_better=not predicts_next,
        score=score,
    )


def _samples(file: Path) -> tuple[Feed, np.ndarray[Any, Any] | None]:
    with np.load(file, allow_pickle=False) as arrays:
        samples = dict(arrays)
    return samples, samples.pop("labels", None)


def one_by_one(file: Path) -> list[Feed]:
    """The samples of an ``.npz``, a feed each."""
    samples, _ = _samples(file)
    count = len(next(iter(samples.values())))
    return [{name: array[i : i + 1] for name, array in samples.items()} for i in range(count)]


def negative_log_likelihood(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Of the next token, the mean over all tokens in nats; perplexity is its exponential.

    Args:
        logits: (…, tokens of the vocabulary).
        labels: (…), ids of the tokens that do follow.
    """
    total = 0.0
    # One sequence at a time: float64 for the sums, not for all logits at once.
    for scores, following in zip(logits, labels, strict=True):
        shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, following[..., None], axis=-1)[..., 0]
        total += float((np.log(np.exp(shifted).sum(-1)) - chosen).sum())
    return total / labels.size


def _shapes() -> list[Workload]:
    return [_shape(name) for name in NETWORKS]


def _shape(name: str) -> Workload:
    def model(folder: Path) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(NETWORKS[name](), path)
        return path

    return Workload(
        name,
        "shapes",
        model,
        lambda: images(SHAPE_SAMPLES, seed=1),
        error_feeds=lambda: images(SCORED_SHAPE_SAMPLES, seed=2),
    )
