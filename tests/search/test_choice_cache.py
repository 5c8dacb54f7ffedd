"""The same model, samples and machine get the same answer again, without measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import Verdict
from onnxq.plan.decisions import Plan
from onnxq.recipe.recipe import Recipe
from onnxq.report.results import QuantizeResult
from onnxq.search import choice_cache, choosing
from onnxq.verify.benchmark import Timing
from tests.search.test_auto import drawn, mlp


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How often ``auto`` really measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counted: list[int] = []
    real = choosing.auto.choose
    monkeypatch.setattr(choosing.auto, "choose", lambda job: (counted.append(1), real(job))[1])
    return counted


def auto(**options: Any) -> QuantizeResult:
    return onnxq.quantize(mlp(), calibration=options.pop("samples", drawn(32, 64)), threads=1, seconds=0.01, **options)


def skip_if_not_kept(result: QuantizeResult) -> None:
    """Other work on the machine can make float the fastest, or the choice slower than it: neither is kept."""
    if result.preset == "float" or (result.latency_ratio or 0.0) < 0.9:
        pytest.skip("nothing was faster than float on this machine, so that nothing is kept")


def test_a_second_run_gives_the_same_model_and_table(searches: list[int]) -> None:
    first, second = auto(), auto()
    skip_if_not_kept(first)
    assert searches == [1]
    assert first.model is not None and second.model is not None
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert json.dumps(first.candidates) == json.dumps(second.candidates)
    assert first.latency_ratio == second.latency_ratio
    assert choice_cache.REUSED in second.warnings and choice_cache.REUSED not in first.warnings


@pytest.mark.parametrize(
    "other",
    [
        lambda: auto(cache=False),
        lambda: auto(samples=drawn(32, 64, count=5)),
        lambda: auto(min_sqnr=3.0),
        lambda: auto(exclude=["mid"]),
    ],
    ids=["no cache", "other samples", "other limits", "other recipe"],
)
def test_what_differs_is_measured_anew(other: Callable[[], QuantizeResult], searches: list[int]) -> None:
    auto()
    other()
    assert searches == [1, 1]


@pytest.mark.parametrize(("ratio", "kept"), [(1.4, True), (0.7, False)])
def test_what_came_out_slower_than_float_is_not_kept(
    ratio: float, kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "choice.json"
    monkeypatch.setattr(choice_cache, "place_of", lambda job: place)
    timings = [Timing("float", 1.0, 1.0, 1.0, 9, 1.0, 100), Timing("w8a8", 1 / ratio, 1.0, 1.0, 9, ratio, 50)]
    model = io.load(mlp())
    chosen = Candidate("w8a8", model, Recipe(), "qdq", Plan({}, {}), verdict=Verdict(timings=timings))
    choice_cache.remember(SimpleNamespace(statistics=None), chosen)  # type: ignore[arg-type]
    assert place.exists() == kept


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"preset": 3, "recipe": 4}'])
def test_a_damaged_file_is_measured_anew(content: bytes, searches: list[int], tmp_path: Path) -> None:
    auto()
    for path in (tmp_path / "cache").rglob("choice-*.json"):
        path.write_bytes(content)
    result = auto()
    assert searches == [1, 1] and np.isfinite(result.latency_ratio or 0.0)


@pytest.mark.parametrize("field", ["candidates", "choices", "preset", "size"])
def test_damaged_figures_are_measured_anew(field: str, searches: list[int], tmp_path: Path) -> None:
    skip_if_not_kept(auto())
    (kept,) = (tmp_path / "cache").rglob("choice-*.json")
    known = json.loads(kept.read_text("utf8"))
    known[field] = [{"name": {}}]
    kept.write_text(json.dumps(known), "utf8")
    auto()
    assert searches == [1, 1]
