"""Where models run and are timed, as a user says it: another provider, a device behind a shell, Node."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.core.tasks import Tasks
from onnxq.errors import EngineError, RecipeError
from onnxq.runtime.custom_ops import registered
from onnxq.runtime.engines import worker
from onnxq.runtime.engines.process_engine import Elsewhere, ProcessEngine
from onnxq.runtime.engines.ray_engine import RayTasks

NODE_MODULES = "ONNXQ_NODE_MODULES"
"""Variable of the environment that names the folder with onnxruntime-web."""

WEB = "web"
"""The engine that is onnxruntime-web in Node."""

RAY = "ray"
"""The engine that spreads the work over the machines of a Ray cluster; models run and are timed here."""

WASM = "wasm"
"""What a target calls onnxruntime-web's provider for WebAssembly."""

_SHELLS = {"sh", "bash", "dash", "zsh", "ash", "ksh"}

_READY = "onnxq: ready"
_BOOT = (
    "import sys; b = sys.stdin.buffer; print({ready!r}, flush=True); "
    'exec(compile(b.read(int(b.readline())), "worker.py", "exec"))'
).replace("{ready!r}", f'"{_READY}"')
"""Python that says that it is there, reads a worker from its standard input and becomes it; holds no single quote."""

_SSH_OPTIONS = {"ConnectTimeout": 15, "ServerAliveInterval": 5, "ServerAliveCountMax": 3}
"""So that a host that is not there, or has gone, is noticed within seconds."""


@dataclass(frozen=True)
class RunsOn:
    """What runs and times models; with nothing said, ONNX Runtime's CPU provider in this process.

    Attributes:
        device: a command that gives a shell on the device, such as ``ssh pi@kitchen``. It needs python3 with
            onnxruntime there; models and feeds go over its standard input, and nothing stays behind.
        engine: "web" for onnxruntime-web in Node; "ray" for a Ray cluster that samples are run and layers quantized on,
            for `onnxq.quantize`; None for ONNX Runtime.
        provider: execution provider of ONNX Runtime, in full or without ``ExecutionProvider``; None for the target's,
            or the CPU's.
        provider_options: of the provider.
        python: the Python that has the runtime, here or on the device.
        node_modules: folder with onnxruntime-web; None takes the one that ``ONNXQ_NODE_MODULES`` names.
        address: ``host:port`` of the head of a Ray cluster; None starts one on this machine that others cannot reach.
    """

    device: str | None = None
    engine: str | None = None
    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    python: str | os.PathLike[str] | None = None
    node_modules: str | os.PathLike[str] | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.engine not in (None, WEB, RAY):
            raise RecipeError(
                f"--engine: there is no {self.engine!r}; it is {WEB!r}, {RAY!r}, or left out for ONNX Runtime"
            )
        if self.engine is not None:
            for option in ("device", "provider", "provider_options", "python"):
                if getattr(self, option):
                    raise RecipeError(
                        f"--engine {self.engine}: does not go with {_OPTION[option]}; leave one of them out"
                    )
        if self.address is not None and self.engine != RAY:
            raise RecipeError(f"--ray-address: is for --engine {RAY}; add it")
        if self.node_modules is not None and self.engine != WEB:
            raise RecipeError(f"--node-modules: is for --engine {WEB}; add it")
        if self.provider_options and not self.provider:
            raise RecipeError("--provider-option: name the provider, with --provider")
        if self.provider_options and str(self.provider).lower() in ("cpu", "cpuexecutionprovider"):
            raise RecipeError("--provider-option: the CPU provider has no options; leave them out")
        if self.provider is not None and not self.provider.strip():
            raise RecipeError("--provider: is empty; name one, such as CUDA, or leave it out")
        if self.device is not None:
            _words(self.device)

    def open(self, threads: int = 1, provider: str = "") -> ProcessEngine:
        """Start it.

        Args:
            threads: threads an operator may use.
            provider: where the user names none.

        Raises:
            EngineError: it is not there, or lacks what it needs.
        """
        if self.engine == WEB:
            command = _web_command(self.node_modules)
            return ProcessEngine(command, threads=threads, label="onnxruntime-web", elsewhere=Elsewhere())
        wanted = self.provider or provider or "cpu"
        if self.device is None:
            python = os.fspath(self.python or sys.executable)
            label = f"provider {wanted}" if self.python is None else python
            return ProcessEngine(python, wanted, self.provider_options, threads=threads, label=label)
        return ProcessEngine(
            _device_command(self.device, os.fspath(self.python or "python3")),
            wanted,
            self.provider_options,
            threads=threads,
            label=f"device {self.device!r}",
            elsewhere=Elsewhere(_READY.encode(), Path(worker.__file__).read_bytes()),
        )


_OPTION = {
    "device": "--device",
    "provider": "--provider",
    "provider_options": "--provider-option",
    "python": "--engine-python",
}


def start(asked: RunsOn, threads: int | None, provider: str = "") -> ProcessEngine:
    """Start what a user named, with as many threads as this process would time with; else as `RunsOn.open`.

    Raises:
        RecipeError: the model needs custom operators, which are not sent.
    """
    if asked.engine == RAY:
        raise RecipeError(f"--engine {RAY}: spreads the work of quantize and calibrate; models are timed elsewhere")
    if registered():
        raise RecipeError("--custom-ops: libraries of this machine are not sent to another engine; leave it out")
    return asked.open(threads or 1, provider)


def spread_over(asked: RunsOn, stack: ExitStack) -> Tasks:
    """What runs tasks on the cluster that a user named, until the stack is closed.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be used.
        RecipeError: the model needs custom operators, which are not sent.
    """
    if registered():
        raise RecipeError("--custom-ops: libraries of this machine are not sent to another one; leave --engine out")
    tasks = RayTasks(asked.address)
    stack.callback(tasks.close)
    return tasks


def web_is_here() -> bool:
    """Whether Node and a folder with onnxruntime-web are found without being named."""
    return bool(os.environ.get(NODE_MODULES)) and shutil.which("node") is not None


def _words(device: str) -> list[str]:
    try:
        words = shlex.split(device)
    except ValueError as error:
        raise RecipeError(f"--device {device!r}: is no command ({error})") from None
    if not words:
        raise RecipeError('--device: is empty; name a command that gives a shell, such as "ssh pi@kitchen"')
    return words


def _device_command(device: str, python: str) -> list[str]:
    """The words that start a worker behind a command that gives a shell."""
    words = _words(device)
    name = Path(words[0]).name
    if name == "ssh":
        words[1:1] = [f"-o{key}={value}" for key, value in _SSH_OPTIONS.items() if key.lower() not in device.lower()]
    if Path(words[-1]).name in _SHELLS:
        words.append("-c")
    return [*words, f"exec {shlex.quote(python)} -u -c '{_BOOT}'"]


def _web_command(node_modules: str | os.PathLike[str] | None) -> list[str]:
    """The words that start the worker in Node.

    Raises:
        EngineError: there is no Node, or no onnxruntime-web.
    """
    node, named = shutil.which("node"), node_modules or os.environ.get(NODE_MODULES)
    if node is None:
        raise EngineError("onnxruntime-web: there is no program 'node' on the PATH; install Node 20 or later")
    if not named:
        raise EngineError(
            "onnxruntime-web: npm install onnxruntime-web, and name its node_modules with --node-modules, or in the "
            f"environment as {NODE_MODULES}"
        )
    folder = Path(named).resolve()
    if not (folder / "onnxruntime-web" / "package.json").is_file():
        raise EngineError(f"onnxruntime-web: it is not in {folder}; npm install onnxruntime-web there")
    return [node, str(Path(__file__).with_name("web_worker.mjs")), str(folder)]
