"""The same model, samples and machine get the same answer again, without measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.report.results import QuantizeResult
from onnxq.search import choice_cache, choosing
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


def test_a_second_run_gives_the_same_model_and_table(searches: list[int]) -> None:
    first, second = auto(), auto()
    if first.preset == "float":
        pytest.skip("float was given back on this machine, which is measured anew")
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


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"preset": 3, "recipe": 4}'])
def test_a_damaged_file_is_measured_anew(content: bytes, searches: list[int], tmp_path: Path) -> None:
    auto()
    for path in (tmp_path / "cache").rglob("choice-*.json"):
        path.write_bytes(content)
    result = auto()
    assert searches == [1, 1] and np.isfinite(result.latency_ratio or 0.0)
