"""Peak memory of a model, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from onnxq.core import scratch
from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.runtime.custom_ops import registered

_TIMEOUT = 120.0
_STATUS = Path("/proc/self/status")

_SCRIPT = """
import json, sys
import numpy, onnxruntime

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))

model, threads, libraries, *files = sys.argv[1:]
names = [line for line in open(files[0], encoding="utf-8").read().split("\\0") if line]
feed = {name: numpy.load(path) for name, path in zip(names, files[1:])}
before = status("VmRSS")
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = int(threads)
for library in json.loads(libraries):
    options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
session.run(None, feed)
print(max(status("VmHWM") - before, 0))
"""


def peak_memory(model: bytes | Path, feed: Feed, threads: int | None = 1) -> int | None:
    """Bytes of memory to load a model and run it once, above those that the runtime takes by itself.

    Returns:
        None where the system does not tell (it is read from ``/proc``).

    Raises:
        ModelError: the model failed in that process.
    """
    if not _STATUS.exists():
        return None
    with scratch.folder() as folder:
        path = model
        if not isinstance(path, Path):
            path = folder / "model.onnx"
            path.write_bytes(model if isinstance(model, bytes) else b"")
        files = [folder / "names"]
        files[0].write_text("\0".join(feed), encoding="utf-8")
        for index, array in enumerate(feed.values()):
            files.append(folder / f"{index}.npy")
            np.save(files[-1], _plain(array), allow_pickle=False)
        command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(path), str(threads or 0)]
        command += [json.dumps(registered()), *map(str, files)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
                env={**os.environ, "PYTHONUTF8": "1"},  # paths are UTF-8 there, whatever the locale is here
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"model: did not run once within {_TIMEOUT:.0f} s, so its memory is not known") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"model: the process that measures memory failed: {last}")
    return int(done.stdout)


def _plain(array: Array) -> Array:
    return np.asarray(array, np.float32) if array.dtype.kind == "V" else array
