"""The search on real networks with planted layers: what it finds, what it writes, and what survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError, VerificationError
from onnxq.pipeline.candidate import Candidate
from onnxq.plan.decisions import Plan
from onnxq.recipe.recipe import Recipe
from onnxq.search import choosing
from onnxq.search.within.score import Runner
from tests.graph.build import Array, build, run, weights
from tests.runtime_version import TWO_BITS

WIDTH, LAYERS, BAD, DB = 48, 5, 3, 26.0


def network(*, dead: float = 300.0) -> onnx.ModelProto:
    """Dense layers with Relu between; one has a weight of 300 for an input that is always 0.

    By tensor, that weight takes all levels and leaves none to the others; by channel it does so in one column.
    """
    rng = np.random.default_rng(3)
    lines, arrays, value = [], {}, "x"
    for i in range(LAYERS):
        weight = (rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH / 2)).astype(np.float32)
        bias = (rng.normal(size=WIDTH) * 0.1).astype(np.float32)
        if i == BAD - 1:
            weight[:, 0], bias[0] = 0.0, -1.0
        if i == BAD:
            weight[0, :] = dead
        arrays |= {f"w{i}": weight, f"b{i}": bias}
        lines.append(f"[layer{i}] g{i} = Gemm ({value}, w{i}, b{i})")
        if i < LAYERS - 1:
            lines.append(f"[relu{i}] r{i} = Relu (g{i})")
        value = f"r{i}"
    lines[-1] = lines[-1].replace(f"g{LAYERS - 1} =", "y =")
    return build(f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ {' '.join(lines)} }}", **arrays)


def feeds(count: int = 10, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(16, WIDTH)).astype(np.float32)} for _ in range(count)]


def quantize(model: object = None, **options: Any) -> onnxq.QuantizeResult:
    given = {"preset": "w8a8", "per_channel": False, "calibration": feeds(), "benchmark": False, "threads": 1}
    return onnxq.quantize(network() if model is None else model, **{**given, **options})


@pytest.fixture(scope="module")
def found() -> onnxq.QuantizeResult:
    return quantize(min_sqnr=DB)


def test_the_planted_layer_alone_leaves_the_integers(found: onnxq.QuantizeResult) -> None:
    assert found.sqnr_db is not None
    assert found.sqnr_db >= DB
    kept = [name for name, op_type, _ in found.kept_float if op_type == "Gemm"]
    assert kept == [f"layer{BAD}"]
    assert quantize(force=True).sqnr_db < 15.0, "without the search it is much worse"


def test_the_trail_says_what_was_tried_what_it_gave_and_what_became_of_it(found: onnxq.QuantizeResult) -> None:
    trail = json.loads(json.dumps(found.to_dict()["trail"]))
    assert trail[0]["tried"] == "as given"
    assert not trail[0]["inside"]
    assert {"range minmax", "equalization", "AdaRound"} <= {step["tried"] for step in trail}
    chosen = [step for step in trail if "chosen" in step["verdict"]]
    assert len(chosen) == 1
    assert chosen[0]["tried"].startswith(f"layer{BAD} ")
    assert chosen[0]["sqnr_db"] == pytest.approx(found.sqnr_db)
    assert chosen[0]["size"] == found.size_after
    assert chosen[0]["estimated_us"] > trail[0]["estimated_us"]
    page = found.summary()
    assert "time, estimated" in page
    assert chosen[0]["tried"] in page


def test_the_recipe_that_was_found_makes_the_same_model_at_once(found: onnxq.QuantizeResult) -> None:
    assert found.recipe is not None
    again = quantize(recipe=Recipe.from_yaml(found.recipe), per_channel=None)
    assert not again.trail, "it is inside the limit as given"
    assert again.model is not None
    assert found.model is not None
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_the_search_is_deterministic(found: onnxq.QuantizeResult) -> None:
    again = quantize(min_sqnr=DB)
    assert again.model.SerializeToString() == found.model.SerializeToString()
    shown = [[{k: v for k, v in step.items() if k != "seconds"} for step in result.trail] for result in (again, found)]
    assert shown[0] == shown[1]


def test_by_channel_nothing_needs_to_be_searched() -> None:
    result = quantize(network(dead=0.5), per_channel=True, min_sqnr=25.0)
    assert result.trail == []
    assert result.recipe is None


def test_the_limit_on_the_drop_is_kept_by_a_users_metric() -> None:
    """A function brings its own data; its fall is in its own units."""
    others = feeds(3, seed=9)
    model = network()
    reference = [run(model.SerializeToString(), feed)["y"] for feed in others]
    seen: list[float] = []

    def closeness(runner: Runner) -> float:
        assert (runner.input_names, runner.output_names) == (["x"], ["y"])
        error = sum(
            float(np.abs(runner(feed)["y"] - want).mean()) for feed, want in zip(others, reference, strict=True)
        )
        seen.append(-error)
        return -error

    result = quantize(model, metric=closeness, max_drop=0.2)
    assert seen[0] == pytest.approx(0.0, abs=1e-4), "the float model comes first"
    assert seen[1] < -0.2, "the model as given is outside"
    chosen = next(step for step in result.trail if "chosen" in step["verdict"])
    assert chosen["drop"] <= 0.2
    assert seen[-1] == -chosen["drop"] + seen[0], "the model that is given was measured last"
    assert closeness(FakeRunner(result.model)) == pytest.approx(seen[-2], abs=0.02)


class FakeRunner(Runner):
    """A runner over a model in memory."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._content = model.SerializeToString()
        self.input_names, self.output_names = ["x"], ["y"]

    def __call__(self, feed: dict[str, Any]) -> dict[str, Any]:
        return run(self._content, feed)


def test_unchanged_decisions_are_the_metric_without_labels() -> None:
    result = quantize(max_drop=5.0)
    assert result.comparison is not None
    assert result.comparison.possible_agreement is not None
    assert result.comparison.possible_agreement >= 0.95
    assert result.trail[0]["drop"] > 5.0


def test_an_impossible_limit_fails_with_the_best_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(
        VerificationError, match=r"no recipe of \d+ .*keeps --min-sqnr 200; the best .*SQNR is \d+\.\d dB"
    ):
        quantize(min_sqnr=200.0, output=output)
    assert list(tmp_path.iterdir()) == []


def test_by_force_the_best_is_written(tmp_path: Path) -> None:
    result = quantize(min_sqnr=200.0, output=tmp_path / "out.onnx", force=True)
    assert (tmp_path / "out.onnx").is_file()
    assert result.sqnr_db is not None
    assert result.sqnr_db > DB
    assert any("forced although" in line for line in result.warnings)


def test_without_time_the_state_stays_and_a_later_run_goes_on(tmp_path: Path) -> None:
    output, state = tmp_path / "out.onnx", tmp_path / "out.onnx.search.json"
    with pytest.raises(VerificationError, match=r"--budget: time limit of 0 s reached, --resume goes on"):
        quantize(min_sqnr=DB, output=output, budget=0.0)
    assert state.is_file()
    assert quantize(min_sqnr=DB, output=output, resume=True).trail
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx"]


def test_a_state_of_another_run_is_left_unused_and_that_is_said(tmp_path: Path) -> None:
    state = tmp_path / "s.json"
    with pytest.raises(VerificationError, match="--budget"):
        quantize(min_sqnr=DB, budget=0.0, search_state=state)
    result = quantize(min_sqnr=DB - 1, search_state=state, resume=True)
    assert any("another model, data or recipe" in line for line in result.warnings)


def test_a_limit_on_what_the_model_does_not_have_is_said_at_once() -> None:
    text = "g (float[N,64] x) => (int64[N] y) { a = Gemm (x, w) y = ArgMax <axis = 1, keepdims = 0> (a) }"
    model = build(text, w=np.eye(64, dtype=np.float32))
    samples = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(4)]
    with pytest.raises(VerificationError, match="--min-sqnr: the model has no real-valued output to measure"):
        quantize(model, calibration=samples, min_sqnr=30.0)


@TWO_BITS
def test_perplexity_of_a_language_model_must_not_rise(root: Path) -> None:
    model, data = root / "models" / "tiny_lm.onnx", root / "calibration_data" / "tiny_lm.npz"
    with pytest.raises(VerificationError, match=r"perplexity rises by \d\.\d+; .*outside --max-drop 0(;|$)"):
        quantize(onnx.load(model), calibration=data, preset="w2", metric="perplexity", max_drop=0.0)


def test_dynamic_scales_are_searched_too() -> None:
    result = quantize(preset="w8a8-dynamic", min_sqnr=DB)
    assert result.sqnr_db is not None
    assert result.sqnr_db >= DB
    assert [name for name, op_type, _ in result.kept_float if op_type == "Gemm"] == [f"layer{BAD}"]


def refused_by_accuracy(job: Any) -> Candidate:
    """What ``auto`` gives where static integers are faster and miss the limits."""
    candidates = [
        {"name": "w8a8", "latency_ratio": 3.0, "size_bytes": 9, "loss": 0.2, "verdict": "4.6 dB"},
        {"name": "float", "latency_ratio": 1.0, "size_bytes": 9, "loss": 0.0, "verdict": "chosen"},
    ]
    made = Candidate("float", None, job.recipe, "qdq", Plan({}, {}), content=job.prepared.original)
    made.candidates = candidates
    return made


@pytest.mark.parametrize(("worth", "preset"), [(0.0, "w8a8"), (1e9, "float")])
def test_where_auto_gives_float_back_for_accuracy_static_integers_are_searched(
    monkeypatch: pytest.MonkeyPatch, worth: float, preset: str
) -> None:
    monkeypatch.setattr(choosing.auto, "choose", refused_by_accuracy)
    monkeypatch.setattr(choosing, "_WORTH_IT", worth)
    result = quantize(preset="auto", benchmark=True, seconds=0.01, min_sqnr=DB)
    assert result.preset == preset
    assert bool(result.trail) == (preset == "w8a8")
    (chosen,) = [row for row in result.candidates if row["verdict"] == "chosen"]
    assert chosen["name"].split(" ")[0] == preset


def test_what_a_search_found_on_few_samples_is_judged_on_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that hardly vary: one held-out sample cannot tell that 8 bits lose all that differs between samples."""
    text = "g (float[N,64] x) => (float[N,8] y) { a = MatMul (x, w) r = Relu (a) b = MatMul (r, v) y = Add (b, far) }"
    far = np.linspace(-2000, 2000, 8).astype(np.float32)
    model = build(text, w=weights(64, 64), v=weights(64, 8) / 1000, far=far)
    samples = [{"x": np.random.default_rng(i).normal(size=(1, 64)).astype(np.float32)} for i in range(16)]
    monkeypatch.setattr(choosing.auto, "choose", refused_by_accuracy)
    monkeypatch.setattr(choosing, "_WORTH_IT", 0.0)
    judged: list[Any] = []

    def widely(content: object, job: Any) -> Any:
        judged.append(content)
        return SimpleNamespace(comparison=SimpleNamespace(loss=0.4, finite=True, outside=lambda _: "a loss of 40.0 %"))

    options: dict[str, Any] = {"calibration": samples, "preset": "auto", "threads": 1, "cache": False}
    found = onnxq.quantize(model, **options)
    monkeypatch.setattr(choosing, "compared_widely", widely)
    refused = onnxq.quantize(model, **options)
    assert judged and refused.preset == "float"
    assert any("is outside on more samples: a loss of 40.0 %" in line for line in refused.warnings)
    if found.preset != "float":
        assert found.comparison is not None and found.comparison.samples > 8 and not found.comparison.outside()


def test_auto_with_a_users_metric_is_searched_from_static_integers() -> None:
    result = quantize(preset="auto", metric=agreement, max_drop=0.15)
    assert result.preset == "w8a8"
    assert [name for name, op_type, _ in result.kept_float if op_type == "Gemm"] == [f"layer{BAD}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "top1"}, "--metric: there is no limit to hold it to; pass --max-drop"),
        ({"metric": "sqnr", "max_drop": 1.0}, "the limit of SQNR is --min-sqnr"),
        (
            {"metric": "tpo1", "max_drop": 1.0},
            "no 'tpo1'; there are top1, sqnr, accuracy, perplexity",
        ),
        ({"metric": "no_such_module:f", "max_drop": 1.0}, "cannot be imported: ModuleNotFoundError"),
        ({"metric": "math:pi", "max_drop": 1.0}, "is a float, not a function"),
        ({"metric": 3, "max_drop": 1.0}, "metric is 3 .int.; it takes"),
        ({"resume": True, "search_state": "s"}, "no search to go on with; pass --max-drop or --min-sqnr"),
        ({"resume": True, "min_sqnr": 9.0}, "no search to go on with; name its file with --search-state"),
        ({"metric": "perplexity", "max_drop": 1.0}, "--metric perplexity: cannot be given"),
        ({"metric": lambda runner: "good", "max_drop": 1.0}, "it returned 'good', which must be a number"),
        ({"metric": lambda runner: float("nan"), "max_drop": 1.0}, "it returned NaN"),
        ({"metric": lambda runner: 1 // 0, "max_drop": 1.0}, "it raised ZeroDivisionError"),
    ],
)
def test_a_metric_that_makes_no_sense_is_said_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        quantize(**options)


def test_a_metric_is_held_to_its_limit_without_samples_too() -> None:
    scores = iter([1.0, 0.0])
    with pytest.raises(VerificationError, match="falls from 1 to 0 and --max-drop allows 0.5"):
        onnxq.quantize(
            network(), preset="w8", metric=lambda runner: next(scores), max_drop=0.5, benchmark=False, threads=1
        )


@cache
def float_outputs() -> list[Array]:
    """Of samples that only the metric knows."""
    content = network().SerializeToString()
    return [run(content, feed)["y"] for feed in feeds(2, seed=5)]


def agreement(runner: Runner) -> float:
    """A metric that takes its time: the error on samples of its own."""
    time.sleep(float(os.environ.get("PAUSE", "0")))
    pairs = zip(feeds(2, seed=5), float_outputs(), strict=True)
    return -sum(float(np.abs(runner(feed)["y"] - wanted).mean()) for feed, wanted in pairs)


SCRIPT = """
from tests.search.within.test_within_limits import quantize
metric = "tests.search.within.test_within_limits:agreement"
quantize("float.onnx", output="out.onnx", metric=metric, max_drop=0.15, resume=True)
"""


def test_a_search_that_is_killed_midway_is_resumed_to_the_same_model(tmp_path: Path) -> None:
    given, output = tmp_path / "float.onnx", tmp_path / "out.onnx"
    given.write_bytes(network().SerializeToString())
    straight = quantize(given, output=tmp_path / "straight.onnx", metric=agreement, max_drop=0.15)
    assert len(straight.trail) > 6

    path = f"{Path(__file__).resolve().parents[3]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "PAUSE": "0.1"}
    state = tmp_path / "out.onnx.search.json"
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and (not state.exists() or len(json.loads(state.read_text())["outcomes"]) < 3):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    left = json.loads(state.read_text())["outcomes"]
    assert 3 <= len(left) < len(straight.trail)
    assert not output.exists()

    scored: list[float] = []
    metric = watched(scored)
    resumed = quantize(given, output=output, metric=metric, max_drop=0.15, resume=True)
    assert output.read_bytes() == (tmp_path / "straight.onnx").read_bytes()
    assert [step["drop"] for step in resumed.trail] == [step["drop"] for step in straight.trail]
    # The float model, the model as given and the one that is written are measured again, and what was not known.
    assert len(scored) == 3 + len(straight.trail) - len(left)
    assert not state.exists()


def watched(scored: list[float]) -> Callable[[Runner], float]:
    """The same metric, by the same name, which remembers what it gave."""

    def metric(runner: Runner) -> float:
        scored.append(agreement(runner))
        return scored[-1]

    metric.__module__, metric.__qualname__ = "tests.search.within.test_within_limits", "agreement"
    return metric
