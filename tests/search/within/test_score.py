"""The metric of a search: by name, by import, by function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import ModelError, RecipeError
from onnxq.runtime.session import open_session
from onnxq.search.within.score import Runner, TaskMetric, search_metric
from onnxq.verify.compare import Comparison
from tests.graph.build import build

MODEL = build("g (float[N] x) => (float[N] y, float[N] z) { y = Neg (x) z = Add (x, x) }").SerializeToString()


def test_a_runner_gives_outputs_by_name() -> None:
    runner = Runner(open_session(MODEL, threads=1))
    assert (runner.input_names, runner.output_names) == (["x"], ["y", "z"])
    found = runner({"x": np.array([1.0, 2.0], np.float32)})
    np.testing.assert_equal(found, {"y": np.float32([-1, -2]), "z": np.float32([2, 4])})


def test_a_metric_is_a_number_of_whatever_type() -> None:
    metric = search_metric(lambda runner: runner({"x": np.float32([3])})["z"][0], 0.1, None)
    score = metric.of(open_session(MODEL, threads=1))
    assert isinstance(score, float)
    assert score == 6.0


def test_a_refused_feed_keeps_its_own_message() -> None:
    metric = search_metric(lambda runner: runner({"wrong": np.float32([3])})["z"][0], 0.1, None)
    with pytest.raises(ModelError, match="cannot run it"):
        metric.of(open_session(MODEL, threads=1))


@pytest.mark.parametrize(("given", "name"), [(None, "top1"), ("top1", "top1"), ("perplexity", "perplexity")])
def test_names_stand_for_the_comparison_with_float(given: str | None, name: str) -> None:
    assert search_metric(given, 0.5, None) == TaskMetric(name)


def test_sqnr_is_limited_in_decibels() -> None:
    assert search_metric("sqnr", None, 20.0) == TaskMetric("sqnr")


def test_a_function_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scores_of_mine.py").write_text("class My:\n    def score(runner):\n        return 4\n")
    monkeypatch.chdir(tmp_path)
    metric = search_metric("scores_of_mine:My.score", 0.5, None)
    assert (metric.name, metric.of(open_session(MODEL, threads=1))) == ("scores_of_mine:My.score", 4.0)


def test_a_module_that_fails_is_named() -> None:
    with pytest.raises(RecipeError, match=r"--metric json:nothing: cannot be imported: AttributeError"):
        search_metric("json:nothing", 0.5, None)


@pytest.mark.parametrize(
    ("name", "drop", "words"),
    [
        ("top1", 0.5, "top1 falls by 0.5 points"),
        ("accuracy", -0.5, "accuracy rises by 0.5 points"),
        ("perplexity", 0.25, "perplexity rises by 0.25"),
        ("perplexity", -0.25, "perplexity falls by 0.25"),
        ("divergence", 0.01, "divergence rises by 0.01"),
    ],
)
def test_a_drop_in_words(name: str, drop: float, words: str) -> None:
    assert TaskMetric(name).change(drop) == words


def test_the_fall_of_a_figure_is_in_its_own_units() -> None:
    found = Comparison({}, 1, 30.0, None, None, {"float": 0.9, "quantized": 0.88}, {"float": 15.0, "quantized": 15.5})
    assert TaskMetric("accuracy").fall(found) == pytest.approx(2.0)
    assert TaskMetric("perplexity").fall(found) == pytest.approx(0.5)
    with pytest.raises(RecipeError, match="--metric divergence: cannot be given"):
        TaskMetric("divergence").fall(found)
