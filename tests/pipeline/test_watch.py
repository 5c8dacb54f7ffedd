"""A model or weights that are replaced or cut during a run are noticed before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.errors import ModelError
from onnxq.graph.files import io, saving
from onnxq.graph.files.watch import Watch
from tests.graph.build import build, weights

TEXT = "g (float[N,32] x) => (float[N,16] y) { h = MatMul (x, v) r = Relu (h) y = MatMul (r, w) }"


def write(path: Path, seed: int, threshold: int) -> None:
    proto = build(TEXT, v=weights(32, 32, seed=seed), w=weights(32, 16, seed=seed + 1))
    saving.save(io.load(proto), path, threshold=threshold)


class Meddling(list):  # type: ignore[type-arg]
    """Samples; when a certain one is read, something happens to a file."""

    def __init__(self, action: Callable[[], object]) -> None:
        generator = np.random.default_rng(0)
        super().__init__({"x": generator.standard_normal((4, 32)).astype(np.float32)} for _ in range(6))
        self._action: Callable[[], object] | None = action

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index == 3 and self._action is not None:
            self._action()
            self._action = None
        return super().__getitem__(index)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other(path: Path) -> None:
    """Other content of the same size and time."""
    found, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    os.utime(fresh, ns=(found.st_atime_ns, found.st_mtime_ns))
    fresh.replace(path)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(8))


CHANGES = [cut, other, longer, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("command", ["quantize", "auto", "calibrate", "diagnose"])
def test_what_changes_during_the_run_is_noticed(
    tmp_path: Path, command: str, external: bool, change: Callable[[Path], object]
) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out"
    write(path, 1, 1000 if external else 10**9)
    file = io.weight_files(path)[0] if external else path
    output.write_bytes(b"old")
    data = Meddling(lambda: change(file))
    with pytest.raises(ModelError, match=r"(was changed|is gone).* while it was being used, so nothing was written"):
        if command == "calibrate":
            onnxq.calibrate(path, output, calibration=data)
        elif command == "diagnose":
            onnxq.diagnose(path, data=data, recipe_out=output)
        else:
            preset = "auto" if command == "auto" else "w8a8"
            onnxq.quantize(path, output, calibration=data, preset=preset, seconds=0.05, budget=3.0)
    assert output.read_bytes() == b"old"


def test_what_is_the_same_is_not_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(path, 1, 10**9)
    watch = Watch.of(path)
    path.touch()
    watch.check()
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    watch.check()
    write(path, 2, 10**9)
    with pytest.raises(ModelError, match="was changed while"):
        watch.check()
