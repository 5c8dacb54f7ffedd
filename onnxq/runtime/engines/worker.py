"""The other side of an engine: reads requests from standard input, computes, and writes answers to standard output.

This file is complete in itself. It is run by the Python that has the runtime, here or elsewhere, and needs numpy and
onnxruntime there; to another machine it is sent as it is. `web_worker.mjs` speaks the same in Node. A message is a line
of JSON, and behind it the bytes of the arrays that the line describes, one after the other, in native byte order and
row-major. Nothing is ever unpickled.

    {"verb": "open", "provider": "cpu", "options": {}, "threads": 1}     -> {"runtime": …, "provider": …, "device": …}
    {"verb": "load", "path": …}, or arrays "model" and "file:NAME"       -> {"id": 0}
    {"verb": "refused", "id": 0}                                         -> {"refused": [[node, operator, reason], …]}
    {"verb": "run", "id": 0}, arrays by input name                       -> arrays by output name
    {"verb": "time", "ids": [0, 1], "feeds": 1, "seconds": 1.0}, arrays  -> {"ms": [[…], […]], "celsius": [45.0, 47.5]}
    {"verb": "profile", "ids": [0, 1], "seconds": 1.0}, arrays           -> {"ids": [0, 1]}, profiles as bytes by number
    {"verb": "memory", "id": 0}, arrays by input name                    -> {"bytes": 123456}
    {"verb": "drop", "id": 0}                                            -> {}

An answer with "error" says in one line what went wrong; the next request is then taken as before.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import numpy as np
except ImportError:
    sys.exit(f"{sys.executable} has no numpy; pip install onnxruntime there")

Arrays = dict[str, Any]

_PLUGINS = {"QNNExecutionProvider": "onnxruntime_qnn"}
"""Providers that come as a package of their own: the module that knows where the library is."""

# A Snapdragon 8 Gen 3: the simulator's default is the oldest chip, which neither rounds well nor gathers by int64.
_SIMULATED = {"soc_model": "57"} if platform.machine() in ("x86_64", "AMD64") else {}
_DEFAULTS = {"QNNExecutionProvider": {"offload_graph_io_quantization": "0", **_SIMULATED}}
"""Options of a provider where the caller gives none: here that it takes Q and DQ at inputs and outputs as well."""

_THREADS = {"OpenVINOExecutionProvider": "num_of_threads"}  # providers that have threads of their own

_LONGEST = 1 << 34
"""Bytes of an array; more is no array but a broken stream."""


def write_message(stream: BinaryIO, head: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
    """Write a message and flush it."""
    parts = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.name, list(array.shape)] for name, array in parts.items()]
    stream.write(json.dumps({**head, "arrays": described}).encode() + b"\n")
    for array in parts.values():
        if array.size:
            stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], Arrays] | None:
    """Read a message; None at the end of the stream.

    Raises:
        ValueError: what comes is no message.
    """
    line = stream.readline()
    if not line:
        return None
    try:
        head = json.loads(line)
        described = head.pop("arrays")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"no message but {line[:80]!r}") from None
    arrays: Arrays = {}
    for name, dtype, shape in described:
        kind = _dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if not 0 <= size <= _LONGEST:
            raise ValueError(f"array {name!r} of {size} bytes")
        content = stream.read(size)
        if len(content) != size:
            return None
        arrays[name] = np.frombuffer(content, kind).reshape(shape)
    return head, arrays


def _dtype(name: str) -> Any:
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(getattr(importlib.import_module("ml_dtypes"), name))


class _Worker:
    """The runtime, and the models that it has loaded."""

    def __init__(self) -> None:
        self._ort: Any = None
        self._provider, self._threads, self._plugin, self._count = "", 1, False, 0
        self._options: dict[str, str] = {}
        self._models: dict[int, Any] = {}
        self._sessions: dict[int, Any] = {}
        self._folder: Any = None

    def open(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Start the provider."""
        try:
            self._ort = importlib.import_module("onnxruntime")
        except ImportError:
            raise RuntimeError(f"{sys.executable} has no onnxruntime; pip install it there") from None
        built_in = set(self._ort.get_available_providers())
        self._provider = self._named(head["provider"])
        self._plugin = self._provider not in built_in
        self._threads = int(head.get("threads") or 1)
        counted = {name: str(self._threads) for key, name in _THREADS.items() if key == self._provider}
        self._options = {**_DEFAULTS.get(self._provider, {}), **counted, **head.get("options", {})}
        return {
            "runtime": f"onnxruntime {self._ort.__version__}",
            "provider": self._provider,
            "device": self._device(),
            "profiles": True,
        }, {}

    def _named(self, name: str) -> str:
        known = list(self._ort.get_available_providers())
        for provider, module in _PLUGINS.items():
            if provider in known or importlib.util.find_spec(module) is None:
                continue
            found = importlib.import_module(module)
            self._ort.register_execution_provider_library(provider, found.get_library_path())
            known.append(provider)
        for provider in known:
            if name.lower() in (provider.lower(), provider.removesuffix("ExecutionProvider").lower()):
                return str(provider)
        raise RuntimeError(
            f"provider {name!r} is not in the onnxruntime of {sys.executable}; it has {', '.join(known)}"
        )

    def _device(self) -> str:
        if self._provider == "QNNExecutionProvider":
            backend = Path(self._options.get("backend_path", "libQnnHtp.so")).name
            return f"{backend} on {platform.machine()}"
        kind = self._options.get("device_type")
        return f"{kind + ' of ' if kind else ''}{platform.machine()} {platform.system()}"

    def load(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Take a model; it is opened when something is asked of it."""
        self._count += 1
        files = {name.partition(":")[2]: array for name, array in arrays.items() if name.startswith("file:")}
        if files:
            self._models[self._count] = self._written({"model.onnx": arrays["model"], **files})
        else:
            self._models[self._count] = head["path"] if "path" in head else arrays["model"].tobytes()
        return {"id": self._count}, {}

    def _written(self, files: Arrays) -> str:
        """The path of a model whose files were sent; they go when the worker ends."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxq-")
        folder = Path(self._folder.name, str(self._count)).resolve()
        for name, content in files.items():
            path = Path(os.path.normpath(folder / name))
            if folder not in path.parents:
                raise RuntimeError(f"file {name!r} lies outside the model's folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            content.tofile(path)
        return str(folder / "model.onnx")

    def drop(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Forget a model."""
        self._sessions.pop(head["id"], None)
        self._models.pop(head["id"], None)
        return {}, {}

    def _session(self, key: int) -> Any:
        if key not in self._sessions:
            self._sessions[key] = self._opened(self._models[key], verbose=False)
        return self._sessions[key]

    def _opened(self, model: Any, *, verbose: bool, profile: str = "") -> Any:
        options = self._ort.SessionOptions()
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        options.log_severity_level = 0 if verbose else 4
        options.intra_op_num_threads = self._threads
        if verbose:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        given = {key: str(value) for key, value in self._options.items()}
        if self._plugin:
            devices = [device for device in self._ort.get_ep_devices() if device.ep_name == self._provider][:1]
            if not devices:
                raise RuntimeError(f"{self._provider} finds no device here")
            if self._provider == "QNNExecutionProvider":
                given.setdefault("backend_path", importlib.import_module("onnxruntime_qnn").get_qnn_htp_path())
            options.add_provider_for_devices(devices, given)
            return self._ort.InferenceSession(model, options)
        return self._ort.InferenceSession(model, options, providers=[(self._provider, given)], enable_fallback=0)

    def refused(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Open the model once more, with everything logged, and read what is not on the provider, and why."""
        with _log() as text:
            session = self._opened(self._models[head["id"]], verbose=True)
        log = text[0]
        reasons = dict(_reasons(log))
        if hasattr(session, "get_provider_graph_assignment_info"):
            placed = [
                (node.name, node.op_type)
                for part in session.get_provider_graph_assignment_info()
                if part.ep_name != self._provider
                for node in part.get_nodes()
            ]
        else:
            placed = list(_placed_elsewhere(log, self._provider))
        self._sessions[head["id"]] = session
        return {"refused": [[name, op_type, reasons.get(name, "")] for name, op_type in placed]}, {}

    def run(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Run a model once."""
        session = self._session(head["id"])
        names = [output.name for output in session.get_outputs()]
        return {}, dict(zip(names, session.run(None, _fitting(session, arrays)), strict=True))

    def time(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Let models take turns on the feeds, after one run each that does not count."""
        sessions = [self._session(key) for key in head["ids"]]
        feeds: list[Arrays] = [{} for _ in range(head["feeds"])]
        for name, array in arrays.items():
            number, _, own = name.partition(":")
            feeds[int(number)][own] = array
        fitting = [[_fitting(session, each) for each in feeds] for session in sessions]
        for session, mine in zip(sessions, fitting, strict=True):
            session.run(None, mine[0])
        taken: list[list[float]] = [[] for _ in sessions]
        warm = _celsius()
        end, turn = time.perf_counter() + head["seconds"] * len(sessions), 0
        while turn < 3 or time.perf_counter() < end:
            for i, (session, mine) in enumerate(zip(sessions, fitting, strict=True)):
                feed = mine[turn % len(mine)]
                started = time.perf_counter()
                session.run(None, feed)
                taken[i].append(1000.0 * (time.perf_counter() - started))
            turn += 1
        return {"ms": taken, "celsius": [warm, _celsius()]}, {}

    def profile(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Let models take turns, and give the runtime's profile of each that loads and runs."""
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            sessions = {}
            for key in head["ids"]:
                with suppress(Exception):  # it has no such kernel; the others are measured
                    session = self._opened(self._models[key], verbose=False, profile=str(Path(folder, str(key))))
                    session.run(None, _fitting(session, arrays))
                    sessions[key] = session
            end, turn = time.perf_counter() + head["seconds"] * len(sessions), 0
            while sessions and turn < head["most"] and (turn < head["fewest"] or time.perf_counter() < end):
                for session in sessions.values():
                    session.run(None, _fitting(session, arrays))
                turn += 1
            files = {key: session.end_profiling() for key, session in sessions.items()}
            return {"ids": list(files)}, {str(key): np.fromfile(path, np.uint8) for key, path in files.items()}

    def memory(self, head: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Load a model and run it once in a process of its own, and see what that takes above the runtime itself."""
        if not Path("/proc/self/status").exists():
            return {"bytes": None}, {}
        model = self._models[head["id"]]
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            if isinstance(model, bytes):
                path = Path(folder, "model.onnx")
                path.write_bytes(model)
                model = str(path)
            feed = _fitting(self._session(head["id"]), arrays)
            for index, array in enumerate(feed.values()):
                np.save(Path(folder, f"{index}.npy"), array, allow_pickle=False)
            about = {"model": model, "folder": folder, "names": list(feed), "threads": self._threads}
            command = [sys.executable, "-W", "ignore", "-c", _MEMORY, json.dumps(about)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the process that measures memory failed: {last}")
        return {"bytes": int(done.stdout)}, {}


_MEMORY = """
import json, sys
import numpy, onnxruntime
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
about = json.loads(sys.argv[1])
feed = {name: numpy.load(f"{about['folder']}/{i}.npy") for i, name in enumerate(about["names"])}
before = status("VmRSS")
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = about["threads"]
session = onnxruntime.InferenceSession(about["model"], options, providers=["CPUExecutionProvider"])
session.run(None, feed)
print(max(status("VmHWM") - before, 0))
"""
"""Measures on the CPU provider: the memory of another device cannot be seen from its process."""


def _celsius() -> float | None:
    """The hottest of the sensors that the system shows; None where it shows none."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        with suppress(OSError, ValueError):
            found.append(int(zone.read_text()) / 1000.0)
    return max(found, default=None)


def _fitting(session: Any, feed: Arrays) -> Arrays:
    """The feed with float types as the model takes them: that of a float original serves its halved form."""
    kinds, found = {"tensor(float16)": "float16", "tensor(float)": "float32"}, {}
    for value in session.get_inputs():
        kind, array = kinds.get(value.type), feed.get(value.name)
        if array is not None:
            found[value.name] = array.astype(kind) if kind and array.dtype.kind == "f" else array
    return found


@contextmanager
def _log() -> Iterator[list[str]]:
    """What is written to standard error meanwhile, libraries included; read it afterwards."""
    text = [""]
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text[0] = file.read().decode(errors="replace")


_FAILED = re.compile(r"Validation FAILED for \d+ nodes.*\n((?:\s*Operator type: .*\n)+)\s*REASON : (.*)")
_UNIT = re.compile(r"Operator type: (\S+) Node name: (.*) Node index")
_VALIDATED = re.compile(r"failed for node `(.*?)` of type `(.*?)` with error code (\d+)")


def _reasons(log: str) -> Iterator[tuple[str, str]]:
    """(node, reason) of what the QNN provider says in its log."""
    detail = {}
    for name, kind, code in _VALIDATED.findall(log):
        detail[re.sub(r"_\d+$", "", name)] = detail[name] = f"{kind} fails validation with error code {code}"
    for match in _FAILED.finditer(log):
        members = _UNIT.findall(match[1])
        more = next((detail[name] for _, name in members if name in detail), "")
        for _, name in members:
            yield name, more or match[2].strip()


_PLACED = re.compile(r"Node\(s\) placed on \[(\w+)\]")
_NODE = re.compile(r"^\s+(\w+) \((.*)\)\s*$")


def _placed_elsewhere(log: str, provider: str) -> Iterator[tuple[str, str]]:
    """(node, operator) of what the runtime's log says it has placed on other providers."""
    there = ""
    for line in log.splitlines():
        head = _PLACED.search(line)
        if head:
            there = head[1]
            continue
        node = _NODE.match(line.split("]", 1)[-1] if line.startswith("20") else line)
        if node and there and there != provider:
            yield node[2], node[1]


def main() -> None:
    """Answer until the other side closes the stream; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = _Worker()
    verbs = {
        name: getattr(worker, name) for name in ("open", "load", "refused", "run", "time", "profile", "memory", "drop")
    }
    while (message := read_message(sys.stdin.buffer)) is not None:
        head, arrays = message
        try:
            write_message(out, *verbs[head["verb"]](head, arrays))
        except Exception as error:  # whatever it is, the other side is told
            text = re.split(r"Exception from \S+: ", " ".join(str(error).split()))[-1] or type(error).__name__
            write_message(out, {"error": text[:2000]})


if __name__ == "__main__":
    main()
