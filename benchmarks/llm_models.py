"""The models of `benchmarks.llm`: what they are, what they are judged and timed by."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks import workloads
from benchmarks.feeds import Feed, write_feeds
from benchmarks.jobs import ROOT, run_job
from benchmarks.lengths import of_length
from benchmarks.measure import alternate, open_session
from benchmarks.workloads import Workload

LLAMA = "llama_152m"
SHAPE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 8192,
}  # fmt: skip
HEAD = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
TRAINED = ("tiny_lm", "charrnn_shakespeare")
GRAPH = "model.onnx"
TOKENS, STEPS = 128, 24
LONG = 2048
"""Tokens of the prompt behind which caches are long."""
TEXTS, TEXT_TOKENS, JUDGED = 16, 128, 4
SECONDS = 10.0
"""Of one alternation of models that are files."""
KINDS = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}


@dataclass(frozen=True)
class Language:
    """A language model with all that is needed to quantize, judge and time it.

    Attributes:
        name: as the tables show it.
        folder: it is a folder of genai; else a file.
        model: the float model.
        place: where models go.
        feeds: a folder of calibration samples.
        texts: the same as text; of a folder.
        workload: of a file.
    """

    name: str
    folder: bool
    model: Path = Path()
    place: Path = Path()
    feeds: Path = Path()
    texts: Path = Path()
    workload: Workload | None = None

    @property
    def graph(self) -> Path:
        """The ONNX file of the float model."""
        return self.model / GRAPH if self.folder else self.model


def names(zoo: Path, genai: str | None) -> tuple[list[str], list[str]]:
    """The tasks that can be measured here, and a line for each that cannot."""
    found = [workload.name for workload in workloads.find(zoo)[0]]
    known = [name for name in TRAINED if name in found]
    left_out = [f"{name} is left out: the zoo is absent" for name in TRAINED if name not in found]
    if genai is None:
        left_out.append(f"{LLAMA} is left out: --genai-python names an interpreter with onnxruntime-genai")
        return known, left_out
    return [LLAMA, *known], left_out


def opened(name: str, folder: Path, zoo: Path, genai: str | None) -> Language:
    """Make a model and its samples in a folder, where they are not there yet.

    Raises:
        RuntimeError: onnxruntime-genai's builder failed.
    """
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    if name == LLAMA:
        return _llama(place, genai)
    workload = next(workload for workload in workloads.find(zoo)[0] if workload.name == name)
    feeds = place / "feeds"
    if not feeds.is_dir():
        write_feeds(workload.feeds(), feeds)
    return Language(name, False, workload.model(place), place, feeds, workload=workload)


def _llama(place: Path, genai: str | None) -> Language:
    model = place / "fp32"
    if not (model / GRAPH).is_file():
        for job in (
            {"call": "make_llama", "output": str(place / "hf"), "shape": SHAPE},
            {"call": "build", "source": str(place / "hf"), "output": str(model), "precision": "fp32"},
        ):
            done = run_job("genai", genai, **job)
            if done.error is not None:
                raise RuntimeError(done.error)
    task = Language(LLAMA, True, model, place, place / "feeds", place / "prompts.txt")
    if not task.texts.is_file():
        lines = [
            line.strip() for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text("utf8").split("\n")
        ]
        long = [line[:TEXT_TOKENS] for line in lines if len(line) >= TEXT_TOKENS and line.isascii()]
        task.texts.write_text("\n".join(long[: TEXTS * 7 : 7]) + "\n", "utf8")
    if not task.feeds.is_dir():
        session = ort.InferenceSession(str(task.graph), providers=["CPUExecutionProvider"])
        write_feeds([feed_of(session, ids) for ids in _ids(task)], task.feeds)
    return task


def _ids(task: Language) -> list[np.ndarray[Any, Any]]:
    """The texts as the tokenizer of single bytes has them, near enough: bytes are tokens."""
    return [
        np.frombuffer(line.encode(), np.uint8).astype(np.int64)[None]
        for line in task.texts.read_text("utf8").split("\n")
        if line
    ]


def feed_of(session: ort.InferenceSession, ids: np.ndarray[Any, Any]) -> Feed:
    """A prompt with empty caches of the type that the model has."""
    feed: Feed = {}
    for spec in session.get_inputs():
        if spec.name == "input_ids":
            feed[spec.name] = ids
        elif spec.name == "attention_mask":
            feed[spec.name] = np.ones_like(ids)
        elif spec.name == "position_ids":
            feed[spec.name] = np.arange(ids.shape[1], dtype=np.int64)[None]
        else:
            feed[spec.name] = np.zeros((1, SHAPE["num_key_value_heads"], 0, HEAD), KINDS[spec.type])
    return feed


def copy_companions(source: Path, output: Path) -> None:
    """Everything of a folder but its graph."""
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not path.name.startswith(GRAPH):
            shutil.copy(path, output / path.name)


def size_of(output: Path) -> int:
    """Bytes of the graphs and weights of a file or folder."""
    files = output.glob(f"{GRAPH}*") if output.is_dir() else output.parent.glob(f"{output.name}*")
    return sum(path.stat().st_size for path in files)


def facts(task: Language) -> dict[str, Any]:
    """What the tables say of the float model."""
    own = {"bytes": size_of(task.model)}
    score = None if task.workload is None else task.workload.score
    return {"float": own | ({} if score is None else {"perplexity": math.exp(score(task.model))})}


def quality(task: Language, made: Path) -> dict[str, Any]:
    """Perplexity where there is a text, and the divergence from the float model; or the reason why it does not run."""
    try:
        if task.workload is not None:
            assert task.workload.score is not None
            return {"perplexity": math.exp(task.workload.score(made))}
        sessions = [open_session(path / GRAPH) for path in (task.model, made)]
        signal = noise = 0.0
        for ids in _ids(task)[:JUDGED]:
            expected, actual = (session.run(None, feed_of(session, ids))[0] for session in sessions)
            signal += float(np.square(expected, dtype=np.float64).sum())
            noise += float(np.square(actual.astype(np.float64) - expected).sum())
        return {"sqnr_db": 10 * math.log10(signal / noise) if noise else math.inf}
    except Exception as problem:  # a model that does not load or run is a row with the error
        return {"error": " ".join(f"does not run: {type(problem).__name__}: {problem}".split())[:300]}


def times_of(task: Language, there: Mapping[str, Path], genai: str | None, rounds: int) -> dict[str, Any]:
    """Milliseconds of the float model, and times faster by name: ``prefill``, ``decode``, and ``decode_long``.

    A folder runs in genai with all processors, a file in ONNX Runtime with one thread.
    """
    if not task.folder:
        assert task.workload is not None
        found = {}
        for key, count in (("prefill", TOKENS), ("decode", 1)):
            runs = alternate(there, [of_length(task.workload.feeds(), count)], SECONDS)
            found[key] = {name: {"ms": run.median_ms, "ratio": run.ratio} for name, run in runs.items()}
        return found
    short = _in_genai(there, genai, TOKENS, rounds)
    long = _in_genai(there, genai, LONG, max(rounds // 2, 3))
    return {**short, "decode_long": long["decode"]}


def _in_genai(there: Mapping[str, Path], genai: str | None, tokens: int, rounds: int) -> dict[str, Any]:
    folders = {name: str(path) for name, path in there.items()}
    done = run_job("genai", genai, call="times", folders=folders, tokens=tokens, steps=STEPS, rounds=rounds)
    if done.error is not None:
        return {"prefill": {}, "decode": {}, "error": done.error}
    return {
        phase: {
            name: {"ms": 1e3 * float(np.median(own)), "ratio": float(np.median(np.divide(taken["float"], own)))}
            for name, own in taken.items()
        }
        for phase, taken in done.values.items()
    }
