"""Mapped files that somebody cuts while they are in use: one error instead of the end of the process.

Linux sends SIGBUS to a thread that reads a mapped page behind the end of its file, and ends the process. The handler
here puts zeros in place of the missing pages, so that whatever was computing comes to an end, and remembers the file;
then nothing may be made of the result (`refuse_cut`). Files that were not mapped through this module, by ONNX Runtime
or by us, keep what the process did before. It costs nothing until a file is cut.

Elsewhere than on 64-bit Linux nothing is done: there a cut file ends the process, or the system lets nobody cut it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from onnxq.errors import ModelError

_SIGINFO = 4
"""Flag of sigaction: the handler is told the address."""

_ADDRESS = 16
"""Bytes of a siginfo_t in front of the address, where pointers have 64 bits."""

_PRIVATE_FIXED_ANONYMOUS = 0x02 | 0x10 | 0x20

_MAPS = Path("/proc/self/maps")

_FAILED = ctypes.c_void_p(-1).value


class _Action(ctypes.Structure):
    """What the C library calls a ``struct sigaction`` on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_sizes: dict[str, int] = {}
"""Files that are guarded, and what they held when they were mapped."""

_cut: set[str] = set()

_zeroed: list[tuple[int, int]] = []
"""Addresses that are zeros by now, from and to."""

_one_at_a_time = threading.Lock()

_installed: list[Any] = []
"""The C library, the handler, which has to live, and what was there before; empty before the first file."""


def guard(file: Path) -> None:
    """Guard a file that is being mapped; it may be mapped again, by others too.

    Args:
        file: resolved.
    """
    name = str(file)
    _sizes[name] = file.stat().st_size
    _cut.discard(name)
    if not _installed and sys.platform == "linux" and sys.maxsize > 2**32:
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        handler, before = _Handler(_on_bus_error), _Action()
        action = _Action(ctypes.cast(handler, ctypes.c_void_p), flags=_SIGINFO)
        if libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before)) == 0:
            _installed.extend((libc, handler, before))


def refuse_cut() -> None:
    """Make sure that nothing was computed with the missing part of a file.

    Raises:
        ModelError: a guarded file was cut and read behind its end.
    """
    for name in sorted(_cut):
        raise ModelError(
            f"{name}: was cut ({_sizes[name]} bytes, now {_size(name)}) while it was being used, so nothing was "
            "written; run again on a file that stays"
        )


def refuse_shorter() -> None:
    """The same where the system refused to read a mapped page: which it does without a signal.

    Raises:
        ModelError: a guarded file is shorter than it was.
    """
    _cut.update(name for name, size in _sizes.items() if _size(name) < size)
    refuse_cut()


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError:
        return 0


def _on_bus_error(number: int, info: int, context: int) -> None:
    """Put zeros where a guarded file ends; for any other address leave it to whoever was there before.

    Threads that met the same end at once come one after another: what the first of them mended has no file any more.
    """
    address = ctypes.c_size_t.from_address(info + _ADDRESS).value
    with _one_at_a_time:
        end, name = _mapping(address)
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        if name in _sizes and _put_zeros(start, end):
            _cut.add(name)
        elif name or not any(first <= address < last for first, last in _zeroed):
            libc, _, before = _installed
            libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)  # the same page is read again, and meets it


def _put_zeros(start: int, end: int) -> bool:
    """Map zeros in place of a file; whether the system did."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _installed[0].mmap(start, end - start, access, _PRIVATE_FIXED_ANONYMOUS, -1, 0) == _FAILED:
        return False
    _zeroed.append((start, end))
    return True


def _mapping(address: int) -> tuple[int, str]:
    """Where the mapping of an address ends, and its file."""
    with _MAPS.open("rb") as maps:
        for line in maps:
            place, _, _, _, _, *name = line.split(None, 5)
            first, last = (int(bound, 16) for bound in place.split(b"-"))
            if first <= address < last:
                return last, os.fsdecode(name[0].rstrip(b"\n").removesuffix(b" (deleted)")) if name else ""
    return 0, ""
