"""Work in other processes ends when the benchmark does, however that is ended, and takes along what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.child_processes import run_in_group

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.child_processes import end_with_parent
end_with_parent()
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
import os
Path("pids.new").write_text(f"{os.getpid()} {inner.pid}")
Path("pids.new").rename("pids")
time.sleep(600)
"""

PARENT = f"""
import os, sys
from pathlib import Path
from benchmarks.child_processes import run_in_group
run_in_group([sys.executable, "-c", {CHILD!r}], Path.cwd(), dict(os.environ), 600)
"""


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(what: object, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to see which processes there are")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_the_parent_ends_what_it_started(tmp_path: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert wait_for((tmp_path / "pids").is_file)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(is_alive(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(timeout=60)
    assert wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_what_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    status = run_in_group([sys.executable, "-c", CHILD], tmp_path, environment, 3.0)
    assert status is None
    if (tmp_path / "pids").is_file() and Path("/proc/self/stat").is_file():
        assert wait_for(lambda: not any(is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split()))


def test_the_status_is_the_child_s(tmp_path: Path) -> None:
    assert run_in_group([sys.executable, "-c", "raise SystemExit(7)"], tmp_path, dict(os.environ), 60.0) == 7
