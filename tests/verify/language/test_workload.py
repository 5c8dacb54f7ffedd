"""What a language model is timed on: each kind of pass by itself, and all of them weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from onnxq.verify.benchmark import Timing
from onnxq.verify.language import workload
from onnxq.verify.language.workload import Phase, Workload, measure

PREFILL, DECODE = ({"x": np.zeros(size)} for size in (128, 1))
TIMES = {"float": (100.0, 10.0), "a": (25.0, 5.0), "b": (50.0, 2.5)}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def benchmark(
        models: Mapping[str, bytes], feeds: Sequence[dict[str, np.ndarray]], **options: object
    ) -> list[Timing]:
        at = 0 if len(feeds[0]["x"]) > 1 else 1
        times = {name: TIMES[name][at] for name in models}
        return [
            Timing(name, ms, ms, ms, 5, times["float"] / ms, 0, steady_ratio=times["float"] / ms)
            for name, ms in times.items()
        ]

    monkeypatch.setattr(workload, "benchmark", benchmark)


def of(name: str, prefill: int, decode: int) -> Workload:
    return Workload(name, [Phase("prefill", PREFILL, prefill, 128), Phase("decode", DECODE, decode, 1, 192)])


@pytest.mark.parametrize(
    ("used", "best", "total"),
    [(of("prefill", 1, 0), "a", 100.0), (of("decode", 0, 1), "b", 10.0), (of("chat", 1, 128), "b", 1380.0)],
)
def test_what_counts_decides(used: Workload, best: str, total: float) -> None:
    timings = measure(dict.fromkeys(TIMES, b""), [], used, seconds=1.0)
    assert timings[0].ratio == 1.0 and timings[0].median_ms == total
    assert max(timings, key=lambda timing: timing.ratio).name == best
    for timing in timings:
        assert timing.phases is not None and set(timing.phases) == {"prefill", "decode"}
        passes = [phase.passes for phase in used.phases]
        assert timing.median_ms == pytest.approx(np.dot(passes, TIMES[timing.name]))
        assert timing.ratio == timing.steady_ratio == pytest.approx(total / timing.median_ms)
        assert timing.round_ms == sum(TIMES[timing.name])


def test_both_kinds_of_pass_are_told_whatever_counts() -> None:
    used = of("decode", 0, 1)
    table = used.table(measure({"float": b"", "a": b""}, [], used, seconds=1.0))
    assert table["name"] == "decode"
    assert [(row["float_ms"], row["quantized_ms"], row["latency_ratio"]) for row in table["phases"]] == [
        (100.0, 25.0, 4.0), (10.0, 5.0, 2.0),
    ]  # fmt: skip
    assert "float_ms" not in used.table([])["phases"][0]


def test_layers_are_measured_on_the_pass_that_there_is_most_of() -> None:
    assert of("chat", 1, 128).heaviest is DECODE and of("prefill", 1, 0).heaviest is PREFILL
    assert of("chat", 1, 128).key != of("decode", 0, 1).key


def test_without_a_workload_samples_are_timed() -> None:
    (timing,) = measure({"float": b""}, [PREFILL], None, seconds=1.0)
    assert timing.median_ms == 100.0 and timing.phases is None
