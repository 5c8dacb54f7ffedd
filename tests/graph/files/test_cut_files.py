"""A mapped weights file that is cut midway is one error, in whatever thread it is read, and nothing is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system keeps mapped files from being cut"
)

SIDE = 512

START = """
import os, sys, threading, mmap
import numpy as np
from pathlib import Path
from onnxq.graph.files import cut_files, external
external.READ_UP_TO = 0
data = Path("model.data")
def cut(size):
    os.truncate(data, size)
"""

MAPPED = """
with data.open("rb") as file:
    mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
"""


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", START + script]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers whose weights, a megabyte each, are in ``model.data``."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal((SIDE, SIDE)).astype(np.float32) / 20, f"w{n}")
        for n in range(2)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], "second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", SIDE]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data")
    return path


@pytest.mark.parametrize("where", ["here", "in a thread", "without the interpreter's lock"])
def test_what_is_missing_reads_as_zeros_and_is_refused(model: Path, where: str) -> None:
    read = {
        "here": "last = int(mapped[-1]) + int(mapped[5000])",
        "in a thread": "found = []\none = threading.Thread(target=lambda: found.append(int(mapped[-1])))\n"
        "one.start()\none.join()\nlast = found[0]",
        "without the interpreter's lock": "last = int(np.maximum(mapped[8192:], 0).max())",
    }[where]
    done = run(
        model.parent,
        f"cut_files.guard(data.resolve())\n{MAPPED}\nfirst = bytes(mapped[:64])\ncut(5000)\n"
        f"{read}\nassert last == 0 and bytes(mapped[:64]) == first\n"
        "cut_files.refuse_cut()",
    )
    assert f"model.data: was cut ({2 * SIDE * SIDE * 4} bytes, now 5000) while it was being used" in done.stderr
    assert done.returncode == 1


def test_threads_that_meet_the_end_at_once_go_on_together(model: Path) -> None:
    script = f"""
cut_files.guard(data.resolve())
{MAPPED}
old = data.read_bytes()
for _ in range(40):
    data.write_bytes(old)
{textwrap.indent(MAPPED, "    ")}
    cut(0)
    together = threading.Barrier(8)
    def read(first):
        together.wait()
        assert np.maximum(mapped[first::8 * 4096], 0).max() == 0  # numpy lets the other threads run
    threads = [threading.Thread(target=read, args=(n * 4096 + 1,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
cut_files.refuse_cut()
"""
    done = run(model.parent, script)
    assert done.returncode == 1
    assert "model.data: was cut" in done.stderr


def test_other_files_end_the_process_as_before(model: Path) -> None:
    other = "Path('other').write_bytes(b'1')\ncut_files.guard(Path('other').resolve())\n"
    assert run(model.parent, f"{other}{MAPPED}\ncut(0)\nmapped[-1]").returncode == -signal.SIGBUS


def test_a_file_that_was_put_back_is_used_again(model: Path) -> None:
    again = f"cut_files.guard(data.resolve())\n{MAPPED}\nold = data.read_bytes()\ncut(0)\nmapped[-1]\n"
    done = run(model.parent, f"{again}data.write_bytes(old)\ncut_files.guard(data.resolve())\ncut_files.refuse_cut()")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_run_is_one_line_and_writes_nothing(model: Path, command: str) -> None:
    preset = ["-p", "w8a8"] if command == "quantize" else []
    script = f"""
from onnxq.cli._app import app
import sys
sys.path.insert(0, ".")
Path("feeds.py").write_text('''
import os
import numpy as np
def feeds():
    for n in range(12):
        if n == 10:
            os.truncate("model.data", 5000)
        yield dict(x=np.full((4, {SIDE}), n, np.float32))
''')
app(["{command}", "model.onnx", "-o", "out.onnx", "-c", "feeds:feeds", *{preset}])
"""
    done = run(model.parent, script)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "while it was being used, so nothing was written" in line
    assert {path.name for path in model.parent.iterdir()} - {"__pycache__"} == {"feeds.py", "model.data", "model.onnx"}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_runtimes_own_threads_meet_it_too(tmp_path: Path, threads: int) -> None:
    constant = numpy_helper.from_array(np.full((64, SIDE, 64), 2.0, np.float32), "c")  # read in place at each run
    node = helper.make_node("Mul", ["x", "c"], ["y"], "scale")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, SIDE, 64]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], [constant]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="model.data")
    script = "from onnxq.graph.files import io\nfrom onnxq.runtime.session import open_session\n"
    script += "model = io.load('model.onnx')\n"
    script += f"session = open_session(Path('model.onnx'), threads={threads})\ncut(0)\n"
    script += f"session.run(dict(x=np.ones((64, {SIDE}, 64), np.float32)))"
    done = run(tmp_path, script)
    assert done.returncode == 1
    assert "ModelError" in done.stderr and "model.data: was cut" in done.stderr


@pytest.mark.parametrize("threshold", [0, 2**30])
@pytest.mark.parametrize("kept", [0, 5000])
def test_a_model_is_not_saved_from_what_was_cut(model: Path, threshold: int, kept: int) -> None:
    script = "from onnxq.graph.files import io, saving\nfrom onnxq.errors import ModelError\n"
    script += f"model = io.load('model.onnx')\ncut({kept})\n"
    script += f"try:\n    saving.save(model, 'out.onnx', threshold={threshold})\nexcept ModelError as error:\n"
    script += "    print(error)"
    done = run(model.parent, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.data: was cut" in done.stdout
    assert {path.name for path in model.parent.iterdir()} == {"model.data", "model.onnx"}
