"""Libraries of custom operators are registered in every session, and a bad one is one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import onnxq
from onnxq.errors import ModelError, RecipeError
from onnxq.runtime import custom_ops
from tests.graph.build import build, weights

NODES = "h = MatMul (x, w) y = Relu (h) a, b = ai.onnx.contrib.NegPos (h)"
SAMPLES = [{"x": weights(1, 64, seed=i)} for i in range(6)]


def net() -> onnx.ModelProto:
    text = f"g (float[N,64] x) => (float[N,64] y, float[N,64] a, float[N,64] b) {{ {NODES} }}"
    return build(text, imports=', "ai.onnx.contrib": 1', w=weights(64, 64))


def library() -> str:
    extensions = pytest.importorskip("onnxruntime_extensions", reason="onnxruntime-extensions is not installed")
    return str(extensions.get_library_path())


def test_without_the_library_the_message_names_the_option() -> None:
    with pytest.raises(ModelError, match=r"operator 'NegPos' of domain 'ai.onnx.contrib' .*--custom-ops"):
        onnxq.quantize(net(), preset="w8a8", calibration=SAMPLES, benchmark=False)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--custom-ops .*none.so: no such file"):
        onnxq.quantize(net(), preset="w8", custom_ops=tmp_path / "none.so")
    assert custom_ops.registered() == []


def test_a_file_that_is_no_library_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ops.so"
    path.write_text("no library")
    for call in (
        lambda: onnxq.quantize(net(), preset="w8", custom_ops=[path]),
        lambda: onnxq.calibrate(net(), tmp_path / "s.npz", calibration=SAMPLES, custom_ops=[path]),
        lambda: onnxq.compare(net(), net(), data=SAMPLES, custom_ops=[path]),
        lambda: onnxq.benchmark(["no.onnx"], custom_ops=[path]),
        lambda: onnxq.diagnose(net(), data=SAMPLES, custom_ops=[path]),
    ):
        with pytest.raises(RecipeError, match=r"--custom-ops .*ops.so: onnxruntime .* cannot register it: .*build the"):
            call()
    assert custom_ops.registered() == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["ops.so"]


@pytest.mark.parametrize("preset", ["w8a8", "w8", "w8a8-dynamic"])
def test_a_model_with_custom_operators_is_quantized(preset: str) -> None:
    result = onnxq.quantize(net(), preset=preset, calibration=SAMPLES, benchmark=False, custom_ops=[library()])
    assert result.sqnr_db is not None and result.sqnr_db > 30
    assert custom_ops.registered() == []


def test_compared_and_measured(tmp_path: Path) -> None:
    path = library()
    result = onnxq.quantize(net(), preset="w8a8", calibration=SAMPLES, benchmark=False, custom_ops=path)
    assert result.model is not None
    assert onnxq.compare(net(), result.model, data=SAMPLES, custom_ops=path).finite
    files = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
    for file, model in zip(files, (net(), result.model), strict=True):
        onnx.save(model, file)
    rows = onnxq.benchmark(files, seconds=0.05, custom_ops=path).to_dict()["models"]
    assert all(row["peak_memory_bytes"] is None or row["peak_memory_bytes"] >= 0 for row in rows)
