"""A kill at any file operation leaves the old model or the new one, and the next write removes what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnxq.errors import OnnxqError
from onnxq.graph.files import io, saving
from tests.graph.build import build, weights

TEXT = "g (float[N,32] x) => (float[N,16] y) { [fc] m = MatMul (x, w) [act] y = Add (m, b) }"
ROOT = Path(__file__).resolve().parents[3]


def network(seed: int) -> onnx.ModelProto:
    return build(TEXT, w=weights(32, 16, seed=seed), b=weights(16))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see which file is flushed")
@pytest.mark.parametrize("threshold", [1000, 10**6], ids=["external", "single"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_leaves_the_old_model_or_the_new(tmp_path: Path, threshold: int, existing: bool) -> None:
    old, new = tmp_path / "old.pb", tmp_path / "new.pb"
    onnx.save(network(1), old)
    onnx.save(network(2), new)
    (tmp_path / "work").mkdir()
    arguments = [str(tmp_path / "work"), str(old) if existing else "", str(new), str(threshold)]
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "tests.graph.files.killed", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    before = io.model_hash(io.load(old)) if existing else "absent"
    after = io.model_hash(io.load(new))
    kinds = {line["at"] for line in lines}
    assert {"open", "os.rename", "fsync"} <= kinds
    assert not lines[-1]["killed"]
    states = [line["found"] for line in lines]
    switch = states.index(after)
    assert states == [before] * switch + [after] * (len(states) - switch)
    assert switch > 0
    for line in lines:
        assert line["after"] == after
        assert line["files"] == line["expected"], line


def test_weights_that_a_copy_of_the_model_reads_stay(tmp_path: Path) -> None:
    path, copied = tmp_path / "out.onnx", tmp_path / "copy.bak"
    saving.save(io.load(network(1)), path, threshold=1000)
    shutil.copy(path, copied)
    saving.save(io.load(network(2)), path, threshold=1000)
    assert io.model_hash(io.load(copied)) == io.model_hash(io.load(network(1)))
    copied.unlink()
    saving.save(io.load(network(3)), path, threshold=10**6)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_weights_of_others_stay(tmp_path: Path) -> None:
    for name in ("out.onnx.data", "other.onnx.0123456789abcdef.data", "out.onnx.0123.data"):
        (tmp_path / name).write_bytes(b"weights")
    saving.save(io.load(network(1)), tmp_path / "out.onnx")
    assert len(list(tmp_path.iterdir())) == 4


SPELLINGS = ["same", "dotted", "link", "hard link", "folder link"]


def spelled(file: Path, how: str) -> Path:
    """Another path of a file."""
    folder = file.parent
    if how == "dotted":
        return folder / ".." / folder.name / file.name
    if how == "folder link":
        (folder.parent / "linked").symlink_to(folder)
        return folder.parent / "linked" / file.name
    if how in ("link", "hard link"):
        other = folder.parent / "other"
        other.symlink_to(file) if how == "link" else os.link(file, other)
        return other
    return file


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("what", ["model", "weights", "samples", "feed", "module"])
def test_an_output_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    saving.save(io.load(network(1)), folder / "m.onnx", threshold=1000)
    (folder / "feeds").mkdir()
    used: dict[str, tuple[object, Path]] = {
        "model": (folder / "m.onnx", folder / "m.onnx"),
        "weights": (str(folder / "m.onnx"), io.weight_files(folder / "m.onnx")[0]),
        "samples": (folder / "d.npz", folder / "d.npz"),
        "feed": (folder / "feeds", folder / "feeds" / "a.npz"),
        "module": ("maker:feeds", folder / "maker.py"),
    }
    given, file = used[what]
    if not file.exists():
        file.write_bytes(b"content")
    monkeypatch.chdir(folder)
    before = file.read_bytes()
    with pytest.raises(OnnxqError, match="is an input of this run .*; name another output"):
        saving.check_destination(spelled(file, how), [None, given])
    assert file.read_bytes() == before
    saving.check_destination(folder / "fresh", [given])
    assert not (folder / "fresh").exists()
