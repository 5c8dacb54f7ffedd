"""An engine in a process of its own: this Python, another one, or a command that starts one elsewhere."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.errors import EngineError
from onnxq.runtime.engines import worker
from onnxq.runtime.engines.engine import About, Refusal
from onnxq.runtime.engines.worker import read_message, write_message


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
    ) -> None:
        """Start the process and the provider in it.

        Args:
            python: the Python that has the runtime; or all words of a command that runs the worker.
            provider: execution provider, by its full name or without ``ExecutionProvider``.
            options: of the provider.
            threads: threads an operator may use.
            label: what messages call the engine.

        Raises:
            EngineError: there is no such program, or no such provider in it.
        """
        command = [str(python), "-u", worker.__file__] if isinstance(python, str | Path) else list(python)
        self._label = label or command[0]
        self._loaded: dict[bytes | Path, int] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=-1
            )
        except OSError as error:
            self._errors.close()
            raise EngineError(f"{self._label}: cannot be started ({error.strerror}); name a Python") from None
        try:
            head, _ = self._ask(
                {"verb": "open", "provider": provider, "options": dict(options or {}), "threads": threads}
            )
        except EngineError:
            self.close()
            raise
        self._about = About(head["runtime"], head["provider"], head["device"])

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
        keys = [self._load(model) for model in models]
        arrays = {f"{i}:{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
        head, _ = self._ask({"verb": "time", "ids": keys, "feeds": len(feeds), "seconds": seconds}, arrays)
        return [[float(entry) for entry in times] for times in head["ms"]]

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

    def _load(self, model: bytes | Path) -> int:
        if model not in self._loaded:
            if isinstance(model, bytes):
                head, _ = self._ask({"verb": "load"}, {"model": np.frombuffer(model, np.uint8)})
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
        said = f": {lines[-1].strip()[:300]}" if lines else ""
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the engine was {ended}{said}" if code < 0 else f"the engine {ended}{said}"
