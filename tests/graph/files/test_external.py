"""External data is read only from inside the model's folder, and mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import ModelError
from onnxq.graph.files import external as reading
from onnxq.graph.files import io
from tests.graph.build import build, weights

SECRET = weights(64).tobytes()


def external(folder: Path, location: str, offset: int | None = None, length: int | None = None) -> Path:
    """A model in ``folder`` whose weight (64 floats) is in ``location``."""
    proto = build("g (float[N,64] x) => (float[N,64] y) { y = Mul (x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[64], data_location=1)
    tensor.external_data.add(key="location", value=location)
    if offset is not None:
        tensor.external_data.add(key="offset", value=str(offset))
    if length is not None:
        tensor.external_data.add(key="length", value=str(length))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def test_weights_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_UP_TO", 0)
    (tmp_path / "w.bin").write_bytes(b"\0" * 16 + SECRET)
    model = io.load(external(tmp_path, "w.bin", 16, 256))
    array = model.graph.initializers["w"].const_value.numpy()
    assert np.array_equal(array, weights(64))
    assert not array.flags.owndata and not array.flags.writeable


def test_files_in_folders_below_and_links_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(SECRET)
    (tmp_path / "link.bin").symlink_to(tmp_path / "data" / "w.bin")
    for location in ("data/w.bin", "./data/w.bin", "link.bin"):
        model = io.load(external(tmp_path, location))
        assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weights(64))


def test_a_hard_link_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(SECRET)
    (tmp_path / "again.bin").hardlink_to(tmp_path / "w.bin")
    assert io.load(external(tmp_path, "again.bin")).graph.initializers["w"].const_value.numpy().size == 64


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../secret.bin", "leaves the model's folder"),
        ("../../secret.bin", "leaves the model's folder"),
        ("sub/../../secret.bin", "leaves the model's folder"),
        ("..\\secret.bin", "leaves the model's folder"),
        ("/etc/hostname", "is an absolute path"),
        ("C:\\secret.bin", "is an absolute path"),
        ("\\\\server\\secret.bin", "is an absolute path"),
        ("link.bin", "is a link that leaves the model's folder"),
        ("folder/secret.bin", "is a link that leaves the model's folder"),
        ("dangling.bin", "is a link that leaves the model's folder"),
        ("missing.bin", "is missing"),
        ("sub", "is not a regular file"),
        ("", "is not a file name"),
        (".", "is not a regular file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, location: str, reason: str) -> None:
    (tmp_path / "secret.bin").write_bytes(SECRET)
    model = tmp_path / "model"
    model.mkdir()
    (model / "sub").mkdir()
    (model / "link.bin").symlink_to(tmp_path / "secret.bin")
    (model / "folder").symlink_to(tmp_path)
    (model / "dangling.bin").symlink_to(tmp_path / "nowhere.bin")
    path = external(model, location)
    for call in (io.load, io.size_bytes):
        with pytest.raises(ModelError, match=reason) as caught:
            call(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (None, None, "is too short: bytes 0 to 256 of 200"),
        (100, 256, "is too short: bytes 100 to 356 of 200"),
        (-8, 256, "(is too short|is damaged): .*-8"),
        (0, 100, "has 100 bytes for shape \\[64\\], which takes 256"),
    ],
)
def test_files_that_do_not_have_the_bytes(tmp_path: Path, offset: int | None, length: int | None, reason: str) -> None:
    (tmp_path / "w.bin").write_bytes(SECRET[:200])
    with pytest.raises(ModelError, match=reason):
        io.load(external(tmp_path, "w.bin", offset, length))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="is too short"):
        io.load(external(tmp_path, "w.bin"))


def test_a_model_in_memory_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(SECRET)
    proto = onnx.load(external(tmp_path, "w.bin"), load_external_data=False)
    with pytest.raises(ModelError, match="a model in memory has no folder"):
        io.load(proto)


def test_packed_and_other_types(tmp_path: Path) -> None:
    proto = build("g (float[1] x) => (float[1] y) { y = Relu (x) }", opset=21, ir=10)
    tensors = [
        onnx.helper.make_tensor("i4", onnx.TensorProto.INT4, [5], [1, -2, 3, 7, -8]),
        onnx.helper.make_tensor("u2", onnx.TensorProto.UINT8, [2], [1, 255]),
        onnx.helper.make_tensor("bf", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0]),
    ]
    content = b""
    for tensor in tensors:
        model = build("g (float[1] x) => (float[1] y) { y = Relu (x) }", opset=21, ir=10)
        model.graph.initializer.append(tensor)
        raw = io.load(model).graph.initializers[tensor.name].const_value.tobytes()
        stored = proto.graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=1
        )
        stored.external_data.add(key="location", value="w.bin")
        stored.external_data.add(key="offset", value=str(len(content)))
        content += raw
    (tmp_path / "w.bin").write_bytes(content)
    onnx.save(proto, tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    read = {name: value.const_value.numpy().astype(float).tolist() for name, value in model.graph.initializers.items()}
    assert read == {"i4": [1, -2, 3, 7, -8], "u2": [1, 255], "bf": [1.5, -2.0]}
    again = io.load(io.to_proto(model))
    assert io.model_hash(again) == io.model_hash(model)
