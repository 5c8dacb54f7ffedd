"""What each step takes, and that nothing is taken by none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest

import onnxq
from onnxq.pipeline import clock as room
from onnxq.pipeline.clock import Clock


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves on by a second whenever someone looks at it, and the times that it showed."""
    shown: list[float] = []

    def look() -> float:
        shown.append(float(len(shown)))
        return shown[-1]

    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=look))
    return shown


def test_a_step_inside_another_counts_for_itself_alone(ticks: list[float]) -> None:
    said: list[str] = []
    clock = Clock(lambda name, done, total: said.append(name))
    with clock.around("other"):
        with clock.step("plan"), clock.step("calibrate"):
            pass
        with clock.step("plan"):
            pass
    assert clock.seconds == {"calibrate": 1.0, "plan": 3.0, "other": 3.0}
    assert sum(clock.seconds.values()) == ticks[-1] - ticks[0]
    assert said == ["plan", "calibrate", "plan"]


def test_a_clock_that_shares_another_one_takes_time_inside_its_steps(ticks: list[float]) -> None:
    clock, inner = Clock(None), Clock(None)
    inner.share(clock)
    with clock.around("other"), inner.step("calibrate"):
        pass
    assert clock.seconds == {"calibrate": 1.0, "other": 2.0}


def test_a_step_that_fails_is_accounted_for(ticks: list[float]) -> None:
    clock = Clock(None)
    with pytest.raises(ValueError, match="no"), clock.step("plan"):
        raise ValueError("no")
    assert clock.seconds == {"plan": 1.0}


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }""")
    rng = np.random.default_rng(0)
    for name in "ab":
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(0, 0.1, (64, 64)).astype(np.float32), name)
        )
    return proto


@pytest.mark.parametrize(
    "options", [{"preset": "w8a8"}, {"preset": "w4", "algorithm": "gptq"}, {"preset": "auto"}, {"min_sqnr": 70.0}]
)
def test_the_steps_add_up_to_the_whole(options: dict[str, Any], ticks: list[float], tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    run: Callable[..., Any] = onnxq.quantize
    found = run(
        model(),
        tmp_path / "q.onnx",
        calibration=[{"x": row[None]} for row in samples],
        seconds=0.02,
        force=True,
        **options,
    )
    assert sum(found.seconds.values()) == ticks[-1] - ticks[0]
    assert {"load", "prepare", "other"} <= set(found.seconds)
