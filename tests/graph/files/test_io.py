"""Bad files are one line, inputs never change, outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxq.errors import ModelError, OnnxqError
from onnxq.graph.files import io, saving
from onnxq.graph.prepare import prepare
from tests.graph.build import build, feeds_for, run, same, session, weights

TEXT = "g (float[N,32] x) => (float[N,16] y) { [fc] m = MatMul (x, w) [act] y = Add (m, b) }"


@pytest.fixture
def proto() -> onnx.ModelProto:
    return build(TEXT, w=weights(32, 16), b=weights(16))


def save_external(proto: onnx.ModelProto, path: Path, location: str = "m.bin") -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onnx.save(copy, path, save_as_external_data=True, location="m.bin", size_threshold=64)
    if location != "m.bin":
        copy = onnx.load(path, load_external_data=False)
        for tensor in copy.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(copy.SerializeToString())


def weights_of(path: Path) -> str:
    """The file that the one large weight is in."""
    (file,) = io.weight_files(path)
    assert re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{16}\.data", file.name)
    return file.name


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (4).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(4 * 13))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def without(proto: onnx.ModelProto, field: str) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    (copy.graph if field in ("node", "output") else copy).ClearField(field)
    return copy.SerializeToString()


BAD: dict[str, tuple[Callable[[onnx.ModelProto], bytes], str]] = {
    "empty": (lambda proto: b"", "the file is empty"),
    "png": (lambda proto: png(), "not an ONNX model"),
    "text": (lambda proto: b"hello, world\n" * 20, "not an ONNX model"),
    "zeros": (lambda proto: bytes(64), "not an ONNX model"),
    "truncated": (lambda proto: proto.SerializeToString()[:-300], "truncated"),
    "cut before opset": (lambda proto: without(proto, "opset_import"), "imports no operator set"),
    "no graph": (lambda proto: without(proto, "graph"), "has no graph"),
    "header only": (lambda proto: b"\x08\x08", "has no graph"),
    "no outputs": (lambda proto: without(proto, "output"), "has no outputs"),
    "no nodes": (lambda proto: without(proto, "node"), "has no nodes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(proto: onnx.ModelProto, tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make(proto))
    with pytest.raises(ModelError, match=message) as caught:
        io.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(proto: onnx.ModelProto, tmp_path: Path) -> None:
    content = proto.SerializeToString(deterministic=True)
    path = tmp_path / "model.onnx"
    for length in [*range(1, 400), *range(400, len(content), 97)]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"model\.onnx: "):
            io.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        io.load(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        io.load(tmp_path)
    with pytest.raises(ModelError, match="not a regular file"):
        io.load("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    path.chmod(0)
    with pytest.raises(ModelError, match="cannot be read"):
        io.load(path)


def test_damaged_tensors_are_named(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match="tensor 'w' is damaged"):
        io.load(proto)


def test_a_damaged_graph(proto: onnx.ModelProto) -> None:
    proto.graph.node.add(op_type="Relu", input=["x"], output=["m"])
    with pytest.raises(ModelError, match="value 'm' is written twice"):
        io.load(proto)


@pytest.mark.parametrize("kind", ["proto", "file", "external"])
def test_the_source_is_never_changed(proto: onnx.ModelProto, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    (save_external if kind == "external" else onnx.save)(proto, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    content = proto.SerializeToString()
    model = io.load(proto if kind == "proto" else path)
    for value in list(model.graph.initializers.values()):
        value.name = f"{value.name}_renamed"
    for node in model.graph:
        node.name = "other"
    model.graph.initializers["b_renamed"].const_value = ir.tensor(np.zeros(16, np.float32))
    assert proto.SerializeToString() == content
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_all_ways_to_store_a_tensor_are_read() -> None:
    proto = build("g (float[2] x) => (float[2] y) { y = Add (x, a) z = Add (x, h) }")
    proto.graph.initializer.append(onnx.helper.make_tensor("a", onnx.TensorProto.FLOAT, [2], [1.5, -2.0]))
    proto.graph.initializer.append(onnx.helper.make_tensor("h", onnx.TensorProto.FLOAT16, [2], [1.5, -2.0]))
    proto.graph.initializer.append(onnx.helper.make_tensor("i", onnx.TensorProto.INT4, [3], [1, -2, 7]))
    proto.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [1], [b"text"]))
    model = io.load(proto)
    read = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert read["a"].tolist() == [1.5, -2.0]
    assert read["h"].dtype == np.float16
    assert read["i"].astype(int).tolist() == [1, -2, 7]
    assert io.to_proto(model).graph.initializer[3].string_data == [b"text"]


def test_ai_onnx_is_the_default_domain() -> None:
    proto = build("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.opset_import[0].domain = "ai.onnx"
    assert io.load(proto).opset_imports == {"": 17}


def test_the_hash_depends_on_weights_and_structure_not_on_storage(proto: onnx.ModelProto, tmp_path: Path) -> None:
    inline, external = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(proto, inline)
    save_external(proto, external)
    hashes = {io.model_hash(io.load(source)) for source in (proto, inline, external)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64
    other = build(TEXT, w=weights(32, 16) + np.float32(1e-6), b=weights(16))
    renamed = build(TEXT.replace("fc", "fc2"), w=weights(32, 16), b=weights(16))
    assert len({io.model_hash(io.load(source)) for source in (proto, other, renamed)}) == 3


def test_bytes_and_proto_hold_external_weights(proto: onnx.ModelProto, tmp_path: Path) -> None:
    save_external(proto, tmp_path / "m.onnx")
    content = io.to_bytes(io.load(tmp_path / "m.onnx"))
    feeds = feeds_for(session(content))
    same(run(proto.SerializeToString(), feeds), run(content, feeds), 0)


def test_size_counts_external_files_once(proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "a.onnx")
    assert io.size_bytes(tmp_path / "a.onnx") == (tmp_path / "a.onnx").stat().st_size
    save_external(proto, tmp_path / "b.onnx")
    assert io.size_bytes(tmp_path / "b.onnx") == sum((tmp_path / n).stat().st_size for n in ("b.onnx", "m.bin"))


# --- save


def test_save_and_load_again(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    saving.save(io.load(proto), path)
    assert io.model_hash(io.load(path)) == io.model_hash(io.load(proto))
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_large_models_get_a_data_file_and_can_be_saved_again(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    for scale in (1, 2, 3):
        model = io.load(build(TEXT, w=weights(32, 16) * np.float32(scale), b=weights(16)))
        saving.save(model, path, threshold=1000)
        assert [file.name for file in tmp_path.iterdir() if file != path] == [weights_of(path)]
        assert path.stat().st_size < 1000
        assert io.model_hash(io.load(path)) == io.model_hash(model)
        onnx.checker.check_model(path)
        feeds = feeds_for(session(io.to_bytes(model)))
        result = ort.InferenceSession(path).run(None, feeds)[0]
        np.testing.assert_array_equal(result, run(io.to_bytes(model), feeds)["y"])


def test_the_threshold_is_the_size_of_the_whole_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    model = io.load(proto)
    size = len(io.to_bytes(model))
    saving.save(model, tmp_path / "one.onnx", threshold=size + 100)
    saving.save(model, tmp_path / "two.onnx", threshold=size - 100)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["one.onnx", "two.onnx", weights_of(tmp_path / "two.onnx")]


def test_rights_are_those_of_an_ordinary_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    old = os.umask(0o027)
    try:
        saving.save(io.load(proto), path, threshold=1000)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / weights_of(path)).stat().st_mode) == 0o640
    path.chmod(0o604)
    saving.save(io.load(proto), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_the_input_is_not_overwritten(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    model = io.load(path)
    (tmp_path / "link.onnx").symlink_to(path)
    for target in (path, tmp_path / "." / "model.onnx", tmp_path / "link.onnx"):
        with pytest.raises(OnnxqError, match="would overwrite the input"):
            saving.save(model, target, source=path)


def test_the_data_of_the_input_is_neither_overwritten_nor_removed(proto: onnx.ModelProto, tmp_path: Path) -> None:
    saving.save(io.load(proto), tmp_path / "out.onnx", threshold=1000)
    name = weights_of(tmp_path / "out.onnx")
    (tmp_path / "out.onnx").rename(tmp_path / "in.model")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OnnxqError, match="would overwrite the input"):
        saving.save(io.load(tmp_path / "in.model"), tmp_path / "out.onnx", threshold=1000)
    saving.save(io.load(build(TEXT, w=weights(32, 16, seed=9), b=weights(16))), tmp_path / "out.onnx", threshold=1000)
    assert (tmp_path / name).read_bytes() == before


def test_bad_targets(proto: onnx.ModelProto, tmp_path: Path) -> None:
    model = io.load(proto)
    with pytest.raises(OnnxqError, match="does not exist; create it"):
        saving.save(model, tmp_path / "no" / "out.onnx")
    with pytest.raises(OnnxqError, match="is a folder; name a file"):
        saving.save(model, tmp_path)
    with pytest.raises(OnnxqError, match="not a regular file"):
        saving.save(model, "/dev/null")
    (tmp_path / "file").write_text("")
    with pytest.raises(OnnxqError, match="does not exist"):
        saving.save(model, tmp_path / "file" / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written(proto: onnx.ModelProto) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no folder here that refuses even root")
    with pytest.raises(OnnxqError, match="/proc/out.onnx: cannot be written: .*; nothing was changed"):
        saving.save(io.load(proto), "/proc/out.onnx")


class Full:
    """A disk that is full after some flushes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowed: int, error: BaseException) -> None:
        self.left = allowed
        self.error = error
        self.fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if self.left == 0:
            raise self.error
        self.left -= 1
        self.fsync(descriptor)


@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_what_was_there(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, existing: bool
) -> None:
    path = tmp_path / "out.onnx"
    if existing:
        saving.save(io.load(build(TEXT, w=weights(32, 16, seed=9), b=weights(16))), path, threshold=1000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    Full(monkeypatch, allowed, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OnnxqError, match="No space left on device; nothing was changed; free space"):
        saving.save(io.load(proto), path, threshold=1000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("existing", "renames"), [(False, 0), (False, 1), (True, 0), (True, 1)])
def test_an_interrupt_between_the_renames_is_undone(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, existing: bool
) -> None:
    path = tmp_path / "out.onnx"
    if existing:
        saving.save(io.load(build(TEXT, w=weights(32, 16, seed=9), b=weights(16))), path, threshold=1000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    original, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if len(done) == renames:
            done.append(None)
            raise KeyboardInterrupt
        done.append(None)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        saving.save(io.load(proto), path, threshold=1000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.large
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Weights beyond protobuf's limit: mapped, prepared, saved beside the model, loaded again."""
    rows, columns = 17_000, 32_768
    proto = build("g (float[N,17000] x) => (float[N,32768] y) { m = MatMul (x, w) y = Add (m, b) }", b=weights(columns))
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[rows, columns], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * rows * columns)
    onnx.save(proto, tmp_path / "in.onnx")
    model = io.load(tmp_path / "in.onnx")
    report = prepare(model, min_opset=21)
    assert report.notes == []
    with pytest.raises(ModelError, match="exceed protobuf's 2 GB"):
        io.to_bytes(model)
    saving.save(model, tmp_path / "out.onnx")
    assert io.size_bytes(tmp_path / "out.onnx") > 2**31
    assert io.load(tmp_path / "out.onnx").graph.initializers["w"].shape == (rows, columns)


def test_maps_are_refused_in_words() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]> '
        "g (float[N,3] x) => (float[N,3] z) { z = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (x) }"
    )
    scores = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, []))
    model.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(scores))
    with pytest.raises(ModelError, match=r"value 'z' is a map, as ZipMap makes it.*zipmap"):
        io.load(model)


def test_the_size_of_a_model_is_one_rule(proto: onnx.ModelProto, tmp_path: Path) -> None:
    content = io.to_bytes(io.load(proto))
    saving.save(io.load(proto), tmp_path / "one.onnx")
    saving.save(io.load(proto), tmp_path / "two.onnx", threshold=1000)
    assert io.size_of(content) == len(content)
    assert io.size_of(tmp_path / "one.onnx") == io.size_of(content)
    assert io.size_of(tmp_path / "two.onnx") == sum(f.stat().st_size for f in tmp_path.glob("two*"))
    assert io.size_of(tmp_path / "two.onnx") > 4 * 32 * 16
