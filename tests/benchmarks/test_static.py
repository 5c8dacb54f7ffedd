"""The command: its tasks, its errors, and the peer on a model of the project in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.feeds import read_feeds, repeated, write_feeds
from benchmarks.jobs import peak_bytes, run_job
from benchmarks.machine import facts
from benchmarks.static import main
from benchmarks.workloads import ROOT, find, negative_log_likelihood


def test_without_a_zoo_the_other_tasks_remain(tmp_path: Path) -> None:
    workloads, left_out = find(tmp_path)
    assert [workload.name for workload in workloads] == [
        "mobilenet_v2",
        "resnet50",
        "digits_dsconv",
        "digits_mlp",
        "digits_resnet",
        "text_encoder",
        "text_lstm",
        "tiny_lm",
    ]
    assert left_out == ["the zoo is absent: its tasks are left out (--zoo FOLDER names it)"]


def test_an_unknown_task_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--task", "nonsense", "--zoo", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no task 'nonsense'; there are mobilenet_v2")


def test_list_names_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--zoo", str(tmp_path)]) == 0
    assert "digits_mlp" in capsys.readouterr().out.splitlines()


def test_the_float_model_scores_as_it_should(tmp_path: Path) -> None:
    (mlp,) = (workload for workload in find(tmp_path)[0] if workload.name == "digits_mlp")
    assert mlp.score is not None
    assert mlp.score(mlp.model(tmp_path)) == pytest.approx(0.9866, abs=0.002)
    assert len(mlp.feeds()) == 200


def test_a_language_model_is_scored_by_the_likelihood_of_what_follows(tmp_path: Path) -> None:
    (lm,) = (workload for workload in find(tmp_path)[0] if workload.name == "tiny_lm")
    assert lm.metric == "nll" and not lm.higher_is_better and lm.score is not None
    # Far from the unigram level, ln 324.
    assert 1.5 < lm.score(lm.model(tmp_path)) < 3.5
    assert len(lm.feeds()) == 64 and set(lm.feeds()[0]) == {"input_ids"}


def test_likelihood_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 5, (3, 4, 7)).astype(np.float32), rng.integers(0, 7, (3, 4))
    chances = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    expected = -np.mean([np.log(chances[n, s, labels[n, s]]) for n in range(3) for s in range(4)])
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-6)
    assert negative_log_likelihood(np.zeros((2, 5, 8), np.float32), np.zeros((2, 5), int)) == pytest.approx(np.log(8))


def test_the_peer_quantizes_in_a_process_of_its_own(tmp_path: Path) -> None:
    with np.load(ROOT / "calibration_data" / "digits_mlp.npz") as arrays:
        feeds = write_feeds(({"pixels": row[None]} for row in arrays["pixels"][:8]), tmp_path / "feeds")
    output = tmp_path / "out.onnx"
    model = ROOT / "models" / "digits_mlp.onnx"
    done = run_job("peer", config="u8s8 qdq", model=str(model), feeds=str(feeds), output=str(output))
    assert done.error is None
    assert 0 < done.values["calibrate_seconds"] < done.values["seconds"]
    assert done.peak_bytes is None or done.peak_bytes > 10**7
    assert output.stat().st_size < model.stat().st_size / 2


def test_a_job_that_breaks_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = run_job("peer", config="u8s8 qdq", model=str(tmp_path / "none.onnx"), feeds=str(tmp_path), output="out.onnx")
    assert done.values == {}
    assert done.error is not None and "none.onnx" in done.error and "\n" not in done.error


def test_feeds_keep_their_order_and_start_again(tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 2), number, np.float32)} for number in range(3)]
    folder = write_feeds(repeated(feeds, 7), tmp_path / "feeds")
    assert [int(feed["x"][0, 0]) for feed in read_feeds(folder)] == [0, 1, 2, 0, 1, 2, 0]


def test_facts_name_the_versions_and_not_the_machine() -> None:
    found = facts()
    assert {"cpu", "vnni", "date", "onnxruntime", "onnxq"} <= set(found)
    assert "host" not in " ".join(found)


def test_peak_memory_follows_an_allocation() -> None:
    if peak_bytes() is None:
        pytest.skip("no /proc on this system")
    script = (
        "import numpy; from benchmarks.jobs import peak_bytes; x = numpy.ones({}, numpy.uint8); print(peak_bytes())"
    )
    small, large = (
        int(subprocess.check_output([sys.executable, "-c", script.format(size)], cwd=ROOT)) for size in (1, 10**8)
    )
    assert large - small == pytest.approx(10**8, rel=0.1)
