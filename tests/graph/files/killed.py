"""Saves a model and is killed at the n-th file operation, for n from 0 on, each in a process of its own.

Arguments: folder, the old model, the new model, threshold of external data. Prints a line of JSON for each kill: the
operation, and which model is then in ``out.onnx``: its hash, "absent" or what is wrong with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import onnx_ir  # noqa: F401  (imported before the operations are counted)

from onnxq.errors import OnnxqError
from onnxq.graph.files import io, saving

EVENTS = {"open", "os.rename", "os.remove", "os.chmod"}


def save_and_die(model: object, path: Path, threshold: int, at: int, told: Path) -> None:
    """Save in a forked child; the operation with the number ``at`` never happens."""
    left, folder = [at], str(path.parent)

    def count(name: str, place: object) -> None:
        if not str(place).startswith(folder):
            return
        if left[0] == 0:
            left[0] -= 1  # what follows is not counted
            told.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    real = os.fsync

    def fsync(descriptor: int) -> None:
        count("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(lambda event, arguments: count(event, arguments[0]) if event in EVENTS else None)
    saving.save(model, path, threshold=threshold)  # type: ignore[arg-type]


def found(path: Path) -> str:
    """The model in a file."""
    if not path.exists():
        return "absent"
    try:
        return io.model_hash(io.load(path))
    except OnnxqError as error:
        return str(error)


def main() -> None:
    """Kill at each operation in turn."""
    base, old, new, threshold = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    model = io.load(new)
    for at in range(200):
        folder = base / str(at)
        folder.mkdir()
        path, told = folder / "out.onnx", base / f"{at}.txt"
        if old:
            saving.save(io.load(old), path, threshold=threshold)
        child = os.fork()
        if child == 0:
            save_and_die(model, path, threshold, at, told)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        line = {"killed": killed, "at": told.read_text() if killed else "", "found": found(path)}
        saving.save(io.load(new), path, threshold=threshold)
        line["after"] = found(path)
        line["files"] = sorted(file.name for file in folder.iterdir())
        line["expected"] = sorted({path.name, *(file.name for file in io.weight_files(path))})
        print(json.dumps(line))
        shutil.rmtree(folder)
        if not killed:
            return


if __name__ == "__main__":
    main()
