"""What GPTQ costs is known before, and layers that are too large for it are rounded otherwise and said."""

from __future__ import annotations

import numpy as np
import pytest

import onnxq
from onnxq.plan.weights import effort, pack
from onnxq.plan.weights.effort import expected, too_large
from onnxq.recipe.recipe import Recipe
from tests.graph.build import build, weights

TEXT = "g (float[N, 64] x) => (float[N, 48] y) { [first] h = MatMul (x, a) [second] y = MatMul (h, b) }"


def test_effort_grows_with_the_layers() -> None:
    assert expected([]) == effort.Effort(0.0, 0.0)
    assert expected([(64, 64)]).seconds == 0.0
    one, two, wide = (expected(shapes) for shapes in ([(4096, 4096)], [(4096, 4096)] * 2, [(4096, 9216)]))
    assert one.seconds > 0.0
    assert one.gigabytes == two.gigabytes < wide.gigabytes
    assert 2.0 < wide.gigabytes < 3.0


@pytest.mark.parametrize(("inputs", "memory", "fits"), [(9216, 1e-6, True), (20000, 2.0, False), (20000, 8.0, True)])
def test_what_is_too_large_follows_the_memory_that_may_be_taken(inputs: int, memory: float, fits: bool) -> None:
    reason = too_large(inputs, Recipe(max_memory=memory))
    assert bool(reason) is not fits
    if reason:
        assert reason == "the second moment of its 20000 inputs takes 3.2 GiB, and --max-memory is 2"


def test_a_layer_that_is_too_large_is_rounded_without_its_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "_ALWAYS_GIB", 0.0)
    monkeypatch.setattr(effort, "moment_bytes", lambda inputs: 2**30 * (1 if inputs == 64 else 3))
    model = build(TEXT, a=weights(64, 128), b=weights(128, 48))
    data = [{"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(6)]
    result = onnxq.quantize(model, calibration=data, preset="w4", benchmark=False)
    by_name = {row["node"]: row["algorithm"] for row in result.weights}
    assert by_name == {"first": "gptq", "second": "kquant"}
    assert [line for line in result.warnings if "--max-memory is 2: rounded by kquant instead of gptq" in line]


def test_a_long_step_says_what_it_is_expected_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "expected", lambda shapes: effort.Effort(84.2 * len(list(shapes)), 2.71))
    model = build(TEXT, a=weights(64, 128), b=weights(128, 48))
    data = [{"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(6)]
    seen: list[tuple[str, int, int | None]] = []
    onnxq.quantize(model, calibration=data, preset="w4", benchmark=False, progress=lambda *call: seen.append(call))
    told = [call for call in seen if "GPTQ" in call[0]]
    assert told == [("rewrite (GPTQ: about 168 s, 2.7 GB)", 0, 2), ("rewrite (GPTQ: about 168 s, 2.7 GB)", 1, 2)]
