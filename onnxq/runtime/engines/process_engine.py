"""An engine in a process of its own: this Python, another one, or a command that starts one elsewhere."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.errors import EngineError
from onnxq.graph.files import io
from onnxq.runtime.engines import worker
from onnxq.runtime.engines.engine import About, Refusal, Runs
from onnxq.runtime.engines.worker import read_message, write_message

_MOST_MODELS = 6
"""Models that stay loaded at a time, where no more are in use: a device has little memory."""

_GREETING = 200
"""Lines that a shell may print before what it was asked to run."""


@dataclass(frozen=True)
class Elsewhere:
    """A worker that cannot read the files of this machine.

    Attributes:
        ready: the line that says that it waits for its source; empty where it is there already.
        source: of the worker, to be sent.
    """

    ready: bytes = b""
    source: bytes = b""


def _files(path: Path) -> dict[str, Any]:
    """A model's contents, and those of the files with its weights by their names in it; mapped, not read."""
    folder = path.resolve().parent
    found = {"model": np.fromfile(path, np.uint8)}
    for file in io.weight_files(path):
        name = file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)
        found[f"file:{name.as_posix()}"] = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, "u1")
    return found


class ProcessEngine:
    """Speaks to `onnxq.runtime.engines.worker` over its standard input and output."""

    def __init__(
        self,
        python: str | Path | Sequence[str],
        provider: str = "cpu",
        options: Mapping[str, str] | None = None,
        *,
        threads: int = 1,
        label: str = "",
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Start the process and the provider in it.

        Args:
            python: the Python that has the runtime; or all words of a command that runs the worker.
            provider: execution provider, by its full name or without ``ExecutionProvider``.
            options: of the provider.
            threads: threads an operator may use.
            label: what messages call the engine.
            elsewhere: how the worker gets there and models with it; None where it reads this machine's files.

        Raises:
            EngineError: there is no such program, or no such provider in it.
        """
        command = [str(python), "-u", worker.__file__] if isinstance(python, str | Path) else list(python)
        self._label = label or command[0]
        self._wanted = "a Python that has onnxruntime"
        if elsewhere is not None:
            self._wanted = "a command that gives a shell" if elsewhere.ready else "a program that is there"
        self._loaded: dict[bytes | Path, int] = {}
        self._elsewhere = elsewhere
        self.celsius: list[float | None] = [None, None]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=-1
            )
        except OSError as error:
            self._errors.close()
            program = "" if self._label == command[0] else f"{command[0]} "
            raise EngineError(
                f"{self._label}: {program}cannot be started ({error.strerror}); name {self._wanted}"
            ) from None
        try:
            if elsewhere is not None:
                self._send(elsewhere)
            head, _ = self._ask(
                {"verb": "open", "provider": provider, "options": dict(options or {}), "threads": threads}
            )
        except EngineError:
            self.close()
            raise
        self._wanted = ""
        self._about = About(head["runtime"], head["provider"], head["device"])
        self._shows_kernels = bool(head.get("profiles"))

    def __enter__(self) -> ProcessEngine:
        """Use it in a with statement, which closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def about(self) -> About:
        """See `onnxq.runtime.engines.engine.Engine`."""
        return self._about

    def refused(self, model: bytes | Path) -> list[Refusal]:
        """See `onnxq.runtime.engines.engine.Engine`."""
        head, _ = self._ask({"verb": "refused", "id": self._load(model)})
        return [Refusal(*entry) for entry in head["refused"]]

    def run(self, model: bytes | Path, feeds: Sequence[Feed]) -> list[list[Any]]:
        """See `onnxq.runtime.engines.engine.Engine`."""
        key = self._load(model)
        return [list(self._ask({"verb": "run", "id": key}, feed)[1].values()) for feed in feeds]

    def time(self, models: Sequence[bytes | Path], feeds: Sequence[Feed], seconds: float) -> list[list[float]]:
        """See `onnxq.runtime.engines.engine.Engine`."""
        keys = [self._load(model, models) for model in models]
        arrays = {f"{i}:{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
        head, _ = self._ask({"verb": "time", "ids": keys, "feeds": len(feeds), "seconds": seconds}, arrays)
        self.celsius = head.get("celsius", [None, None])
        return [[float(entry) for entry in times] for times in head["ms"]]

    @property
    def shows_kernels(self) -> bool:
        """Whether it can say what single kernels of a model take."""
        return self._shows_kernels

    def profiles(self, models: Sequence[bytes], feed: Feed, runs: Runs) -> list[bytes | None] | None:
        """See `onnxq.runtime.engines.engine.Engine`."""
        if not self._shows_kernels:
            return None
        keys = [self._load(model, models) for model in models]
        head, arrays = self._ask({"verb": "profile", "ids": keys, **asdict(runs)}, feed)
        found: dict[int, bytes] = {key: arrays[str(key)].tobytes() for key in head["ids"]}
        return [found.get(key) for key in keys]

    def memory(self, model: bytes | Path, feed: Feed) -> int | None:
        """See `onnxq.runtime.engines.engine.Engine`."""
        size = self._ask({"verb": "memory", "id": self._load(model)}, feed)[0]["bytes"]
        return None if size is None else int(size)

    @property
    def label(self) -> str:
        """What messages call the engine."""
        return self._label

    @property
    def lives(self) -> bool:
        """Whether it can be asked for more."""
        return self._process.poll() is None

    def close(self) -> None:
        """See `onnxq.runtime.engines.engine.Engine`."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with suppress(OSError):  # it is gone already
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _send(self, elsewhere: Elsewhere) -> None:
        """Wait for the line that says that the other side listens, and send it the worker."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not elsewhere.ready:
            return
        with suppress(OSError):  # what it said last is asked for below
            self._process.stdin.flush()
            for _ in range(_GREETING):  # a shell may say something first
                line = self._process.stdout.readline()
                if line.strip() == elsewhere.ready:
                    self._process.stdin.write(b"%d\n" % len(elsewhere.source) + elsewhere.source)
                    self._process.stdin.flush()
                    return
                if not line:
                    break
        raise EngineError(f"{self._label}: {self._last_words('it gives no shell in which python3 runs')}")

    def _load(self, model: bytes | Path, among: Sequence[bytes | Path] = ()) -> int:
        """Its number there; models that are not among those in use make room for it."""
        if model not in self._loaded:
            idle = [known for known in self._loaded if known not in among]
            for known in idle[: max(len(self._loaded) - _MOST_MODELS + 1, 0)]:
                self._ask({"verb": "drop", "id": self._loaded.pop(known)})
            if isinstance(model, bytes):
                head, _ = self._ask({"verb": "load"}, {"model": np.frombuffer(model, np.uint8)})
            elif self._elsewhere is not None:
                head, _ = self._ask({"verb": "load"}, _files(model))
            else:
                head, _ = self._ask({"verb": "load", "path": str(model.resolve())})
            self._loaded[model] = head["id"]
        return self._loaded[model]

    def _ask(self, head: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        wrong = next((name for name, array in (arrays or {}).items() if array.dtype.kind in "OUS"), None)
        if wrong is not None:
            raise EngineError(f"{self._label}: input {wrong!r} holds text, which is not sent to an engine elsewhere")
        try:
            write_message(self._process.stdin, head, arrays)  # type: ignore[arg-type]
            answer = read_message(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise EngineError(f"{self._label}: {self._last_words(str(error))}") from None
        if answer is None:
            raise EngineError(f"{self._label}: {self._last_words('no answer')}")
        if "error" in answer[0]:
            raise EngineError(f"{self._label}: {answer[0]['error']}")
        return answer

    def _last_words(self, otherwise: str) -> str:
        """How the process ended, and the last line that it wrote."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return otherwise
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        said = f" and said nothing; name {self._wanted}" if self._wanted else ""
        said = f": {lines[-1].strip()[:300]}" if lines else said
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the engine was {ended}{said}" if code < 0 else f"the engine {ended}{said}"
