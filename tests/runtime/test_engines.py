"""Engines in processes of their own: what they give, what they refuse, and how they end."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.errors import EngineError
from onnxq.runtime.engines.engine import About, Refusal, left_to_the_cpu
from onnxq.runtime.engines.places import RunsOn
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.engines.worker import _Worker, read_message, write_message
from onnxq.runtime.session import open_session
from tests.graph.build import build

MLP = build(
    """g (float[n, 8] x) => (float[n, 4] y, float[n] z) {
        [a] y = MatMul (x, w) [b] z = ReduceSum <keepdims = 0> (y, o) }""",
    w=np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32),
    o=np.array([1], np.int64),
).SerializeToString()
FEEDS = [{"x": np.random.default_rng(i).standard_normal((3, 8)).astype(np.float32)} for i in (1, 2)]


def test_messages_come_back_as_they_were() -> None:
    stream = io.BytesIO()
    arrays = {
        "a": np.arange(6, dtype=np.int8).reshape(2, 3),
        "b": np.array(1.5, np.float16),
        "c": np.zeros((0, 2)),
        "d": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    write_message(stream, {"verb": "run", "id": 3}, arrays)
    write_message(stream, {"end": True})
    stream.seek(0)
    head, found = read_message(stream) or ({}, {})
    assert head == {"verb": "run", "id": 3}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert read_message(stream) == ({"end": True}, {})
    assert read_message(stream) is None


@pytest.mark.parametrize("line", [b"hello\n", b"[1]\n", b'{"verb": "run"}\n', b'{"arrays": [["x", "int8", [-4]]]}\n'])
def test_what_is_no_message(line: bytes) -> None:
    with pytest.raises(ValueError, match="no message|bytes"):
        read_message(io.BytesIO(line))


def test_a_message_that_breaks_off_is_the_end() -> None:
    stream = io.BytesIO()
    write_message(stream, {}, {"x": np.zeros(100)})
    assert read_message(io.BytesIO(stream.getvalue()[:-1])) is None


def test_outputs_are_those_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(MLP)
    expected = [open_session(MLP).run(feed) for feed in FEEDS]
    with ProcessEngine(sys.executable) as engine:
        assert engine.about().provider == "CPUExecutionProvider"
        assert "onnxruntime" in str(engine.about())
        for model in (MLP, path):
            for got, want in zip(engine.run(model, FEEDS), expected, strict=True):
                for left, right in zip(got, want, strict=True):
                    np.testing.assert_allclose(left, right, rtol=1e-6)
            assert engine.refused(model) == []


def test_models_take_turns() -> None:
    with ProcessEngine(sys.executable) as engine:
        first, second = engine.time([MLP, MLP], FEEDS, 0.01)
    assert len(first) == len(second) >= 3
    assert min(*first, *second) > 0


def test_an_error_is_told_and_the_engine_goes_on() -> None:
    with ProcessEngine(sys.executable, label="there") as engine:
        with pytest.raises(EngineError, match="there: .*[Pp]rotobuf"):
            engine.run(b"no model", FEEDS)
        with pytest.raises(EngineError, match="there: "):
            engine.run(MLP, [{"x": np.zeros((3, 7), np.float32)}])
        with pytest.raises(EngineError, match="input 'x' holds text"):
            engine.run(MLP, [{"x": np.array(["a"])}])
        assert len(engine.run(MLP, FEEDS)) == 2


def test_an_engine_that_dies_is_one_line() -> None:
    with ProcessEngine(sys.executable) as engine:
        engine._process.kill()
        with pytest.raises(EngineError, match="killed by signal 9|Broken pipe|no answer"):
            engine.run(MLP, FEEDS)


@pytest.mark.parametrize(
    ("python", "provider", "said"),
    [
        ("/nonexistent/python", "cpu", "cannot be started"),
        (sys.executable, "none", "provider 'none' is not in the onnxruntime of .*CPUExecutionProvider"),
        ([sys.executable, "-c", "import sys; sys.exit('no such thing')"], "cpu", "exit code 1: no such thing"),
        ([sys.executable, "-c", "print('Welcome')"], "cpu", "Welcome|exit code 0"),
        ([sys.executable, "-S", "-c", "raise ImportError('No module named numpy')"], "cpu", "No module named numpy"),
    ],
)
def test_what_is_no_engine(python: str | list[str], provider: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        ProcessEngine(python, provider)


def test_floats_fit_a_model_of_another_float_type() -> None:
    half = build("g (float16[n] x) => (float16[n] y) { y = Neg (x) }").SerializeToString()
    with ProcessEngine(sys.executable) as engine:
        got = engine.run(half, [{"x": np.array([1.5], np.float32)}])[0][0]
    assert got.dtype == np.float16


def test_a_program_that_is_none_is_named() -> None:
    with pytest.raises(EngineError, match="openvino: /nonexistent/python cannot be started .*; name a Python that has"):
        ProcessEngine("/nonexistent/python", label="openvino")
    with pytest.raises(EngineError, match="openvino: the engine ended with exit code 0 and said nothing; name a "):
        ProcessEngine([sys.executable, "-c", ""], label="openvino")


def test_a_provider_that_refuses_its_options_is_not_the_cpu_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime prints that it falls back, and goes on."""

    def create(self: Any, providers: list[Any], *rest: Any) -> None:
        if providers != ["CPUExecutionProvider"]:  # what it falls back to
            raise RuntimeError("invalid option: foo")
        original(self, providers, *rest)

    original = onnxruntime.InferenceSession._create_inference_session
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    worker = _Worker()
    worker.open({"provider": "cpu", "options": {"foo": "1"}, "threads": 1}, {})
    key = worker.load({}, {"model": np.frombuffer(MLP, np.uint8)})[0]["id"]
    with pytest.raises(RuntimeError, match="invalid option: foo"):
        worker.run({"id": key}, FEEDS[0])


@pytest.mark.openvino
def test_options_that_openvino_does_not_know_are_refused() -> None:
    engine = ProcessEngine(os.environ["ONNXQ_OPENVINO_PYTHON"], "openvino", {"foo": "1"})
    with engine, pytest.raises(EngineError, match="Invalid OpenVINO EP option: foo"):
        engine.run(MLP, FEEDS)


@pytest.mark.openvino
def test_openvino_in_its_own_environment() -> None:
    python = os.environ["ONNXQ_OPENVINO_PYTHON"]
    with ProcessEngine(python, "openvino", {"device_type": "CPU"}) as engine:
        assert engine.about().provider == "OpenVINOExecutionProvider"
        got = engine.run(MLP, FEEDS)
    np.testing.assert_allclose(got[0][0], open_session(MLP).run(FEEDS[0])[0], rtol=1e-2, atol=1e-2)


@pytest.mark.qnn
def test_the_simulator_names_what_it_refuses() -> None:
    fixed = build(
        """g (float[3, 8, 8] x) => (float[3] y) {
            [q] h = QuantizeLinear (x, s, p) [d] k = DequantizeLinear (h, s, p) [n] y = Det (k) }""",
        s=np.array(0.05, np.float32),
        p=np.array(128, np.uint8),
    ).SerializeToString()
    with ProcessEngine(sys.executable, "qnn") as engine:
        refused = engine.refused(fixed)
    assert [entry.node for entry in refused if entry.op_type == "Det"] == ["n"]


class Partial:
    """An engine that takes some nodes."""

    def __init__(self, provider: str, refused: list[Refusal]) -> None:
        self._about, self._refused = About("onnxruntime 1", provider, "a chip"), refused

    def about(self) -> About:
        return self._about

    def refused(self, model: bytes) -> list[Refusal]:
        return self._refused


def test_nodes_that_a_provider_leaves_to_the_cpu_are_said() -> None:
    left = [Refusal("q", "QuantizeLinear"), *(Refusal(f"n{i}", "Det", "no such kernel") for i in range(4))]
    (said,) = left_to_the_cpu(Partial("ChipExecutionProvider", left), {"m.onnx": MLP})  # type: ignore[arg-type]
    assert said.startswith(
        "m.onnx: 4 nodes run on the CPU and not on ChipExecutionProvider: Det 'n0': no such kernel, "
    )
    assert said.endswith(", and 1 more")
    assert left_to_the_cpu(Partial("ChipExecutionProvider", left[:1]), {"m.onnx": MLP}) == []  # type: ignore[arg-type]
    assert left_to_the_cpu(Partial("CPUExecutionProvider", left), {"m.onnx": MLP}) == []  # type: ignore[arg-type]


@pytest.mark.qnn
def test_open_shapes_leave_all_to_the_cpu_and_that_is_said(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(build("g (float[N, 4] x) => (float[N, 4] y) { [a] h = Relu (x) [b] y = Tanh (h) }"), model)
    samples = [{"x": np.ones((2, 4), np.float32)}]
    runs_on = RunsOn(provider="qnn")
    timed = onnxq.benchmark([model], data=samples, seconds=0.01, memory=False, runs_on=runs_on)
    compared = onnxq.compare(model, model, data=samples, runs_on=runs_on)
    for warnings in (timed.warnings, compared.warnings):
        assert any("2 nodes run on the CPU and not on QNNExecutionProvider: Relu 'a'" in line for line in warnings)
