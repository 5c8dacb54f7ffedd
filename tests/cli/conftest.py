"""Small models and data, and the program run in this process or in one of its own."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import onnxq

ROOT = Path(__file__).resolve().parents[2]
CHANNELS, SIZE, CLASSES = 16, 8, 10


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the program in this process; the result has exit_code, stdout and stderr."""
    from onnxq.cli._app import app

    # click 8.1 mixes the two streams unless told otherwise; later ones never do and know no such option.
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}

    def call(*arguments: object) -> Result:
        return CliRunner(**apart).invoke(app, [str(argument) for argument in arguments], prog_name="onnxq")

    return call


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the program as a process of its own, in the test's folder."""
    started = []

    def call(*arguments: object, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxq.cli", *map(str, arguments)],
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "cwd": tmp_path,
                "env": environment(tmp_path),
                **options,
            },
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def environment(folder: Path) -> dict[str, str]:
    """The variables of the process, less those that change what a terminal shows."""
    changing = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "ONNXQ_DEBUG", "TERM"}
    kept = {name: value for name, value in os.environ.items() if name not in changing}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


class FakeApi(ModuleType):
    """Stands in for ``onnxq.api``: remembers each call and gives back, or raises, what the test puts in."""

    def __init__(self) -> None:
        super().__init__("onnxq.api")
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.answer: object = None
        for name in ("quantize", "calibrate", "diagnose", "compare", "benchmark", "inspect", "presets", "targets"):
            setattr(self, name, self._function(name))

    def _function(self, name: str) -> Callable[..., object]:
        def function(*args: object, **kwargs: object) -> object:
            self.calls.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer() if callable(self.answer) else self.answer

        return function


@pytest.fixture
def fake_api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """Replace ``onnxq.api`` for the commands, so that they are tested alone."""
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "onnxq.api", fake)
    monkeypatch.setitem(vars(onnxq), "api", fake)
    return fake


def build_cnn() -> onnx.ModelProto:
    """Two 3x3 convolutions with Relu, pooling and a Gemm: input x [N, 16, 8, 8], output y [N, 10]."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        fan_in = int(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / fan_in**0.5).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="body.conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="body.relu1"),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="body.conv2", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c2"], ["r2"], name="body.relu2"),
            helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="head.pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="head.flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head.fc", transB=1),
        ],
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [
            weight("w1", 32, CHANNELS, 3, 3),
            weight("b1", 32),
            weight("w2", 32, 32, 3, 3),
            weight("b2", 32),
            weight("w3", CLASSES, 32),
            weight("b3", CLASSES),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build_samples(count: int = 10) -> np.ndarray:
    """Samples for `build_cnn`: float32 (count, 16, 8, 8)."""
    return np.random.default_rng(1).standard_normal((count, CHANNELS, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def cnn() -> onnx.ModelProto:
    """A small convolutional network."""
    return build_cnn()


@pytest.fixture
def samples() -> np.ndarray:
    """Ten samples for the network."""
    return build_samples()


@pytest.fixture
def model(tmp_path: Path, cnn: onnx.ModelProto) -> Path:
    """The network as a file."""
    path = tmp_path / "net.onnx"
    path.write_bytes(cnn.SerializeToString())
    return path


@pytest.fixture
def data(tmp_path: Path, samples: np.ndarray) -> Path:
    """The samples as a file."""
    path = tmp_path / "data.npz"
    np.savez(path, x=samples)
    return path


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[[], dict[str, bytes | None]]:
    """Every file under the test's folder with its content, so that a test can see that nothing changed."""

    def take() -> dict[str, bytes | None]:
        entries = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
            for path in entries
        }

    return take
