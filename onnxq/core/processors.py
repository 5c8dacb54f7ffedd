"""How many processors and how much memory this process may use, and numpy's matrix library with it.

That is less than the machine has in a container or under ``taskset``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from threadpoolctl import ThreadpoolController

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_MEMORY = Path("/proc/meminfo")

LARGE = 1024
"""Side of a matrix from which several threads pay even where they wait for each other."""


@functools.cache
def free_processors() -> int:
    """Threads that can compute at once: cores that the process may run on, at most what its control group grants.

    Two hardware threads of one core count once, as in ONNX Runtime's own choice.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(min(_cores(allowed), _quota()), 1)


def _cores(processors: set[int]) -> int:
    """Cores that these processors belong to."""
    return len({_read(_TOPOLOGY / f"cpu{index}/topology/thread_siblings_list") or str(index) for index in processors})


def _quota() -> int:
    """Processors that the control groups of this process grant, rounded up; as good as infinite where none is set."""
    return math.ceil(min([1 << 20, *map(_share, _groups("cpu"))]))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own to the root, for a version 1 controller."""
    for line in (_read(_OWN_GROUPS) or "").splitlines():
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controllers if controllers else _GROUPS
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            yield folder
            if folder == root:
                break
        yield root  # in a container its own group is mounted there, whatever its name outside


def _share(group: Path) -> float:
    """Processors that one group grants: version 2 has both numbers in one file, version 1 in two."""
    both = (_read(group / "cpu.max") or "").split() or [
        _read(group / f"cpu.cfs_{what}_us") or "" for what in ("quota", "period")
    ]
    try:
        quota, period = (float(number) for number in both)
    except ValueError:  # "max", or no such files
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def free_memory() -> int | None:
    """Bytes that this process can still take without swapping, as the system and its control groups say."""
    lines = [line.split() for line in (_read(_MEMORY) or "").splitlines()]
    free = [int(line[1]) * 1024 for line in lines if line[:1] == ["MemAvailable:"] and line[1].isdecimal()]
    for group in _groups("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _read(group / limit) or "", _read(group / usage) or ""
            if most.isdecimal() and used.isdecimal():
                free.append(int(most) - int(used) + _given_up(group))
    return max(min(free), 0) if free else None


def _given_up(group: Path) -> int:
    """Bytes of files that a group keeps and would give up for other memory."""
    lines = [line.split() for line in (_read(group / "memory.stat") or "").splitlines()]
    return sum(int(line[1]) for line in lines if line[0] in ("inactive_file", "active_file"))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def blas_now() -> int:
    """Threads of the matrix library as they are set now."""
    return max((pool["num_threads"] for pool in _libraries().info() if pool["user_api"] == "blas"), default=1)


def blas_exactly(threads: int) -> AbstractContextManager[object]:
    """Let the matrix library use just so many threads: the last bits of its sums depend on it."""
    found: AbstractContextManager[object] = _libraries().limit(limits=threads, user_api="blas")
    return found


def blas_threads(side: int = 0) -> AbstractContextManager[object]:
    """Let the matrix library use one thread, or for large matrices as many as there are free processors.

    Its threads spin while they wait for each other, and so take the processor from those of ONNX Runtime.

    The number depends on the work and the machine, not on what else runs there: with it the last bits of a sum change.

    Args:
        side: rows or columns of the largest matrices; 0 where there are none to speak of.
    """
    return blas_exactly(free_processors() if side >= LARGE else 1)
