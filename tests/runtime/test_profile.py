"""Times of kernels: what counts, and what is remembered."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.runtime import profile
from onnxq.runtime.engines.places import RunsOn
from onnxq.runtime.profile import KernelTime, KernelTimeCache, kernel_times
from tests.graph.build import build, weights

FEED = {"x": weights(4, 64)}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_model_that_runs_has_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = build("g (float[4,64] x) => (float[4,32] y) { y = MatMul (x, w) }", w=weights(64, 32))
    other = build("g (float[4,65] x) => (float[4,65] y) { y = Exp (x) }")
    models = {"plain": plain.SerializeToString(), "wrong shape": other.SerializeToString(), "no model": b"x"}
    found = kernel_times(models, FEED)
    assert set(found) == {"plain"}
    assert found["plain"].compute >= 0 and found["plain"].total >= found["plain"].compute
    assert list(tmp_path.iterdir()) == []


def test_conversions_are_told_apart_from_the_kernel(tmp_path: Path) -> None:
    events = [{"name": "model_run", "cat": "Session", "ts": 100 * run, "dur": 90} for run in range(4)]
    for run in range(4):
        for op, dur in (
            ("QuantizeLinear", 3),
            ("ReorderInput", 50),
            ("QLinearConv", 10 + run),
            ("DequantizeLinear", 2),
        ):
            args = {"op_name": op}
            events.append({"name": f"{op}_kernel_time", "cat": "Node", "ts": 100 * run + 1, "dur": dur, "args": args})
    file = tmp_path / "profile.json"
    file.write_text(__import__("json").dumps(events))
    found = profile._summed(file.read_bytes())
    assert found == KernelTime(compute=11.0, quantize=3.0, dequantize=2.0)  # of 11, 12 and 13, without the first, 10
    assert found.total == 16.0


def test_a_damaged_profile_has_no_times(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[{")
    assert profile._summed((tmp_path / "p.json").read_bytes()) is None
    (tmp_path / "q.json").write_text("[]")
    assert profile._summed((tmp_path / "q.json").read_bytes()) is None


def test_times_are_remembered_by_group_and_threads(cache: Path) -> None:
    times = {"float": KernelTime(3.0), "w8a8": KernelTime(1.0, 0.5, 0.25)}
    first = KernelTimeCache(1)
    assert first.get("g", ["float"]) is None
    first.put("g", times)
    first.save()
    assert len(list((cache / "onnxq").iterdir())) == 1
    again = KernelTimeCache(1)
    assert again.get("g", ["float", "w8a8"]) == times
    assert again.get("g", ["float"]) == {"float": KernelTime(3.0)}
    assert again.get("g", ["float", "w8"]) is None, "forms are compared only if they were measured together"
    assert KernelTimeCache(2).get("g", ["float"]) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"float": {"wrong": 1}}}'])
def test_a_damaged_memory_holds_nothing(cache: Path, content: str) -> None:
    first = KernelTimeCache(1)
    first.put("g", {"float": KernelTime(3.0)})
    first.save()
    (file,) = (cache / "onnxq").iterdir()
    file.write_text(content)
    assert KernelTimeCache(1).get("g", ["float"]) is None


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    memory = KernelTimeCache(1)
    memory.put("g", {"float": KernelTime(3.0)})
    memory.save()
    assert memory.get("g", ["float"]) == {"float": KernelTime(3.0)}
    assert blocked.read_text() == ""


def test_a_float_and_an_integer_form_are_timed_in_one_go() -> None:
    same = build("g (float[4,64] x) => (float[4,64] y) { y = Exp (x) }").SerializeToString()
    found = kernel_times({"one": same, "two": same}, {"x": np.ones((4, 64), np.float32)})
    assert set(found) == {"one", "two"}


@pytest.mark.parametrize(
    "bad", [None, 3, "x", {"f": None}, {"f": {"compute": "1"}}, {"f": {"compute": True}}, {"f": {"compute": -1.0}},
            {"f": {"compute": float("nan")}}, {"f": {"compute": float("inf")}}, {"f": {"other": 1.0}}, {"f": {}}],
)  # fmt: skip
def test_what_does_not_parse_in_the_cache_is_dropped(
    bad: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = KernelTimeCache(1)
    kept.put("good", {"f": KernelTime(1.0)})
    kept.put("bad", {"f": KernelTime(1.0)})
    kept.save()
    (path,) = (tmp_path / "onnxq").glob("kernels-*.json")
    content = json.loads(path.read_text())
    content[profile._short("bad")] = bad
    path.write_text(json.dumps(dict(sorted(content.items(), key=lambda entry: entry[1] != bad))))
    again = KernelTimeCache(1)
    assert again.get("bad", ["f"]) is None
    assert again.get("good", ["f"]) == {"f": KernelTime(1.0)}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b"3", b'{"a": '])
def test_a_cache_that_is_none_holds_nothing(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = KernelTimeCache(1)
    first.put("a", {"f": KernelTime(1.0)})
    first.save()
    (path,) = (tmp_path / "onnxq").glob("kernels-*.json")
    path.write_bytes(content)
    assert KernelTimeCache(1).get("a", ["f"]) is None


def test_kernels_are_timed_on_an_engine(cache: Path) -> None:
    """The same kernels as here; a model that does not load there is left out, and nothing is kept on the disk."""
    engine = RunsOn(device="bash -c", python=sys.executable).open()
    try:
        plain = build("g (float[4,64] x) => (float[4,32] y) { y = MatMul (x, w) }", w=weights(64, 32))
        found = kernel_times({"one": plain.SerializeToString(), "none": b"no model"}, FEED, engine=engine)
    finally:
        engine.close()
    assert set(found) == {"one"}
    assert found["one"].compute > 0
    memory = KernelTimeCache(1, kept=False)
    memory.put("group", found)
    memory.save()
    assert memory.get("group", ["one"]) == found
    assert KernelTimeCache(1).get("group", ["one"]) is None
