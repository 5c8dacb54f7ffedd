"""Work on a Ray cluster: the bytes of a local run, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from benchmarks.big_models import write_llama
from onnxq.core.tasks import Here
from onnxq.errors import CalibrationError, EngineError, RecipeError
from onnxq.graph.files import io
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.engines.places import RunsOn, start
from onnxq.runtime.engines.ray_engine import RayTasks
from onnxq.runtime.engines.shards import Gathered, gather

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of three layers, and samples."""
    path = tmp_path_factory.mktemp("model") / "llama.onnx"
    write_llama(path, layers=3, width=256, inner=256, words=512)
    np.savez(path.with_suffix(".npz"), input_ids=np.random.default_rng(0).integers(0, 512, (10, 24)))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with a processor each, on this one."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def tasks(cluster: Any) -> Iterator[RayTasks]:
    """The cluster as tasks are given to it."""
    opened = RayTasks(cluster.address)
    yield opened
    opened.close()


def content_of(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*"))]


def double(number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return 2 * number


def die_once(number: int, folder: str) -> int:
    """Ends its worker the first time that it is called with 3."""
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return 2 * number


def refuse(number: int) -> int:
    raise CalibrationError(f"layer {number}: does not fit")


def test_shards_merge_to_the_bits_of_one_run(llama: Path) -> None:
    model = io.load(llama)
    feeds = [{"input_ids": row[None]} for row in np.load(llama.with_suffix(".npz"))["input_ids"]]
    names = ("layers.0.q.out", "layers.1.gate.out")
    whole = calibrate(model, names, feeds, moments=names[:1], peaks=names[1:])
    parts = gather(Here(), model, Gathered(names, moments=names[:1], peaks=names[1:]), feeds, Run())
    assert parts == whole
    assert parts.data_hash == whole.data_hash


def test_a_bad_sample_is_named_by_its_place_in_the_whole(llama: Path) -> None:
    feeds = [{"input_ids": np.zeros((1, 4), np.int64)}] * 5 + [{"input_ids": np.full((1, 4), 10**6)}]
    with pytest.raises(CalibrationError, match="calibration sample 5"):
        gather(Here(), io.load(llama), Gathered(("layers.0.q.out",)), feeds, Run())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"engine": "ray", "device": "sh"}, "--engine ray: does not go with --device"),
        ({"address": "10.0.0.5:6379"}, "--ray-address: is for --engine ray"),
        ({"engine": "spark"}, "there is no 'spark'"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RunsOn(**asked)


def test_models_are_not_timed_on_ray() -> None:
    with pytest.raises(RecipeError, match="models are timed elsewhere"):
        start(RunsOn(engine="ray"), 1)


def test_a_missing_ray_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # is put back, since a cluster of two machines follows
    with pytest.raises(EngineError, match=r'pip install "onnxq\[ray\]"'):
        RayTasks()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "nothing answers there"), ("nowhere", "is no host:port"), ("h:99999", "nothing answers")],
)
def test_an_address_where_nothing_is(address: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        RayTasks(address)


@pytest.mark.ray
@pytest.mark.parametrize("options", [{"preset": "w4"}, {"preset": "w4", "algorithm": "gptq"}, {"preset": "w8a8"}])
def test_the_result_is_the_local_one_byte_for_byte(
    llama: Path, cluster: Any, tmp_path: Path, options: dict[str, str]
) -> None:
    data = llama.with_suffix(".npz")
    given: dict[str, Any] = {**options, "benchmark": False, "calibration": data, "force": True}
    onnxq.quantize(llama, tmp_path / "here.onnx", **given)
    runs_on = RunsOn(engine="ray", address=cluster.address)
    onnxq.quantize(llama, tmp_path / "there.onnx", runs_on=runs_on, **given)
    assert content_of(tmp_path / "here.onnx") == content_of(tmp_path / "there.onnx")
    assert not list(tmp_path.glob("*.layers"))


@pytest.mark.ray
def test_statistics_are_the_local_ones(llama: Path, cluster: Any, tmp_path: Path) -> None:
    data = llama.with_suffix(".npz")
    here = onnxq.calibrate(llama, tmp_path / "here.npz", calibration=data)
    there = onnxq.calibrate(llama, tmp_path / "there.npz", calibration=data, engine="ray", ray_address=cluster.address)
    assert here.statistics == there.statistics


@pytest.mark.ray
def test_a_worker_that_dies_is_replaced(tasks: RayTasks, tmp_path: Path) -> None:
    found = list(tasks.map(die_once, ((number,) for number in range(6)), (str(tmp_path),)))
    assert found == [0, 2, 4, 6, 8, 10]
    assert (tmp_path / "died").exists()


@pytest.mark.ray
def test_the_error_of_a_task_is_its_own(tasks: RayTasks) -> None:
    with pytest.raises(CalibrationError, match="layer 7: does not fit"):
        list(tasks.map(refuse, [(7,)]))


@pytest.mark.ray
def test_a_machine_that_is_lost_costs_its_tasks(cluster: Any, tasks: RayTasks) -> None:
    lost = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    killer = threading.Timer(1.0, cluster.remove_node, (lost,), {"allow_graceful": False})
    killer.start()
    assert list(tasks.map(double, ((number, 0.4) for number in range(12)))) == [2 * number for number in range(12)]
    killer.join()


@pytest.mark.ray
def test_a_head_that_is_killed_goes_on_and_nothing_listens_outside(llama: Path, tmp_path: Path) -> None:
    output, layers = tmp_path / "out.onnx", tmp_path / "out.onnx.layers"
    words = [sys.executable, "-m", "onnxq.cli", "quantize", str(llama), "-o", str(output), "-p", "w4", "--no-benchmark"]
    process = subprocess.Popen([*words, "--engine", "ray"], cwd=HERE, stdout=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None and not list(layers.glob("*.npz")):
        time.sleep(0.005)
    assert list(layers.glob("*.npz"))
    processes, listening = outside()
    process.kill()
    process.communicate()
    os.killpg(process.pid, signal.SIGKILL) if alive(process.pid) else None
    assert processes >= 2  # its server and the one that starts workers
    assert listening == []
    assert not output.exists()
    begun = len(list(layers.glob("*.npz")))
    words += ["--engine", "ray"]
    again = subprocess.run(words, check=False, cwd=HERE, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert begun
    assert not layers.exists()
    onnxq.quantize(llama, tmp_path / "here.onnx", preset="w4", benchmark=False)
    assert onnx.load(output) == onnx.load(tmp_path / "here.onnx")


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def outside() -> tuple[int, list[int]]:
    """How many processes Ray has on 127.0.0.1, and their ports that are open to other machines."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] == "0A" and not host.endswith("0100007F"):
                sockets[fields[9]] = int(port, 16)
    found, count = [], 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            if b"ray" in words and b"--node-ip-address=127.0.0.1" in words.replace(b"_", b"-"):
                count += 1
                links = [str(link.readlink()) for link in (folder / "fd").iterdir()]
                found += [sockets[link[8:-1]] for link in links if link.startswith("socket:") and link[8:-1] in sockets]
        except OSError:
            continue
    return count, sorted(set(found))
