"""What measured times depend on beside the model, and where they are kept."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

import onnxruntime

from onnxq._version import __version__


def machine_key(threads: int | None) -> str:
    """The machine, the version of ONNX Runtime and the number of threads, as lines of text."""
    machine = (platform.system(), platform.machine(), _processor(), str(os.cpu_count()), str(threads))
    return "\n".join((*machine, onnxruntime.__version__))


def versions() -> dict[str, str]:
    """Of onnxq, of Python, and of what computes."""
    found = {"onnxq": __version__, "python": platform.python_version()}
    for name in ("onnxruntime", "onnx", "onnx-ir", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"onnxruntime": onnxruntime.__version__}


def machine_facts(threads: int | None) -> dict[str, object]:
    """The machine that times were measured on, in words.

    Args:
        threads: threads an operator may use.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": threads,
    }


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
