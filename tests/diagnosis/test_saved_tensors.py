"""The raw values of a diagnosis, and weights beside a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.core.error_measures import decibels
from onnxq.errors import ModelError, OnnxqError, RecipeError
from tests.graph.build import build, weights

TEXT = "g (float[N,32] x) => (float[N,8] y) { [first] h = Gemm (x, a) [act] r = Relu (h) [last] y = Gemm (r, b) }"
FEEDS = [{"x": np.random.default_rng(i).normal(size=(4, 32)).astype(np.float32)} for i in range(3)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    model, quantized = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    onnx.save(build(TEXT, a=weights(32, 64), b=weights(64, 8)), model)
    onnxq.quantize(model, quantized, calibration=FEEDS, preset="w8a8", include=["*"], benchmark=False, threads=1)
    return model, quantized


def test_each_sample_has_a_file_with_float_alone_and_quantized(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tensors"
    result = onnxq.diagnose(*pair, data=FEEDS, save_tensors=folder, threads=1)
    assert result.tensors == folder and result.to_dict()["tensors"] == str(folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["sample_0000.npz", "sample_0001.npz", "sample_0002.npz"]
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in pair]
    signal = noise = 0.0
    for file, feed in zip(files, FEEDS, strict=True):
        with np.load(file) as found:
            values = found["values"].tolist()
            assert set(values) <= {"h", "r", "y"} and {"first", "last"} <= set(found["nodes"].tolist())
            last = values.index("y")
            given = [session.run(["y"], feed)[0] for session in sessions]
            np.testing.assert_allclose(found[f"float_{last}"], given[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found[f"quantized_{last}"], given[1], rtol=1e-3, atol=1e-3)
            error = found[f"alone_{last}"].astype(np.float64) - found[f"float_{last}"]
            signal += float(np.square(found[f"float_{last}"], dtype=np.float64).sum())
            noise += float(np.square(error).sum())
    (finding,) = [finding for finding in result.findings if finding.value == "y"]
    assert finding.own_sqnr_db == pytest.approx(decibels(signal, noise), abs=0.01)


def test_a_folder_that_has_something_in_it_is_left_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tensors"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(OnnxqError, match="exists and is not empty; name another one with --save-tensors"):
        onnxq.diagnose(*pair, data=FEEDS, save_tensors=folder)
    with pytest.raises(OnnxqError, match="is a file, and the result is a folder"):
        onnxq.diagnose(*pair, data=FEEDS, save_tensors=pair[0])
    with pytest.raises(OnnxqError, match="does not exist; create it"):
        onnxq.diagnose(*pair, data=FEEDS, save_tensors=tmp_path / "none" / "tensors")
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_nothing_is_left_of_a_diagnosis_that_fails(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no quantized node"):
        onnxq.diagnose(pair[0], pair[0], data=FEEDS, save_tensors=tmp_path / "tensors")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "quantized.onnx"}


@pytest.mark.parametrize("preset", ["w8a8", "w8"])
def test_weights_stand_beside_a_small_model(pair: tuple[Path, Path], tmp_path: Path, preset: str) -> None:
    plain, external = tmp_path / "plain.onnx", tmp_path / "external.onnx"
    options: dict[str, Any] = {"calibration": FEEDS, "preset": preset, "benchmark": False, "threads": 1}
    onnxq.quantize(pair[0], plain, include=["*"], **options)
    result = onnxq.quantize(pair[0], external, include=["*"], external_data=True, **options)
    (weights_file,) = tmp_path.glob("external.onnx.*.data")
    proto = onnx.load(external, load_external_data=False)
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    assert result.size_after == external.stat().st_size + weights_file.stat().st_size
    outputs = [onnxruntime.InferenceSession(path).run(None, FEEDS[0])[0] for path in (plain, external)]
    np.testing.assert_array_equal(*outputs)
    assert not list(tmp_path.glob("plain.onnx.*"))


def test_a_folder_has_its_own_form(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--external-data: is of one ONNX file"):
        onnxq.quantize_folder(tmp_path, external_data=True)
