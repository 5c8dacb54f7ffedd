"""Whatever is wrong with models, data, options or places: one line, the right exit code, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper

Run = Callable[..., Result]
Snapshot = Callable[[], dict[str, bytes | None]]

QUICK = ("--preset", "w8a8", "--no-benchmark")
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        if name.startswith("reader_"):
            del sys.modules[name]


def check(result: Result, exit_code: int, *parts: str) -> str:
    """One line on standard error with all the parts, nothing on standard output."""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "internal error" not in result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    return result.stderr


# Models


def write(path: Path, content: bytes | onnx.ModelProto) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def missing(path: Path, cnn: onnx.ModelProto) -> None:
    """Leave the file out."""


def empty(path: Path, cnn: onnx.ModelProto) -> None:
    write(path, b"")


def truncated(path: Path, cnn: onnx.ModelProto) -> None:
    write(path, cnn.SerializeToString()[:-1000])


def png(path: Path, cnn: onnx.ModelProto) -> None:
    write(path, PNG)


def text(path: Path, cnn: onnx.ModelProto) -> None:
    write(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def directory(path: Path, cnn: onnx.ModelProto) -> None:
    path.mkdir()


def no_opset(path: Path, cnn: onnx.ModelProto) -> None:
    del cnn.opset_import[:]
    write(path, cnn)


def custom_operator(path: Path, cnn: onnx.ModelProto) -> None:
    cnn.graph.node[1].op_type = "Frobnicate"
    cnn.graph.node[1].domain = "com.acme"
    cnn.opset_import.append(helper.make_opsetid("com.acme", 1))
    write(path, cnn)


def poison(path: Path, cnn: onnx.ModelProto, value: float) -> None:
    weight = numpy_helper.to_array(cnn.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = value
    cnn.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    write(path, cnn)


def nan_weight(path: Path, cnn: onnx.ModelProto) -> None:
    poison(path, cnn, float("nan"))


def infinite_weight(path: Path, cnn: onnx.ModelProto) -> None:
    poison(path, cnn, float("-inf"))


def external(path: Path, cnn: onnx.ModelProto, location: str) -> None:
    """Say that the first weight lies in another file."""
    weight = cnn.graph.initializer[0]
    (path.parents[1] / "outside.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    write(path, cnn)


def external_above(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, "../outside.bin")


def external_far_above(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, "sub/../../outside.bin")


def external_absolute(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, str(path.parents[1] / "outside.bin"))


def external_link(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, "link.bin")
    (path.parent / "link.bin").symlink_to("../outside.bin")


def external_missing(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, "gone.bin")


def external_short(path: Path, cnn: onnx.ModelProto) -> None:
    external(path, cnn, "short.bin")
    (path.parent / "short.bin").write_bytes(b"\0" * 10)


def nothing_to_quantize(path: Path, cnn: onnx.ModelProto) -> None:
    node = helper.make_node("Tanh", ["x"], ["y"], name="only")
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 8, 8])
    graph = helper.make_graph([node], "g", [info], [out])
    write(path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def unknown_input(path: Path, cnn: onnx.ModelProto) -> None:
    cnn.graph.node[0].input[0] = "nowhere"
    write(path, cnn)


def bad_attribute(path: Path, cnn: onnx.ModelProto) -> None:
    del cnn.graph.node[0].attribute[:]
    cnn.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1]))
    write(path, cnn)


UNREADABLE: list[tuple[Callable[[Path, onnx.ModelProto], None], str]] = [
    (missing, "no such file"),
    (empty, "empty"),
    (truncated, "truncated"),
    (png, "not an ONNX model"),
    (text, "not an ONNX model"),
    (directory, "folder"),
    (no_opset, "operator set"),
    (external_above, "'../outside.bin' leaves the model's folder"),
    (external_far_above, "leaves the model's folder"),
    (external_absolute, "absolute"),
    (external_link, "link"),
    (external_missing, "'gone.bin' is missing"),
    (external_short, "too short"),
]
UNUSABLE: list[tuple[Callable[[Path, onnx.ModelProto], None], str]] = [
    (custom_operator, "Frobnicate"),
    (nan_weight, "NaN"),
    (infinite_weight, "w1"),
    (nothing_to_quantize, "Tanh"),
    (unknown_input, "nowhere"),
    (bad_attribute, "body.conv1"),
]
BY_NAME: dict[str, Any] = {"ids": lambda value: value.__name__ if callable(value) else ""}


@pytest.mark.parametrize(("spoil", "part"), UNREADABLE + UNUSABLE, **BY_NAME)
def test_quantize_refuses_a_bad_model(
    run: Run,
    tmp_path: Path,
    data: Path,
    cnn: onnx.ModelProto,
    snapshot: Snapshot,
    spoil: Callable[[Path, onnx.ModelProto], None],
    part: str,
) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "bad.onnx"
    spoil(path, cnn)
    before = snapshot()
    check(run("quantize", path, "-c", data, *QUICK), 2 if spoil is nothing_to_quantize else 1, part)
    assert snapshot() == before


@pytest.mark.parametrize("command", ["calibrate", "diagnose", "compare", "benchmark", "inspect"])
@pytest.mark.parametrize(("spoil", "part"), UNREADABLE, **BY_NAME)
def test_other_commands_refuse_a_bad_model(
    run: Run,
    tmp_path: Path,
    model: Path,
    data: Path,
    cnn: onnx.ModelProto,
    snapshot: Snapshot,
    command: str,
    spoil: Callable[[Path, onnx.ModelProto], None],
    part: str,
) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "bad.onnx"
    spoil(path, cnn)
    rest: dict[str, list[object]] = {
        "calibrate": ["-c", data, "-o", tmp_path / "s.npz"],
        "compare": [model, "-c", data],
        "diagnose": ["-c", data],
        "benchmark": [model, "--seconds", "0.01"],
        "inspect": [],
    }
    before = snapshot()
    check(run(command, path, *rest[command]), 1, part)
    assert snapshot() == before


def test_a_bad_model_with_json_gives_one_object(run: Run, tmp_path: Path) -> None:
    result = run("quantize", tmp_path / "none.onnx", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "ModelError"
    assert result.stderr == f"error: {error['message']}\n"


@pytest.mark.parametrize("side", [0, 1])
def test_compare_refuses_models_that_do_not_match(
    run: Run, tmp_path: Path, model: Path, data: Path, cnn: onnx.ModelProto, side: int
) -> None:
    cnn.graph.output[0].name = "p"  # the pooled features, of rank 4, and the classes
    cnn.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 32]))
    del cnn.graph.output[0].type.tensor_type.shape.dim[:]
    pair = [model, model]
    pair[side] = write(tmp_path / "other.onnx", cnn)
    result = run("compare", *pair, "-c", data)
    check(result, result.exit_code, "other.onnx", "'y'", "'f'")
    assert result.exit_code in (1, 3)


# Calibration data


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def wrong_name(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", image=x)


def extra_name(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=x, mask=x)


def wrong_type(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=x.astype(np.float64))


def wrong_rank(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=x[0])


def wrong_shape(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=x[:, :3])


def no_samples(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=x[:0])


def no_arrays(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz")


def empty_file(folder: Path, x: np.ndarray) -> Path:
    return write(folder / "d.npz", b"")


def no_zip(folder: Path, x: np.ndarray) -> Path:
    return write(folder / "d.npz", PNG)


def no_such_data(folder: Path, x: np.ndarray) -> Path:
    return folder / "none.npz"


def cut_zip(folder: Path, x: np.ndarray) -> Path:
    path = save(folder / "d.npz", x=x)
    return write(path, path.read_bytes()[:-500])


def damaged_zip(folder: Path, x: np.ndarray) -> Path:
    np.savez_compressed(folder / "d.npz", x=x)
    content = bytearray((folder / "d.npz").read_bytes())
    content[200:400] = b"\xff" * 200
    return write(folder / "d.npz", bytes(content))


def zip_without_arrays(folder: Path, x: np.ndarray) -> Path:
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return folder / "d.npz"


def pickled_npz(folder: Path, x: np.ndarray) -> Path:
    return save(folder / "d.npz", x=np.array([{"a": 1}, Path("b")], object))


def pickled_npy(folder: Path, x: np.ndarray) -> Path:
    (folder / "feeds").mkdir()
    np.save(folder / "feeds" / "0.npy", np.array([{"a": 1}], object), allow_pickle=True)
    return folder / "feeds"


def empty_folder(folder: Path, x: np.ndarray) -> Path:
    (folder / "feeds").mkdir()
    return folder / "feeds"


def one_bad_feed_in_a_folder(folder: Path, x: np.ndarray) -> Path:
    (folder / "feeds").mkdir()
    for i in range(5):
        np.save(folder / "feeds" / f"{i}.npy", x[i : i + 1, : 16 - (i == 3)])
    return folder / "feeds"


@pytest.mark.parametrize("preset", ["w8a8", "auto"])
def test_samples_of_nothing_but_nan_are_refused(
    run: Run, tmp_path: Path, model: Path, samples: np.ndarray, snapshot: Snapshot, preset: str
) -> None:
    """One bad sample among good ones is a warning; ranges of none are no static quantization."""
    data = save(tmp_path / "d.npz", x=np.full_like(samples, np.nan))
    before = snapshot()
    check(run("quantize", model, "-c", data, "-p", preset, "--no-benchmark"), 1, "no value", "finite", "NaN")
    assert snapshot() == before


@pytest.mark.parametrize("command", ["quantize", "calibrate", "diagnose", "compare", "benchmark"])
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (wrong_name, ["'image'", "'x'"]),
        (extra_name, ["'mask'"]),
        (wrong_type, ["'x'", "float64", "float32"]),
        (wrong_rank, ["'x'", "rank 3", "rank 4"]),
        (wrong_shape, ["'x'", "(10, 3, 8, 8)", "axis 1", "16"]),
        (no_samples, ["no samples"]),
        (no_arrays, ["no arrays"]),
        (empty_file, ["d.npz"]),
        (no_zip, ["d.npz"]),
        (no_such_data, ["none.npz", "no such file"]),
        (cut_zip, ["d.npz"]),
        (damaged_zip, ["d.npz"]),
        (zip_without_arrays, ["no arrays"]),
        (pickled_npz, ["d.npz", "objects"]),
        (pickled_npy, ["0.npy", "objects"]),
        (empty_folder, ["feeds"]),
        (one_bad_feed_in_a_folder, ["3.npy", "(1, 15, 8, 8)"]),
    ],
    **BY_NAME,
)
def test_bad_calibration_data_is_refused(
    run: Run,
    tmp_path: Path,
    model: Path,
    samples: np.ndarray,
    snapshot: Snapshot,
    spoil: Callable[[Path, np.ndarray], Path],
    parts: list[str],
    command: str,
) -> None:
    data = spoil(tmp_path, samples)
    arguments: dict[str, list[object]] = {
        "quantize": [model, *QUICK],
        "calibrate": [model, "-o", tmp_path / "s.npz"],
        "compare": [model, model],
        "diagnose": [model],
        "benchmark": [model, "--seconds", "0.01"],
    }
    before = snapshot()
    check(run(command, *arguments[command], "-c", data), 1, *parts)
    assert snapshot() == before


READER = """
import numpy as np

def feeds():
    for i in range(4):
        yield {"x": np.zeros((1, 16, 8, 8), np.float32)}
    raise RuntimeError("the disk\\nhas gone")

def nothing():
    return []

def number():
    return 5

def words():
    return ["one", "two"]

def late():
    for i in range(4):
        yield {"x": np.full((1, 16, 8, 8), i, np.float32 if i < 3 else np.float16)}

class Reader:
    def __init__(self):
        self.left = 3

    def get_next(self):
        self.left -= 1
        if self.left:
            return {"x": np.zeros((1, 16, 8, 8), np.float32)}
        raise KeyError("gone")
"""


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("feeds", ["sample 4", "RuntimeError: the disk has gone"]),
        ("late", ["sample 3", "float16"]),
        ("Reader", ["sample 2", "KeyError"]),
        ("nothing", ["not one sample"]),
        ("number", ["int"]),
        ("words", ["sample 0", "str"]),
        ("missing", ["missing"]),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_bad_reader_is_refused(
    run: Run, tmp_path: Path, model: Path, snapshot: Snapshot, command: str, name: str, parts: list[str]
) -> None:
    module = f"reader_{command}_{name}"
    (tmp_path / "cwd" / f"{module}.py").write_text(READER)
    output = ["-o", tmp_path / "s.npz"] if command == "calibrate" else QUICK
    before = snapshot()
    check(run(command, model, "-c", f"{module}:{name}", *output), 1, *parts)
    assert snapshot() == before


@pytest.mark.parametrize(
    ("content", "part"),
    [("import nowhere_at_all", "nowhere_at_all"), ("def feeds(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_reader_that_cannot_be_imported_is_refused(
    run: Run, tmp_path: Path, model: Path, content: str, part: str
) -> None:
    (tmp_path / "cwd" / "reader_broken.py").write_text(content)
    check(run("quantize", model, "-c", "reader_broken:feeds", *QUICK), 1, part)


def test_statistics_of_another_model_are_refused(
    run: Run, tmp_path: Path, model: Path, data: Path, cnn: onnx.ModelProto
) -> None:
    stats = tmp_path / "s.npz"
    assert run("calibrate", model, "-c", data, "-o", stats).exit_code == 0
    weight = numpy_helper.to_array(cnn.graph.initializer[0])
    cnn.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * weight, "w1"))
    other = write(tmp_path / "other.onnx", cnn)
    check(run("quantize", other, "--stats", stats, "-c", data, *QUICK), 1, "model")
    assert not (tmp_path / "other.w8a8.onnx").exists()


@pytest.mark.parametrize("content", [None, b"", PNG, "samples"], ids=["missing", "empty", "png", "samples"])
def test_a_file_that_holds_no_statistics_is_refused(
    run: Run, tmp_path: Path, model: Path, data: Path, content: bytes | str | None, samples: np.ndarray
) -> None:
    stats = tmp_path / "s.npz"
    if content == "samples":
        save(stats, x=samples)
    elif isinstance(content, bytes):
        stats.write_bytes(content)
    check(run("quantize", model, "--stats", stats, "-c", data, *QUICK), 1, "s.npz")


# Options


@pytest.mark.parametrize(
    ("options", "exit_code", "parts"),
    [
        (["-p", "w8b8"], 2, ["'w8b8'", "did you mean 'w8a8'?"]),
        (["-p", "zzz"], 2, ["'zzz'", "w8a8"]),
        (["--target", "cpux"], 2, ["'cpux'", "did you mean 'cpu'?"]),
        (["--exclude", "body.convv*"], 2, ["'body.convv*'", "--exclude"]),
        (["--include", "nothing"], 2, ["'nothing'", "--include"]),
        (["--op-type", "Convolution"], 2, ["'Convolution'", "--op-type"]),
        (["--exclude", "*"], 2, ["excluded"]),
        (["--recipe", "none.yaml"], 2, ["none.yaml"]),
        (["--percentile", "nan"], 2, ["percentile"]),
        (["--threads", "1000000"], 2, ["--threads", "1000000"]),
        (["--min-sqnr", "500"], 3, ["500"]),
        (["--output", "absent/out.onnx"], 1, ["absent"]),
        (["--output", "."], 1, ["folder"]),
        (["--output", "../net.onnx"], 1, ["net.onnx", "input"]),
        (["--output", "../net.onnx/out.onnx"], 1, ["net.onnx"]),
        (["--output", "/proc/onnxq.onnx"], 1, ["/proc"]),
        (["--output", "x" * 300 + ".onnx"], 1, ["xxx"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_options_are_refused(
    run: Run, model: Path, data: Path, snapshot: Snapshot, options: list[str], exit_code: int, parts: list[str]
) -> None:
    given = [] if "-p" in options else ["-p", "w8a8"]
    before = snapshot()
    check(run("quantize", model, "-c", data, "--no-benchmark", *given, *options), exit_code, *parts)
    assert snapshot() == before


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("preset: [", "not YAML"),
        ("- w8a8", "mapping"),
        ("presett: w8a8", "did you mean 'preset'?"),
        ("range: 5", "range"),
        ("rules: [{quantize: false}]", "match"),
        ("rules: [{match: 'zzz*', quantize: false}]", "'zzz*'"),
    ],
)
def test_a_bad_recipe_is_refused(
    run: Run, tmp_path: Path, model: Path, data: Path, snapshot: Snapshot, content: str, part: str
) -> None:
    (tmp_path / "r.yaml").write_text(content)
    before = snapshot()
    check(run("quantize", model, "-c", data, *QUICK, "--recipe", tmp_path / "r.yaml"), 2, part)
    assert snapshot() == before


def test_compare_refuses_models_with_other_inputs(
    run: Run, tmp_path: Path, model: Path, data: Path, cnn: onnx.ModelProto
) -> None:
    cnn.graph.input[0].name = "pixels"
    for node in cnn.graph.node:
        node.input[:] = ["pixels" if name == "x" else name for name in node.input]
    other = write(tmp_path / "other.onnx", cnn)
    check(run("compare", model, other, "-c", data), 1, "other.onnx: its inputs ['pixels'] are not those of", "['x']")


def test_a_bad_feed_among_those_held_out_is_the_fault_of_the_data(
    run: Run, tmp_path: Path, model: Path, samples: np.ndarray, snapshot: Snapshot
) -> None:
    (tmp_path / "feeds").mkdir()
    for index in range(5):
        np.save(tmp_path / "feeds" / f"{index}.npy", samples[:1] if index < 4 else samples[0])
    before = snapshot()
    result = run("quantize", model, "-c", tmp_path / "feeds", "--force", *QUICK)
    check(result, 1, "4.npy: input 'x' has rank 3")
    assert snapshot() == before


def test_excluding_everything_is_refused_with_what_to_do(run: Run, model: Path, data: Path) -> None:
    result = run("quantize", model, "-c", data, "--exclude", "*", *QUICK)
    check(result, 2, "nothing in this model would be quantized", "relax --exclude")


def test_static_quantization_without_data_is_refused(run: Run, model: Path, snapshot: Snapshot) -> None:
    before = snapshot()
    result = run("quantize", model, *QUICK)
    check(result, result.exit_code, "w8a8", "--calibration")
    assert result.exit_code in (1, 2)
    assert snapshot() == before


@pytest.mark.parametrize("name", ["model", "data"])
def test_statistics_are_not_written_over_the_model_or_the_data(
    run: Run, model: Path, data: Path, snapshot: Snapshot, name: str
) -> None:
    target = {"model": model, "data": data}[name]
    before = snapshot()
    check(run("calibrate", model, "-c", data, "-o", target), 1, target.name)
    assert snapshot() == before


@pytest.mark.parametrize("place", ["absent/s.npz", ".", "/proc/s.npz"])
def test_statistics_in_an_impossible_place_are_one_line(
    run: Run, model: Path, data: Path, snapshot: Snapshot, place: str
) -> None:
    before = snapshot()
    check(run("calibrate", model, "-c", data, "-o", place), 1, place)
    assert snapshot() == before


# Places and signals


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_folder_without_permission_is_one_line(
    run: Run, tmp_path: Path, model: Path, data: Path, command: str
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    rest = QUICK if command == "quantize" else ()
    check(run(command, model, "-c", data, "-o", folder / "out", *rest), 1, "locked")
    assert list(folder.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one page."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True, check=False, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a tmpfs")
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_full_disk_is_one_line(run: Run, full_disk: Path, model: Path, data: Path, command: str) -> None:
    rest = QUICK if command == "quantize" else ()
    check(run(command, model, "-c", data, "-o", full_disk / "out", *rest), 1, str(full_disk), "No space left")
    assert list(full_disk.iterdir()) == []


def test_a_limit_on_file_size_is_one_line(
    start: Callable[..., subprocess.Popen[str]], model: Path, data: Path, snapshot: Snapshot
) -> None:
    before = snapshot()
    process = start(
        *("quantize", model, "-c", data, *QUICK),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "File too large" in line
    assert snapshot() == before


SLOW_READER = """
import pathlib, time
import numpy as np

def feeds():
    for i in range(8):
        yield {"x": np.full((1, 16, 8, 8), i, np.float32)}
    pathlib.Path("started").touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
@pytest.mark.parametrize("existing", [b"", b"an older file"], ids=["new", "existing"])
def test_ctrl_c_midway_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, model: Path, command: str, existing: bytes
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_READER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    output = tmp_path / "out.file"
    if existing:
        output.write_bytes(existing)
    names = {path.name for path in tmp_path.iterdir()} - {"cwd"}
    rest = ("--no-benchmark",) if command == "quantize" else ()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
    process = start(command, model, "-c", "slow:feeds", "-o", output, *rest, env=environment)
    limit = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted: nothing was written\n")
    assert {path.name for path in tmp_path.iterdir()} - {"cwd", "__pycache__", "started"} == names
    assert list(temporary.glob("onnxq*")) == []  # onnxruntime keeps a file of its own there
    if existing:
        assert output.read_bytes() == existing


def test_two_networks_that_have_nothing_in_common_are_doubted(run: Run, tmp_path: Path, model: Path) -> None:
    nothing_to_quantize(tmp_path / "other.onnx", onnx.ModelProto())
    result = run("diff", model, tmp_path / "other.onnx")
    assert result.exit_code == 0
    assert "are they two forms of one network?" in result.stderr
    assert run("diff", model, model).stderr == ""


@pytest.mark.parametrize("option", ["--device", "--provider"])
def test_an_empty_place_is_not_this_machine(run: Run, model: Path, option: str) -> None:
    """As from a variable of a shell that is not set."""
    done = run("benchmark", model, option, "")
    assert done.exit_code == 2
    assert f"{option}: is empty" in done.stderr
