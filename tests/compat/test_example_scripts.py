"""The calls that onnxruntime's published examples make, in their order, after changing the import."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxq.compat.onnxruntime import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    matmul_nbits_quantizer,
    quant_pre_process,
    quantize_static,
)


class PhotoReader(CalibrationDataReader):
    """Opens the model for its input's size, and a folder of pictures the first time it is asked."""

    def __init__(self, folder: Path, model: str) -> None:
        session = onnxruntime.InferenceSession(model, None)
        self._name = session.get_inputs()[0].name
        _, _, self._height, self._width = session.get_inputs()[0].shape
        self._folder = folder
        self._feeds: Iterator[dict[str, Any]] | None = None

    def get_next(self) -> dict[str, Any] | None:
        if self._feeds is None:
            self._feeds = iter([{self._name: self._read(path)} for path in sorted(self._folder.iterdir())])
        return next(self._feeds, None)

    def _read(self, path: Path) -> Any:
        image = pytest.importorskip("PIL.Image").open(path).convert("L").resize((self._width, self._height))
        return np.asarray(image, np.float32)[None, None] / np.float32(255)


def latency(model: str) -> float:
    """Milliseconds a call takes, on zeros."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    feed = {given.name: np.zeros([d if isinstance(d, int) else 1 for d in given.shape], np.float32)}
    session.run([], feed)
    begin = time.perf_counter()
    for _ in range(3):
        session.run([], feed)
    return (time.perf_counter() - begin) * 1000 / 3


def operators(path: str | Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.images
@pytest.mark.parametrize("words", [[], ["--quant_format", "QOperator", "--per_channel", "1"]], ids=["qdq", "qoperator"])
def test_image_classification(root: Path, tmp_path: Path, words: list[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    parser = argparse.ArgumentParser()
    parser.add_argument("--quant_format", default=QuantFormat.QDQ, type=QuantFormat.from_string)
    parser.add_argument("--per_channel", default=False, type=bool)
    asked = parser.parse_args(words)
    (tmp_path / "photos").mkdir()
    with np.load(root / "models" / "digits_dsconv.test.npz") as data:
        pixels = data["image"][:40]
    for index, picture in enumerate(pixels):
        scaled = np.clip(picture[0] * 255, 0, 255).astype(np.uint8)
        image.fromarray(scaled).save(tmp_path / "photos" / f"{index:02}.png")
    model, prepared, output = (str(tmp_path / name) for name in ("model.onnx", "prepared.onnx", "int8.onnx"))
    onnx.save(onnx.load(root / "models" / "digits_dsconv.onnx"), model)

    quant_pre_process(model, prepared)
    quantize_static(
        prepared,
        output,
        PhotoReader(tmp_path / "photos", prepared),
        quant_format=asked.quant_format,
        per_channel=asked.per_channel,
        weight_type=QuantType.QInt8,
    )
    assert latency(model) > 0 < latency(output)
    assert ("QLinearConv" in operators(output)) == (asked.quant_format is QuantFormat.QOperator)
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (model, output)]
    reader = PhotoReader(tmp_path / "photos", prepared)
    pairs = [[session.run(None, feed)[0].argmax() for session in sessions] for feed in reader]
    assert len(pairs) == 40
    assert np.mean([one == other for one, other in pairs]) > 0.9


class Strides(CalibrationDataReader):
    """Reads a part of the data at a time, as readers of large sets do."""

    def __init__(self, arrays: dict[str, Any], start: int, end: int) -> None:
        self._feeds = iter([{name: array[i : i + 1] for name, array in arrays.items()} for i in range(start, end)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def arrays_of(root: Path, name: str, count: int) -> dict[str, Any]:
    with np.load(root / "calibration_data" / f"{name}.npz") as data:
        return {key: data[key][:count] for key in data.files if key != "labels"}


def test_detector_with_ranges_by_entropy_for_some_operators(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    quantize_static(
        str(root / "models" / "digits_resnet.onnx"),
        str(output),
        Strides(arrays_of(root, "digits_resnet", 32), 8, 32),
        op_types_to_quantize=["Conv", "Add", "MaxPool"],
        calibrate_method=CalibrationMethod.Entropy,
        extra_options={"DedicatedQDQPair": True, "QuantizeBias": True, "CalibMaxIntermediateOutputs": 10},
    )
    graph = onnx.load(output).graph
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    pairs = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    quantized = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert [name for name, source in pairs.items() if source in quantized and readers.get(name, 0) > 1] == []


@pytest.mark.parametrize("quant_format", ["QOperator", "QDQ"])
def test_language_model_with_smoothing(root: Path, tmp_path: Path, quant_format: str) -> None:
    class Loader:
        """Iterates, and has no get_next."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            arrays = arrays_of(root, "text_encoder", 16)
            return iter([{name: array[i : i + 1] for name, array in arrays.items()} for i in range(16)])

    output = tmp_path / "model.onnx"
    quantize_static(
        str(root / "models" / "text_encoder.onnx"),
        str(output),
        calibration_data_reader=Loader(),
        quant_format=quant_format,
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
        extra_options={
            "SmoothQuant": True,
            "SmoothQuantAlpha": 0.6,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    nodes = onnx.load(output).graph.node
    products = {node.output[0] for node in nodes if "MatMul" in node.op_type}
    assert "MatMulIntegerToFloat" in {node.op_type for node in nodes}
    assert [node.name for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] in products] == []
    assert len(list(tmp_path.glob("model.onnx.*.data"))) == 1
    onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("algorithm", ["RTN", "GPTQ"])
def test_language_model_with_packed_weights(root: Path, tmp_path: Path, algorithm: str) -> None:
    model, output = root / "models" / "tiny_lm.onnx", tmp_path / "model.onnx"
    configs = {
        "RTN": matmul_nbits_quantizer.RTNWeightOnlyQuantConfig,
        "GPTQ": lambda: matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Strides(arrays_of(root, "tiny_lm", 8), 0, 8)
        ),
    }
    quant = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        str(model), block_size=32, is_symmetric=False, algo_config=configs[algorithm](), accuracy_level=None
    )
    quant.process()
    assert {found.domain for found in quant.model.opset_import()} >= {"", "com.microsoft"}
    quant.model.save_model_to_file(str(output), use_external_data_format=True)
    assert "MatMulNBits" in operators(output)
    onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
