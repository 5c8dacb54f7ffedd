"""How many processors are free, from affinity and control groups, and the matrix library's threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from onnxq.core import processors
from onnxq.core.processors import LARGE, blas_threads, free_memory, free_processors


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Control groups of a folder, and eight processors without hyper-threading."""
    monkeypatch.setattr(processors, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "_TOPOLOGY", tmp_path / "cpu")
    monkeypatch.setattr(processors, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processors, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    free_processors.cache_clear()
    yield tmp_path
    free_processors.cache_clear()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_affinity_bounds(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_processors() == 8
    free_processors.cache_clear()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    assert free_processors() == 1


def test_two_hardware_threads_of_a_core_count_once(system: Path) -> None:
    for index in range(8):
        write(system / f"cpu/cpu{index}/topology/thread_siblings_list", f"{index % 4},{index % 4 + 4}\n")
    assert free_processors() == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"own": "0::/a/b\n", "cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        ({"own": "0::/a/b\n", "cgroup/a/b/cpu.max": "max 100000\n", "cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"own": "0::/elsewhere\n", "cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "own": "4:cpu,cpuacct:/x\n5:memory:/y\n",
                "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({"own": "0::/a\n", "cgroup/a/cpu.max": "nonsense\n"}, 8),
        ({"own": "no groups"}, 8),
    ],
)
def test_quota_bounds(system: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        write(system / name, text)
    assert free_processors() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:    7 kB\n"}, 7 << 10),
        ({"meminfo": "MemAvailable: 7 kB", "own": "0::/a\n", "cgroup/a/memory.max": "max"}, 7 << 10),
        (
            {
                "meminfo": "MemAvailable: 7 kB",
                "own": "0::/a/b\n",
                "cgroup/a/memory.max": "5000",
                "cgroup/a/memory.current": "3000",
                "cgroup/a/memory.stat": "anon 2000\nactive_file 600\ninactive_file 400\n",
            },
            3000,
        ),
        (
            {
                "own": "5:memory:/y\n",
                "cgroup/memory/y/memory.limit_in_bytes": "900",
                "cgroup/memory/y/memory.usage_in_bytes": "950",
            },
            0,
        ),
    ],
)
def test_free_memory(system: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        write(system / name, text)
    assert free_memory() == expected


def blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_matrix_library_is_held_to_few_threads_and_let_go(system: Path) -> None:
    np.eye(2) @ np.eye(2)
    before = blas()
    if not before:
        pytest.skip("this numpy has no library whose threads can be set")
    with blas_threads():
        assert blas() == {1}
        with blas_threads(LARGE):
            assert blas() != {1}
        assert blas() == {1}
    assert blas() == before
