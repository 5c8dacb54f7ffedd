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


@pytest.mark.parametrize(("limit", "code"), [("0.0001", 0), ("1000", 3)])
def test_benchmark(run: Callable[..., Result], models: list[Path], limit: str, code: int) -> None:
    a, b, data = models
    done = run("benchmark", a, b, "-c", data, "--seconds", "0.05", "--min-speedup", limit)
    assert done.exit_code == code
    assert "median ms" in done.stdout
    assert ("less than --min-speedup 1000" in done.stderr) == (code == 3)
