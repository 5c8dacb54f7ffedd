"""Errors and latencies on models whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure import MIN_ROUNDS, _latency, alternate, compare, decibels


def scaled(path: Path, factor: float) -> Path:
    """A model that multiplies its input (1, 4) by a factor."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(5)]


def test_ten_percent_off_is_twenty_decibels(tmp_path: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    error = compare(scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.1), feeds)
    assert error.sqnr_db == pytest.approx(20, abs=1e-3)
    assert error.top1_agreement == 1


def test_equal_models_have_no_error(tmp_path: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    error = compare(scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.0), feeds)
    assert error.sqnr_db == math.inf


def test_the_opposite_answer_never_agrees(tmp_path: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    error = compare(scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", -1.0), feeds)
    assert error.top1_agreement == 0
    assert error.sqnr_db == pytest.approx(decibels(1, 4), abs=1e-3)


def test_a_model_that_gives_nan_has_no_sqnr(tmp_path: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    error = compare(scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", math.nan), feeds)
    assert math.isnan(error.sqnr_db)


def test_alternation_runs_every_model_equally_often(tmp_path: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    models = {name: scaled(tmp_path / f"{name}.onnx", 1.0) for name in ("float", "a", "b")}
    latency = alternate(models, feeds, seconds=0)
    assert [value.rounds for value in latency.values()] == [15, 15, 15]  # the least that counts
    assert latency["float"].ratio == 1
    assert latency["a"].median_ms > 0


def test_disturbed_rounds_do_not_count() -> None:
    calm = [True] * MIN_ROUNDS + [False] * 2 * MIN_ROUNDS
    reference = [2.0] * len(calm)
    taken = [1.0 if is_calm else 8.0 for is_calm in calm]
    latency = _latency(reference, taken, [True] * len(calm), calm)
    assert (latency.median_ms, latency.ratio, latency.rounds) == (1000.0, 2.0, MIN_ROUNDS)


def test_with_too_few_calm_rounds_all_count() -> None:
    calm = [True] + [False] * MIN_ROUNDS
    latency = _latency([2.0] * len(calm), [1.0] + [8.0] * MIN_ROUNDS, calm, calm)
    assert (latency.ratio, latency.rounds) == (0.25, MIN_ROUNDS + 1)
