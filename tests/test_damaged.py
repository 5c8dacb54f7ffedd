"""Damaged and hostile models: each gives a result that loads, or an error in one line, soon and in little memory."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
import onnx
import onnxruntime
import pytest
from hypothesis import strategies as st

import onnxq
from tests import mutations

SECONDS = 20
MEBIBYTES = 1024
WAYS = ("w8", "w8a8-dynamic", "w8a8", "inspect", "diagnose")


def outcome(content: bytes, way: str, base: int) -> str:
    """What becomes of a model, in a few words; a fault begins with ``FAULT``."""
    if way == "load":
        onnxruntime.InferenceSession(content)
        return "loads"
    proto = onnx.ModelProto.FromString(content)
    data = mutations.feeds(mutations.BASES[base]())
    try:
        if way == "inspect":
            onnxq.inspect(proto)
        elif way == "diagnose":
            onnxq.diagnose(proto, data=data, threads=1)
        else:
            needed = data if way == "w8a8" else None
            result = onnxq.quantize(proto, preset=way, calibration=needed, benchmark=False, threads=1, include=["*"])
            assert result.model is not None
            onnxruntime.InferenceSession(result.model.SerializeToString())
    except onnxq.OnnxqError as error:
        line = str(error)
        return f"FAULT no one line: {line!r}" if "\n" in line or not line else f"refused: {line}"
    except Exception as error:
        import traceback

        return f"FAULT {''.join(traceback.format_exception(error))[-3000:]}"
    return "done"


def _peak_mebibytes() -> int:
    """Of this program alone: what getrusage says holds for the process that it was started from, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def serve(pipe: Connection) -> None:
    """Answer requests, in a process that may die of them."""
    onnxruntime.set_default_logger_severity(4)
    while True:
        content, way, base = pipe.recv()
        answer = outcome(content, way, base)
        peak = _peak_mebibytes()
        pipe.send(f"FAULT {peak} MiB" if peak > MEBIBYTES else answer)


class Worker:
    """A process that models are tried in."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def ask(self, model: onnx.ModelProto, way: str, base: int = 0) -> str:
        """What becomes of a model; the death of the process is its own unless the runtime dies of the model alone."""
        content = model.SerializeToString()
        answer = self._ask(content, way, base)
        if "died" in answer and "died" in self._ask(content, "load", base):
            return "refused: the runtime itself dies of it"
        return answer

    def _ask(self, content: bytes, way: str, base: int) -> str:
        self._pipe.send((content, way, base))
        try:
            if self._pipe.poll(SECONDS + 10):  # the process may have to start first
                return str(self._pipe.recv())
            answer = f"FAULT took more than {SECONDS} s"
        except EOFError:
            answer = "FAULT died"
        self.close()
        self._start()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_the_undamaged_models_are_quantized(worker: Worker) -> None:
    for base, make in enumerate(mutations.BASES):
        answer = worker.ask(make(), "w8a8", base)
        assert answer == "done" or "quantized already" in answer, make.__name__


@hypothesis.settings(max_examples=150, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.integers(0, 1 << 32), st.integers(0, len(mutations.BASES) - 1), st.integers(1, 4), st.sampled_from(WAYS)
)
def test_a_damaged_model_is_quantized_or_refused(worker: Worker, seed: int, base: int, times: int, way: str) -> None:
    assert "FAULT" not in worker.ask(mutations.damaged(seed, base, times), way, base)


@pytest.mark.large
@hypothesis.settings(max_examples=3000, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.integers(0, 1 << 32), st.integers(0, len(mutations.BASES) - 1), st.integers(1, 6), st.sampled_from(WAYS)
)
def test_any_damaged_model(worker: Worker, seed: int, base: int, times: int, way: str) -> None:
    assert "FAULT" not in worker.ask(mutations.damaged(seed, base, times), way, base)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("bomb", "size", "said"),
    [
        (mutations.doubling, 25, "its functions stand for"),
        (mutations.turns, 1 << 62, "nothing in its subgraph ends it"),
        (mutations.grown, 1 << 31, "GiB out of constants"),
        (mutations.named, 100_000, "AAA..."),
        (mutations.chain, 4_000, ""),
        (mutations.doubling, 9, ""),
    ],
)
def test_small_models_that_ask_for_much(
    worker: Worker, bomb: Callable[[int], onnx.ModelProto], size: int, said: str, way: str
) -> None:
    answer = worker.ask(bomb(size), way)
    assert "FAULT" not in answer
    assert answer == "done" if not said else said in answer or way == "inspect"
