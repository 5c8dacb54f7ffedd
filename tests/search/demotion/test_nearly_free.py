"""Layers that gain next to no time on integers and cost accuracy stay float, as long as the whole model is as fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.data.feeds import Feed
from onnxq.report.results import QuantizeResult
from onnxq.search import damage
from onnxq.search.demotion import nearly_free
from tests.graph.build import build, weights
from tests.search.test_auto import Times, drawn, stand_in

CHANGED = "mixed (1 float)"

NETWORK = """g (float[N,64] x) => (float[N,128] y) {
    [up] a = MatMul (x, w1) [far] b = Add (a, far_away) [down] c = MatMul (b, w2) [act] d = Tanh (c)
    [wide] e = MatMul (d, w3) [act2] f = Tanh (e) [out] y = MatMul (f, w4) }"""


def network(far: float = 100.0) -> onnx.ModelProto:
    """A large common offset cancels in the small layer `down`: 8 bits leave little of what stands on it."""
    down = weights(16, 32)
    down -= down.mean(axis=0)
    offset = np.full(16, far, np.float32)
    return build(NETWORK, w1=weights(64, 16), far_away=offset, w2=down, w3=weights(32, 512), w4=weights(512, 128))


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Times:
    fake = stand_in(monkeypatch, tmp_path)
    fake.models = {"float": 4.0, "w8": 4.0, "w8a8": 1.0, "w8a8-dynamic": 3.0, "w8a8-token": 3.0, "mixed": 1.0}
    return fake


def auto(far: float = 100.0, **options: Any) -> QuantizeResult:
    return onnxq.quantize(network(far), calibration=drawn(32, 64), threads=1, cache=False, **options)


def rows(result: QuantizeResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.candidates}


def test_a_layer_that_gains_no_time_and_does_the_damage_stays_float() -> None:
    result = auto(min_sqnr=5.0)
    found = rows(result)
    assert found[CHANGED]["verdict"] == "chosen" and result.preset == "mixed"
    assert found[CHANGED]["sqnr_db"] > found["w8a8"]["sqnr_db"] + 10.0
    choices = {row["node"]: row for row in result.choices}
    assert [name for name, row in choices.items() if row["op_type"] == "MatMul" and row["choice"] == "float"] == [
        "down"
    ]
    assert "no faster on integers, which cost accuracy here" in choices["down"]["reason"]


def test_it_brings_a_model_inside_its_budget_at_full_speed() -> None:
    result = auto(far=30.0, min_sqnr=25.0)
    assert rows(result)["w8a8"]["verdict"].endswith("--min-sqnr asks for 25")
    assert rows(result)[CHANGED]["verdict"] == "chosen" and result.latency_ratio == pytest.approx(4.0)


def test_a_layer_that_gains_time_does_not(times: Times) -> None:
    times.kernels = {"float": 500.0, "w8a8": 10.0}
    result = auto(min_sqnr=5.0)
    assert result.preset == "w8a8" and CHANGED not in rows(result)


def test_what_whole_models_take_decides(times: Times) -> None:
    times.models[CHANGED] = 1.1
    result = auto(min_sqnr=5.0)
    assert rows(result)[CHANGED]["latency_ms"] == 1.1 and result.preset == "w8a8"


def test_a_faster_form_leaves_nothing_to_try(times: Times) -> None:
    times.models["w8a8-dynamic"] = 0.5
    assert CHANGED not in rows(auto(min_sqnr=5.0))


def test_nothing_is_tried_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearly_free, "_UNHARMED", 1.1)
    assert CHANGED not in rows(auto(min_sqnr=5.0))


def test_nothing_is_tried_where_far_too_much_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(nearly_free, "_candidate", lambda *given: tried.append(given))
    auto(far=30.0, min_sqnr=25.0)
    assert tried
    tried.clear()
    auto(min_sqnr=25.0)
    assert not tried


def test_the_damage_is_the_mean_of_decibels_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer's error alone, against the model with that layer on integers: the ends of the network read float."""
    seen: list[list[float]] = []
    worst_db = damage._worst_db

    def noted(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float | None:
        found = worst_db(expected, actual)
        seen[-1].append(found or 0.0)
        return found

    add = damage._Spread.add

    def sample(self: damage._Spread, feed: Feed, *, first: bool) -> bool:
        seen.append([])
        complete = add(self, feed, first=first)
        known = [layer.forms["w8a8"].model_db for layer in self._layers]
        assert not complete or known == pytest.approx([np.mean(values) for values in zip(*seen, strict=True)])
        return complete

    monkeypatch.setattr(damage, "_worst_db", noted)
    monkeypatch.setattr(damage._Spread, "add", sample)
    auto(min_sqnr=5.0)
    assert len(seen) == 8, "one by one, evenly spaced over what was calibrated on"
    assert np.std([values[0] for values in seen]) > 0.1, "they are not one sample eight times"
