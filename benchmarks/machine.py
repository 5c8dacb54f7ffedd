"""What the figures were measured on, without naming the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import onnxq

PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy")
FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx_int8": ("amx_int8",),
}


def facts() -> dict[str, str]:
    """Processor, instruction sets, versions, date: no host name and no path."""
    model, flags = _processor()
    found = {name: "yes" if flags & set(spellings) else "no" for name, spellings in FLAGS.items()}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": model,
        "cores": str(os.cpu_count()),
        **found,
        "system": platform.system(),
        "onnxq": onnxq.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _processor() -> tuple[str, set[str]]:
    """Model name and flags as /proc/cpuinfo has them, or what else is known."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), set()
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    return values.get("model name", platform.machine()), set(values.get("flags", "").split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
