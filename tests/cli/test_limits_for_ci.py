"""compare and benchmark end with 3 where a limit is missed; the result is printed all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from tests.graph.build import build, weights


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }"
    for name, low in (("a", -1.0), ("b", -0.99)):
        onnx.save(build(text, w=weights(64, 64, low=low)), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((3, 64), np.float32))
    return [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "d.npz"]


@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("90", 3)])
def test_compare(run: Callable[..., Result], models: list[Path], limit: str, code: int) -> None:
    a, b, data = models
    done = run("compare", a, b, "-c", data, "--min-sqnr", limit, "--json")
    assert done.exit_code == code
    assert "outputs" in json.loads(done.stdout)
    assert ("lower than --min-sqnr 90" in done.stderr) == (code == 3)


@pytest.fixture
def classes(tmp_path: Path) -> list[Path]:
    """Two classifiers that disagree about one of four samples, which have labels; the first is always right."""
    text = "g (float[N,4] x) => (float[N,4] y) { z = MatMul (x, w) y = Softmax <axis = 1> (z) }"
    other = np.eye(4, dtype=np.float32)[[1, 1, 2, 3]]
    for name, matrix in (("a", np.eye(4, dtype=np.float32)), ("b", other)):
        onnx.save(build(text, w=matrix), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", x=4 * np.eye(4, dtype=np.float32), labels=np.arange(4))
    np.savez(tmp_path / "unlabelled.npz", x=4 * np.eye(4, dtype=np.float32))
    return [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "d.npz", tmp_path / "unlabelled.npz"]


@pytest.mark.parametrize("metric", [[], ["--metric", "top1"], ["--metric", "accuracy"]])
@pytest.mark.parametrize(("limit", "code"), [("25", 0), ("24", 3)])
def test_a_fall_of_the_metric(
    run: Callable[..., Result], classes: list[Path], metric: list[str], limit: str, code: int
) -> None:
    a, b, data, _ = classes
    done = run("compare", a, b, "-c", data, "--max-drop", limit, *metric)
    assert done.exit_code == code
    assert "accuracy" in done.stdout
    assert ("accuracy falls by 25" in done.stderr and "--max-drop allows 24" in done.stderr) == (code == 3)
    assert run("compare", a, a, "-c", data, "--max-drop", "0", *metric).exit_code == 0


def test_agreement_falls_where_there_are_no_labels(run: Callable[..., Result], classes: list[Path]) -> None:
    a, b, _, data = classes
    done = run("compare", a, b, "-c", data, "--max-drop", "1", "--min-sqnr", "200")
    assert done.exit_code == 3
    assert "top-1 agreement falls by 25.00 points" in done.stderr
    assert "lower than --min-sqnr 200" in done.stderr


@pytest.mark.parametrize("metric", ["sqnr", "cosine"])
def test_a_figure_that_falls_in_no_units(run: Callable[..., Result], classes: list[Path], metric: str) -> None:
    a, b, data, _ = classes
    done = run("compare", a, b, "-c", data, "--max-drop", "1", "--metric", metric)
    assert done.exit_code == 2
    assert f"--metric {metric} has no units to fall in" in done.stderr


@pytest.mark.parametrize(("limit", "code"), [("0.0001", 0), ("1000", 3)])
def test_benchmark(run: Callable[..., Result], models: list[Path], limit: str, code: int) -> None:
    a, b, data = models
    done = run("benchmark", a, b, "-c", data, "--seconds", "0.05", "--min-speedup", limit)
    assert done.exit_code == code
    assert "median ms" in done.stdout
    assert ("less than --min-speedup 1000" in done.stderr) == (code == 3)


def test_where_nothing_is_finite_no_limit_is_kept(run: Callable[..., Result], models: list[Path]) -> None:
    a, b, data = models
    with np.load(data) as arrays:
        np.savez(data, **{name: np.full_like(array, np.nan) for name, array in arrays.items()})
    assert run("compare", a, b, "-c", data).exit_code == 0
    done = run("compare", a, a, "-c", data, "--max-drop", "5", "--min-sqnr", "1")
    assert done.exit_code == 3
    assert "--min-sqnr: no output could be measured" in done.stderr
    assert "--max-drop: no output could be judged" in done.stderr
    output = data.with_name("o.onnx")
    done = run("quantize", a, "-c", data, "-o", output, "--no-cache", "--budget", "5")
    assert done.exit_code == 1 and not output.exists()
    assert "no value of the model had a finite number on any sample" in done.stderr
