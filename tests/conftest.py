"""What the tests share: the trained models, hypothesis profiles, and an account of what was left out."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import hypothesis
import onnxruntime
import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT.parent / "shared" / "zoo"

# Examples are few and unhurried: shared machines are slow at times, and a property that needs many draws is a weak one.
hypothesis.settings.register_profile("default", deadline=None, max_examples=40)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def _lacks(*modules: str) -> Callable[[pytest.Config], bool]:
    return lambda config: any(importlib.util.find_spec(module) is None for module in modules)


def _unset(variable: str) -> Callable[[pytest.Config], bool]:
    return lambda config: not Path(os.environ.get(variable) or "/nonexistent").exists()


_SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


@cache
def _no_gpu() -> bool:
    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


# By marker: the reason to leave its tests out, and whether it holds.
LEFT_OUT: dict[str, tuple[str, Callable[[pytest.Config], bool]]] = {
    "torch": ('PyTorch is not installed; pip install ".[torch]"', _lacks("torch")),
    "ray": ('Ray is not installed; pip install ".[ray]"', _lacks("ray")),
    "gpu": ("onnxruntime has no CUDA provider here", lambda config: _no_gpu()),
    "large": ("run pytest with --large", lambda config: not config.getoption("--large")),
    "zoo": ("no ../shared/zoo beside the project", lambda config: not (ZOO / "zoo.py").is_file()),
    "browser": (
        "playwright or Chromium is not installed",
        lambda config: importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None,
    ),
    "audio": ('soundfile is not installed; pip install ".[audio]"', _lacks("soundfile")),
    "images": ('Pillow is not installed; pip install ".[images]"', _lacks("PIL")),
    "tables": ('pyarrow is not installed; pip install ".[tables]"', _lacks("pyarrow")),
    "text": ('tokenizers is not installed; pip install ".[text]"', _lacks("tokenizers")),
    "report": ('jinja2 or matplotlib is not installed; pip install ".[report]"', _lacks("jinja2", "matplotlib")),
    "genai": ("onnxruntime-genai is not installed", _lacks("onnxruntime_genai")),
    "exporters": (
        "scikit-learn, skl2onnx or onnxscript is not installed",
        _lacks("sklearn", "skl2onnx", "onnxscript"),
    ),
    "optimum": ("optimum is not installed", _lacks("optimum")),
    "qnn": ("onnxruntime-qnn is not installed", _lacks("onnxruntime_qnn")),
    "openvino": ("ONNXQ_OPENVINO_PYTHON names no Python", _unset("ONNXQ_OPENVINO_PYTHON")),
    "web": ("ONNXQ_NODE_MODULES names no folder with onnxruntime-web", _unset("ONNXQ_NODE_MODULES")),
    "cpp": ("ONNXRUNTIME_INCLUDE names no folder with onnxruntime's headers", _unset("ONNXRUNTIME_INCLUDE")),
    "ssh": ("OpenSSH's server is not installed", lambda config: shutil.which("sshd", path=_SBIN) is None),
    "arm": ("ONNXQ_ARM_PYTHON names no Python", _unset("ONNXQ_ARM_PYTHON")),
}


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees what another one, or the developer, has measured; the folder is made when something is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="run the tests that take minutes or gigabytes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {marker: reason for marker, (reason, holds) in LEFT_OUT.items() if holds(config)}
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were left out, by reason."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = Counter(entry[2].removeprefix("Skipped: ") for entry in skipped if isinstance(entry, tuple))
    if reasons:
        terminalreporter.section("left out")
        for reason, number in sorted(reasons.items()):
            terminalreporter.write_line(f"{number} x {reason}")


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """The module of ../shared/zoo: trained models with data and metrics."""
    if not (ZOO / "zoo.py").is_file():
        pytest.skip("no ../shared/zoo beside the project")
    sys.path.insert(0, str(ZOO))
    return importlib.import_module("zoo")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder, with models/ and calibration_data/."""
    return ROOT


@pytest.fixture(scope="session")
def digits() -> Path:
    """A small trained model of the project, which has calibration data."""
    return ROOT / "models" / "digits_resnet.onnx"
