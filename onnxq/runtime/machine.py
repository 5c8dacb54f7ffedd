"""What measured times depend on beside the model, and where they are kept."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from pathlib import Path

import onnxruntime


def machine_key(threads: int | None) -> str:
    """The machine, the version of ONNX Runtime and the number of threads, as lines of text."""
    machine = (platform.system(), platform.machine(), _processor(), str(os.cpu_count()), str(threads))
    return "\n".join((*machine, onnxruntime.__version__))


def cache_folder() -> Path:
    """The folder of the user in which measurements are kept; it need not exist."""
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        return (Path(given) if given else Path.home() / ".cache") / "onnxq"
    except RuntimeError:  # there is no home folder
        return Path(tempfile.gettempdir()) / "onnxq"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf8", "replace").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor()
