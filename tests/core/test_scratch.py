"""Temporary folders: gone with their owner, and those of killed processes with the next run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onnxq.core import scratch

pytestmark = pytest.mark.skipif(scratch.fcntl is None, reason="this system has no file locks")

HOLDER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from onnxq.core.scratch import Scratch
path = Scratch.make().path
(path / "big").write_text("x")
print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_goes_with_all_it_holds(place: Path) -> None:
    with scratch.folder() as path:
        assert path.parent == place
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "sub").mkdir()
        (path / "sub" / "file").write_text("x")
    assert list(place.iterdir()) == []
    with pytest.raises(KeyError, match="stop"), scratch.folder():
        raise KeyError("stop")
    assert list(place.iterdir()) == []


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(place: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with scratch.folder() as own:
            scratch.sweep(place)
            assert (left / "big").is_file()
            assert own.is_dir()
            other.kill()
            other.wait()
            assert (left / "big").is_file()
            scratch.sweep(place)
            assert not left.exists()
            assert own.is_dir()


def test_what_others_called_alike_stays(place: Path) -> None:
    target = place / "target"
    target.mkdir()
    (target / "file").write_text("x")
    (place / "onnxq-models").mkdir()
    (place / "onnxq-0123456789abcdef").mkdir()
    (place / f"onnxq-{'0' * 16}.tmp").write_text("a file")
    (place / f"onnxq-{'1' * 16}.tmp").symlink_to(target)
    before = sorted(place.rglob("*"))
    scratch.sweep(place)
    assert sorted(place.rglob("*")) == before


def test_a_place_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    scratch.sweep(tmp_path / "absent")


def test_the_first_folder_of_a_process_sweeps(place: Path) -> None:
    stale = place / f"onnxq-{'a' * 16}.tmp"
    stale.mkdir()
    with scratch.folder():
        assert not stale.exists()
