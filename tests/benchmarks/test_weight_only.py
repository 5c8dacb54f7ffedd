"""The weight-only benchmark: its tasks, its figures on a small stack, its tables, and peers that cannot run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import weight_peers, weight_tables
from benchmarks.command import Settings
from benchmarks.feeds import write_feeds
from benchmarks.jobs import run_job
from benchmarks.measure import open_session
from benchmarks.weight_only import CONFIGS, QUICK, TIMED, divergence, main, matrix_elements, measure, packed_bits
from benchmarks.weight_peers import PEERS, environment
from benchmarks.weight_tasks import FORMS, METHODS, SCORED, WeightTask, find, stack
from tests.runtime_version import needs_runtime


class Short(Settings):
    """As few rounds as there may be."""

    latency_seconds = 0.0  # type: ignore[assignment]


@pytest.fixture
def small(tmp_path: Path) -> WeightTask:
    """A stack of width 64 with correlated rows."""

    def model(folder: Path) -> Path:
        onnx.save(stack(64, 1), folder / "small.onnx")
        return folder / "small.onnx"

    def rows(count: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {"input": (rng.normal(size=(count, 8)) @ rng.normal(size=(8, 64))).astype(np.float32)}

    return WeightTask(
        "small", "shapes", model, lambda: [rows(32, seed) for seed in range(10)], sized=lambda count: rows(count, 99)
    )


def test_tasks_and_configurations_are_named_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [task.name for task in find(tmp_path)[0]] == ["tiny_lm", "stack1024", "encoder384", "matmul4096"]
    named = {*CONFIGS, *PEERS}
    for chosen in (QUICK, TIMED, METHODS, FORMS, SCORED):
        assert set(chosen) <= named
    for pairs in (weight_tables.PAIRS, weight_tables.COSTS):
        assert {name for pair in pairs for name in pair} <= named
    assert main(["--task", "nonsense", "--zoo", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no task 'nonsense'; there are tiny_lm")


def test_a_task_is_measured_with_what_its_rows_cost(small: WeightTask, tmp_path: Path) -> None:
    found = measure(replace(small, configs=("w4 rtn", "w4 gptq")), tmp_path / "work", Short(False, False))
    rtn, gptq = found["rows"]
    assert found["elements"] == 2 * 64 * 64
    assert rtn["bits"] == pytest.approx(4 + 32 / 32)
    assert gptq["sqnr_db"] > rtn["sqnr_db"] > 10
    assert set(rtn["latency"]) == {"1", "32", "256"} and rtn["processor_seconds"] > 0
    text = weight_tables.render({"machine": {}, "settings": {}, "left_out": [], "workloads": [found]})
    assert "| onnxq |        w4 rtn |" in text and "The same" not in text and "Failures" not in text


@needs_runtime("1.28", "has no quantizer that is told the bits")
def test_onnxruntimes_quantizer_runs_in_a_process_and_takes_5_bits(small: WeightTask, tmp_path: Path) -> None:
    model, feeds = small.model(tmp_path), write_feeds(small.feeds(), tmp_path / "feeds")
    output = tmp_path / "out.onnx"
    paths = {"model": str(model), "feeds": str(feeds), "output": str(output)}
    done = run_job("weight-peer", config="4 bits rtn symmetric", **paths)
    assert done.error is None and done.values["processor_seconds"] >= 0
    assert packed_bits(output) == pytest.approx(5.0)
    assert packed_bits(model) is None and matrix_elements(output) == 0
    open_session(output).run(None, small.sized(3))


def test_a_peer_without_its_environment_is_a_row_with_the_reason(
    small: WeightTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(weight_peers.venv, "create", no_space)
    python, error = environment(tmp_path / "none")
    assert error == "no environment for the peer: no space left" and tmp_path in python.parents
    monkeypatch.setattr("benchmarks.weight_only.ENVIRONMENT", tmp_path / "none")
    found = measure(replace(small, configs=("4 bits gptq",)), tmp_path / "work", Short(False, True))
    assert found["rows"][0]["error"] == error
    text = weight_tables.render({"machine": {}, "settings": {}, "left_out": [], "workloads": [found]})
    assert "neural-compressor 4 bits gptq: no environment for the peer: no space left" in text


def test_divergence_is_that_of_the_formula(small: WeightTask, tmp_path: Path) -> None:
    model, other = small.model(tmp_path), tmp_path / "other.onnx"
    changed = onnx.load(model)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith("down.weight") or tensor.name.endswith("1.weight"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.1, tensor.name))
    onnx.save(changed, other)
    feed = small.sized(5)
    p, q = (np.exp(open_session(path).run(None, feed)[0].astype(np.float64)) for path in (model, other))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    assert divergence(model, other, [feed]) == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-6)
    assert divergence(model, model, [feed]) == 0


def row(by: str, config: str, ratio: float, **figures: Any) -> dict[str, Any]:
    known = {"metric": 20.0, "sqnr_db": 20.0, "bytes": 1000, "bits": 5.0, "processor_seconds": 2.0, "peak_bytes": 10**8}
    return {"by": by, "config": config, "error": None, **known, "latency": {"1": {"ratio": ratio}}, **figures}


def test_same_forms_and_same_methods_are_set_against_each_other() -> None:
    workload = {
        "name": "task",
        "metric": "perplexity",
        "elements": 10,
        "samples": 3,
        "float": {"metric": 18.0, "bytes": 4000, "median_ms": {"1": 1.0}},
        "rows": [
            row("onnxq", "w4 rtn", 3.0),
            row("onnxq", "w4 gptq", 3.0, divergence=0.01, exact_metric=19.5),
            row("onnxruntime", "4 bits rtn symmetric", 2.0),
            row("neural-compressor", "4 bits gptq", 2.0, processor_seconds=30.0),
        ],
    }
    text = weight_tables.render({"machine": {}, "settings": {}, "left_out": [], "workloads": [workload]})
    assert "| task | 4 bits, blocks of 32, symmetric | 1.50x |" in text
    assert "| task |   GPTQ |   2.0 |              30.0 |         15.0x |" in text
    assert "0.01000" in text and "19.5000" in text
