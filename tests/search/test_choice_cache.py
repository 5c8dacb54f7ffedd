"""The same model, samples and machine get the same answer again, without measuring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


class MeasuredAnew(Exception):
    """``auto`` was about to measure, with nothing kept that it could take."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which one run has left its choice."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        result = auto()
    if not list(folder.rglob("choice-*.json")):
        # Other work on the machine can make float the fastest, or the choice slower than it: neither is kept.
        pytest.skip(f"nothing was faster than float on this machine ({result.preset}), so that nothing is kept")
    return folder


@pytest.fixture
def choice(kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of that choice in a cache of the test's own, where measuring raises `MeasuredAnew`."""

    def measure(job: object) -> None:
        raise MeasuredAnew

    shutil.copytree(kept, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choosing.auto, "choose", measure)
    (file,) = (tmp_path / "cache").rglob("choice-*.json")
    return file


def auto(**options: Any) -> QuantizeResult:
    return onnxq.quantize(mlp(), calibration=options.pop("samples", drawn(32, 64)), threads=1, seconds=0.01, **options)


def test_a_second_run_gives_the_same_model_and_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    searches: list[int] = []
    real = choosing.auto.choose
    monkeypatch.setattr(choosing.auto, "choose", lambda job: (searches.append(1), real(job))[1])
    first, second = auto(), auto()
    if not list(tmp_path.rglob("choice-*.json")):
        pytest.skip("nothing was faster than float on this machine, so that nothing is kept")
    assert searches == [1]
    assert first.model is not None and second.model is not None
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert json.dumps(first.candidates) == json.dumps(second.candidates)
    assert first.latency_ratio == second.latency_ratio
    assert choice_cache.REUSED in second.warnings and choice_cache.REUSED not in first.warnings


def test_what_is_equal_is_not_measured_again(choice: Path) -> None:
    assert choice_cache.REUSED in auto().warnings


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
def test_what_differs_is_measured_anew(other: Callable[[], QuantizeResult], choice: Path) -> None:
    with pytest.raises(MeasuredAnew):
        other()


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
def test_a_damaged_file_is_measured_anew(content: bytes, choice: Path) -> None:
    choice.write_bytes(content)
    with pytest.raises(MeasuredAnew):
        auto()


@pytest.mark.parametrize("field", ["candidates", "choices", "preset", "size"])
def test_damaged_figures_are_measured_anew(field: str, choice: Path) -> None:
    known = json.loads(choice.read_text("utf8"))
    known[field] = [{"name": {}}]
    choice.write_text(json.dumps(known), "utf8")
    with pytest.raises(MeasuredAnew):
        auto()
