from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from onnxq.errors import ModelError, VerificationError
from onnxq.verify import benchmark as room
from onnxq.verify.benchmark import benchmark

SMALL = "g (float[N,64] x) => (float[N,64] y) { y = Relu(x) }"
LARGE = "g (float[N,64] x) => (float[N,64] y) { a = Exp(x) \n b = Sin(a) \n c = Exp(b) \n d = Cos(c) \n y = Tan(d) }"
FEEDS = [{"x": np.ones((400, 64), np.float32)}]


def test_models_are_timed_side_by_side(content):
    small, large = benchmark({"small": content(SMALL), "large": content(LARGE)}, FEEDS, seconds=0.05)
    assert (small.name, large.name) == ("small", "large")
    assert small.ratio == 1.0
    assert large.ratio < 0.9
    assert small.median_ms < large.median_ms
    assert large.p10 <= large.median_ms <= large.p90
    assert small.size_bytes == len(content(SMALL))
    assert small.peak_memory_bytes is None
    json.dumps(large.to_dict())


def test_they_alternate_on_the_same_feeds_and_short_ones_are_repeated(monkeypatch):
    calls = []
    clock = iter(range(10**9))

    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, feed):
            calls.append((self.name, feed))

    monkeypatch.setattr(room.time, "perf_counter", lambda: next(clock) * 1e-3)
    rounds = room._rounds({"a": Fake("a"), "b": Fake("b")}, [{"f": 0}, {"f": 1}], {"a": 1, "b": 2}, seconds=0)
    first, second = {"f": 0}, {"f": 1}
    assert calls[:6] == [("a", first), ("b", first), ("b", first), ("a", second), ("b", second), ("b", second)]
    assert len(rounds) == 5
    assert rounds[0] == {"a": pytest.approx(1e-3), "b": pytest.approx(0.5e-3)}


def test_the_collector_is_off_while_timing_and_on_again_after_a_failure():
    with pytest.raises(ValueError, match=r"inside"), room._no_collector():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


def test_files_and_memory(content, tmp_path):
    path = tmp_path / "m.onnx"
    weights = "g (float[N,64] x) => (float[N,64] y) { s = Constant<value_ints=[2000,1000]>() \n"
    weights += " big = ConstantOfShape(s) \n m = ReduceMax<keepdims=0>(big) \n y = Add(x, m) }"
    path.write_bytes(content(weights))
    (timing,) = benchmark({"m": path}, FEEDS, seconds=0.01, memory=True)
    assert timing.size_bytes == path.stat().st_size
    assert timing.peak_memory_bytes is None or timing.peak_memory_bytes > 2000 * 1000 * 4


def test_failures_are_one_line_errors(content):
    with pytest.raises(VerificationError, match=r"benchmark: there is no feed or no model"):
        benchmark({"a": content(SMALL)}, [])
    with pytest.raises(ModelError, match=r"^b: onnxruntime .* cannot load it"):
        benchmark({"a": content(SMALL), "b": b"nonsense"}, FEEDS)


def test_the_steady_ratio_does_not_see_disturbed_runs_or_mix_up_feeds() -> None:
    from onnxq.verify.benchmark import _steady

    calm = np.array([1.0, 4.0] * 10)
    disturbed = calm.copy()
    disturbed[4:] *= 7
    assert _steady(calm, 2) == pytest.approx(5.0)
    assert _steady(disturbed, 2) == pytest.approx(5.0)
    assert _steady(calm[:1], 2) == 1.0
