"""A device behind a command that gives a shell: what is measured there, and what is said where it is not there."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import save_model

import onnxq
from onnxq.errors import EngineError, RecipeError
from onnxq.graph.files import io
from onnxq.runtime.engines.places import RunsOn
from onnxq.runtime.engines.process_engine import ProcessEngine
from onnxq.runtime.engines.worker import read_message, write_message
from onnxq.runtime.session import open_session
from tests.graph.build import build

RNG = np.random.default_rng(0)
MLP = build(
    """g (float[n, 64] x) => (float[n, 16] y) {
        [a] h = MatMul (x, v) [r] k = Relu (h) [b] y = MatMul (k, w) }""",
    v=RNG.standard_normal((64, 128)).astype(np.float32),
    w=RNG.standard_normal((128, 16)).astype(np.float32),
)
FEEDS = [{"x": RNG.standard_normal((3, 64)).astype(np.float32)} for _ in range(2)]
BASH = RunsOn(device="bash -c", python=sys.executable)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    path.write_bytes(MLP.SerializeToString())
    return path


@pytest.mark.parametrize("device", ["bash -c", "sh", "env -i sh"])
def test_a_shell_is_a_device(device: str) -> None:
    engine = RunsOn(device=device, python=sys.executable).open()
    content = MLP.SerializeToString()
    try:
        (got,), _ = engine.run(content, FEEDS)
        first, second = engine.time([content, content], FEEDS, 0.02)
        memory = engine.memory(content, FEEDS[0])
    finally:
        engine.close()
    np.testing.assert_allclose(got, open_session(content).run(FEEDS[0])[0], rtol=1e-5, atol=1e-5)
    assert len(first) == len(second) >= 3
    assert memory is None or memory > 0


def test_a_shell_may_greet() -> None:
    greeting = "sh -c 'echo Welcome; echo; exec sh -c \"$0\"'"
    engine = RunsOn(device=greeting, python=sys.executable).open()
    assert engine.about().provider == "CPUExecutionProvider"
    engine.close()


def test_weights_in_files_of_their_own_are_sent(tmp_path: Path) -> None:
    weight = RNG.standard_normal((700, 700)).astype(np.float32)
    model = build("g (float[n, 700] x) => (float[n, 700] y) { y = MatMul (x, w) }", w=weight)
    path = tmp_path / "m.onnx"
    save_model(model, path, save_as_external_data=True, location="sub.bin", size_threshold=100)
    assert [file.name for file in io.weight_files(path)] == ["sub.bin"]
    feed = {"x": np.ones((1, 700), np.float32)}
    engine = BASH.open()
    try:
        ((got,),) = engine.run(path, [feed])
        assert engine.time([path], [feed], 0.01)[0]
    finally:
        engine.close()
    np.testing.assert_allclose(got, feed["x"] @ weight, rtol=1e-3, atol=1e-3)


def test_no_file_is_written_outside(tmp_path: Path) -> None:
    engine = BASH.open()
    try:
        with pytest.raises(EngineError, match="outside the model's folder"):
            engine._ask({"verb": "load"}, {"model": np.zeros(3, np.uint8), "file:../../x": np.zeros(3, np.uint8)})
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("device", "python", "said"),
    [
        ("/nonexistent/ssh pi", "python3", "cannot be started"),
        ("bash -c", "/nonexistent/python3", "exit code 127: .*No such file"),
        (
            "bash -c",
            "true",
            "device 'bash -c': the engine ended with exit code 0 and said nothing; name a",
        ),
        ("false", "python3", "exit code 1 and said nothing; name a command that gives a shell"),
        ("cat", "python3", "exit code 1: cat: "),
    ],
)
def test_what_is_no_device(device: str, python: str, said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        RunsOn(device=device, python=python).open()
    assert "\n" not in str(caught.value)


def test_a_device_without_onnxruntime(tmp_path: Path) -> None:
    alone = tmp_path / "python"
    alone.write_text(f'#!/bin/sh\nexport PYTHONPATH={tmp_path}\nexec {shlex.quote(sys.executable)} "$@"\n')
    alone.chmod(0o755)
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such library')\n")
    with pytest.raises(EngineError, match="has no onnxruntime; pip install it there"):
        RunsOn(device="bash -c", python=alone).open()
    (tmp_path / "numpy.py").write_text("raise ImportError('no such library')\n")
    with pytest.raises(EngineError, match="has no numpy; pip install onnxruntime there"):
        RunsOn(device="bash -c", python=alone).open()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": " "}, "--device: is empty"),
        ({"provider": ""}, "--provider: is empty; name one"),
        ({"device": "ssh 'pi"}, "is no command"),
        ({"engine": "tvm"}, "--engine: there is no 'tvm'"),
        ({"engine": "web", "device": "ssh pi"}, "--engine web: does not go with --device"),
        ({"engine": "web", "provider": "cpu"}, "--engine web: does not go with --provider"),
        ({"node_modules": "/x"}, "--node-modules: is for --engine web"),
        ({"provider_options": {"a": "b"}}, "--provider-option: name the provider"),
    ],
)
def test_what_does_not_go_together(given: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        RunsOn(**given)  # type: ignore[arg-type]


def test_a_provider_that_is_not_there_is_said_with_those_that_are(mlp: Path) -> None:
    with pytest.raises(EngineError, match=r"provider 'CUDA' is not in .*it has .*CPUExecutionProvider"):
        onnxq.benchmark([mlp], runs_on=RunsOn(provider="CUDA"), seconds=0.01)


def test_a_provider_with_options(mlp: Path) -> None:
    with pytest.raises(RecipeError, match="--provider-option: the CPU provider has no options"):
        RunsOn(provider="cpu", provider_options={"use_arena": "0"})  # onnxruntime takes any, and looks at none
    result = onnxq.benchmark([mlp, mlp], runs_on=RunsOn(provider="cpu"), seconds=0.02)
    assert [row.runs >= 3 for row in result.rows] == [True, True]
    assert "measured on CPUExecutionProvider" in " ".join(result.warnings)


def test_a_model_on_the_device_is_compared_with_float_here(mlp: Path) -> None:
    data = {"x": RNG.standard_normal((12, 64)).astype(np.float32)}
    samples = [{"x": row[None]} for row in data["x"]]
    there = onnxq.compare(mlp, mlp, data=samples, runs_on=BASH)
    assert there.samples == 12
    assert there.sqnr_db is not None
    assert there.sqnr_db > 100


def test_quantize_measures_on_the_device(mlp: Path, tmp_path: Path) -> None:
    samples = [{"x": RNG.standard_normal((8, 64)).astype(np.float32)} for _ in range(10)]
    out = tmp_path / "q.onnx"
    result = onnxq.quantize(mlp, out, calibration=samples, preset="w8a8", runs_on=BASH, seconds=0.05)
    assert out.is_file()
    assert result.latency_ratio is not None
    assert result.engine is not None
    assert result.engine["engine"].startswith("CPUExecutionProvider on ")
    assert result.engine["sqnr_db"] == pytest.approx(result.engine["sqnr_db_on_cpu"], abs=0.5)
    auto = onnxq.quantize(mlp, tmp_path / "a.onnx", calibration=samples, runs_on=BASH, seconds=0.05, budget=20)
    assert [row["name"] for row in auto.candidates if row["latency_ratio"] is not None]


def test_what_is_not_sent(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--kv-cache: "):
        onnxq.quantize(mlp, tmp_path / "q.onnx", preset="w8", kv_cache="int8", runs_on=BASH)
    assert not (tmp_path / "q.onnx").exists()
    with pytest.raises(RecipeError, match="runs_on is .*onnxq.RunsOn"):
        onnxq.benchmark([mlp], runs_on="ssh pi@kitchen")  # type: ignore[arg-type]


def _dying(folder: Path, verb: str) -> Path:
    """A Python that ends at the first request of a kind, as a device does that loses its connection."""
    python = folder / "python"
    code = folder / "dying.py"
    code.write_text(
        "import os, sys\n"
        "from json import loads as real\n"
        "import json\n"
        "def loads(line):\n"
        "    head = real(line)\n"
        f"    return os._exit(9) if isinstance(head, dict) and head.get('verb') == {verb!r} else head\n"
        "json.loads = loads\n"
        "exec(sys.argv[1])\n"
    )
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -u {shlex.quote(str(code))} "$3"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(("verb", "preset"), [("run", "w8a8"), ("time", "w8a8"), ("time", "auto"), ("refused", "w8")])
def test_a_device_that_disappears_midway(mlp: Path, tmp_path: Path, verb: str, preset: str) -> None:
    samples = [{"x": RNG.standard_normal((8, 64)).astype(np.float32)} for _ in range(10)]
    runs_on = RunsOn(device="bash -c", python=_dying(tmp_path, verb))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EngineError, match="device 'bash -c': the engine ended with exit code 9") as caught:
        onnxq.quantize(mlp, tmp_path / "q.onnx", calibration=samples, preset=preset, runs_on=runs_on, seconds=0.02)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of OpenSSH on loopback with keys of its own; the command that logs in, and the server's process."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user_key.pub", tmp_path / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/authorized_keys\n"
        f"PidFile {tmp_path}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:  # where the server of a system that never ran it drops its privileges
        Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path=SBIN)
    assert sshd is not None
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log, start_new_session=True
        )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    login = (
        f"ssh -p {port} -i {tmp_path}/user_key -F none -o StrictHostKeyChecking=no "
        f"-o UserKnownHostsFile={tmp_path}/known_hosts -o BatchMode=yes {getpass.getuser()}@127.0.0.1"
    )
    try:
        yield login, server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.ssh
def test_auto_behind_ssh_chooses_as_here(host: tuple[str, subprocess.Popen[bytes]], root: Path, tmp_path: Path) -> None:
    there = RunsOn(device=host[0], python=sys.executable)
    chosen = []
    for name, place in (("here", None), ("there", there)):
        result = onnxq.quantize(
            root / "models" / "digits_resnet.onnx",
            tmp_path / f"{name}.onnx",
            calibration=root / "calibration_data" / "digits_resnet.npz",
            runs_on=place,
            seconds=0.1,
        )
        assert (result.engine is None) == (place is None)
        best: dict[str, float] = {}
        for row in result.candidates:
            form = row["name"].partition(" ")[0]
            best[form] = max(best.get(form, 0.0), row["latency_ratio"] or 0.0)
        first, second, *_ = sorted(best.values(), reverse=True)
        chosen.append((result.preset, first > 1.3 * second))
    (preset_here, clear_here), (preset_there, clear_there) = chosen
    assert preset_here == preset_there or not (clear_here and clear_there)


def children_of(pid: int) -> list[int]:
    """All processes below one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grandchild for child in found for grandchild in children_of(child)]


@pytest.mark.ssh
def test_a_connection_that_breaks_is_one_line(host: tuple[str, subprocess.Popen[bytes]], mlp: Path) -> None:
    command, server = host
    engine = RunsOn(device=command, python=sys.executable).open()
    assert len(engine.run(mlp, FEEDS)) == 2
    connections = children_of(server.pid)
    assert connections
    os.killpg(server.pid, signal.SIGKILL)
    for child in connections:
        os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineError, match="device 'ssh .*exit code 255"):
        engine.run(mlp, FEEDS)
    engine.close()
    with pytest.raises(EngineError, match="exit code 255: .*[Cc]onnect"):
        RunsOn(device=command, python=sys.executable).open()


@pytest.mark.ssh
@pytest.mark.parametrize(("verb", "preset"), [("run", "w8a8"), ("time", "w8a8"), ("time", "auto")])
def test_nothing_is_written_where_the_connection_breaks_midway(
    host: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, preset: str
) -> None:
    """The server's child is killed while the device is asked for something; the server itself lives on."""
    command, server = host
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mlp.onnx").write_bytes(MLP.SerializeToString())
    samples = [{"x": RNG.standard_normal((8, 64)).astype(np.float32)} for _ in range(10)]
    asked = ProcessEngine._ask

    def broken(engine: ProcessEngine, head: dict[str, Any], *arrays: Any, **options: Any) -> Any:
        if head["verb"] == verb:
            for child in children_of(server.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        return asked(engine, head, *arrays, **options)

    monkeypatch.setattr(ProcessEngine, "_ask", broken)
    there = RunsOn(device=command, python=sys.executable)
    with pytest.raises(EngineError, match="device 'ssh .*exit code 255") as caught:
        onnxq.quantize(
            folder / "mlp.onnx", folder / "q.onnx", calibration=samples, preset=preset, runs_on=there, seconds=0.05
        )
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["mlp.onnx"]
    monkeypatch.undo()
    engine = there.open()
    assert engine.about().provider == "CPUExecutionProvider", "the server takes the next connection"
    engine.close()


def test_frames_of_memory_maps(tmp_path: Path) -> None:
    np.arange(5, dtype=np.uint8).tofile(tmp_path / "x")
    stream = BytesIO()
    write_message(stream, {}, {"x": np.memmap(tmp_path / "x", np.uint8, "r")})
    stream.seek(0)
    found = read_message(stream)
    assert found is not None
    np.testing.assert_array_equal(found[1]["x"], np.arange(5))
