"""A model that ONNX Runtime saved after optimizing it is told apart, with one line and a remedy."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

import onnxq
from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.files.saved_by_runtime import note_of_fused
from tests.graph.build import build, weights

NET = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv <pads = [1,1,1,1]> (x, w) y = Relu (c) }"


def saved(folder: Path, level: str) -> Path:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "saved.onnx")
    ort.InferenceSession(build(NET, w=weights(16, 16, 3, 3)).SerializeToString(), options)
    return folder / "saved.onnx"


def test_blocked_layers_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "ORT_ENABLE_ALL")
    domains = {node.domain for node in io.load(saved(tmp_path, "ORT_DISABLE_ALL")).graph}
    assert domains == {""}
    path = saved(tmp_path, "ORT_ENABLE_ALL")
    if b"nchwc" not in path.read_bytes():
        pytest.skip("this processor has no blocked kernels")
    with pytest.raises(ModelError, match="is in the layout of one kind of processor: ONNX Runtime saved this model"):
        onnxq.quantize(path, tmp_path / "q.onnx", preset="w8", benchmark=False)
    assert not (tmp_path / "q.onnx").exists()


def test_fused_layers_are_said(tmp_path: Path) -> None:
    text = "g (float[1,16,8,8] x) => (float[1,8] z) { c = com.microsoft.FusedConv <pads = [1,1,1,1], " + (
        'activation = "Relu"> (x, w) p = GlobalAveragePool (c) f = Flatten (p) z = MatMul (f, v) }'
    )
    constants = {"w": weights(16, 16, 3, 3), "v": weights(16, 8)}
    proto = build(text, imports=', "com.microsoft": 1', **constants)
    samples = [{"x": weights(1, 16, 8, 8, seed=i)} for i in range(6)]
    result = onnxq.quantize(proto, preset="w8a8", include=["*"], calibration=samples, benchmark=False)
    assert sum("ONNX Runtime saved this model after optimizing it" in line for line in result.warnings) == 1


def test_other_operators_of_the_runtime_are_not() -> None:
    proto = build("g (float[2,4] x) => (float[2,4] y) { y = com.microsoft.Gelu (x) }", imports=', "com.microsoft": 1')
    assert note_of_fused(io.load(proto)) is None
