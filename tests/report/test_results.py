"""Results as data and as text: every key that scripts rely on, strict JSON, and nothing of importance left unsaid."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.cli._json import dumps
from onnxq.report.results import CalibrateResult, QuantizeResult
from tests.graph.build import build, weights

TEXT = """g (float[N,3,32,32] x) => (float[N,10] y) {
    [stem] a = Conv <strides = [2,2]> (x, w1) [relu] b = Relu (a) [body] c = Conv (b, w2) [act] t = Tanh (c)
    [pool] d = GlobalAveragePool (t) e = Flatten (d) [fc] y = Gemm (e, w3) }"""
FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 3, 32, 32)).astype(np.float32)} for i in range(10)]
KEYS = {
    "output", "preset", "size_bytes", "sqnr_db", "top1_agreement", "latency_ratio", "coverage", "kept_float", "seconds",
    "warnings",
}  # fmt: skip


def model() -> object:
    return build(TEXT, w1=weights(32, 3, 3, 3), w2=weights(64, 32, 3, 3), w3=weights(64, 10))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    output = tmp_path_factory.mktemp("results") / "out.onnx"
    return onnxq.quantize(model(), output, calibration=FEEDS, preset="w8a8", seconds=0.02, threads=1)


def test_the_json_of_quantize_has_every_key(result: QuantizeResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False), parse_constant=refuse)
    assert set(data) >= KEYS
    assert data == json.loads(dumps(result.to_dict()))
    assert data["output"] == str(result.output) and data["preset"] == "w8a8"
    before, after = data["size_bytes"]["before"], data["size_bytes"]["after"]
    assert result.output is not None and after == result.output.stat().st_size < before
    assert data["sqnr_db"] == result.sqnr_db and 0 <= data["top1_agreement"] <= 1
    assert data["latency_ratio"] == result.latency_ratio > 0
    assert data["coverage"]["Conv"] == {"quantized": 1, "total": 2}
    assert {entry["node"] for entry in data["kept_float"]} >= {"stem", "act"}
    assert all(entry["reason"] for entry in data["kept_float"])
    assert {"load", "calibrate", "verify", "benchmark", "save"} <= set(data["seconds_by_step"])
    assert data["seconds"] >= max(data["seconds_by_step"].values()) > 0
    assert isinstance(data["warnings"], list)


def test_without_data_figures_are_none_and_not_absent() -> None:
    data = onnxq.quantize(model(), preset="w8", benchmark=False, threads=1).to_dict()
    assert set(data) >= KEYS
    assert data["output"] is None and data["latency_ratio"] is None and data["format"] is None
    assert any("no calibration data" in line for line in data["warnings"])


def test_identical_outputs_are_strict_json_too(result: QuantizeResult) -> None:
    perfect = replace(result, sqnr_db=math.inf, latency_ratio=None)
    text = dumps(perfect.to_dict())
    data = json.loads(text, parse_constant=refuse)
    assert data["sqnr_db"] == "Infinity" and data["latency_ratio"] is None


def test_the_summary_of_quantize_says_it_all(result: QuantizeResult) -> None:
    warned = replace(result, warnings=["first warning", "second warning"])
    text = warned.summary()
    assert f"{result.sqnr_db:.1f} dB" in text
    assert f"{result.latency_ms['float'] / result.latency_ms['quantized']:.2f}" in text  # of the times beside it
    assert "w8a8" in text and "qdq" in text and "cpu" in text
    assert "first warning" in text and "second warning" in text
    for name in ("stem", "act", "Conv", "Gemm"):
        assert name in text
    assert "cpu has no integer kernel for Tanh" in text


def test_the_summary_takes_what_is_not_known(result: QuantizeResult) -> None:
    bare = replace(
        result, sqnr_db=None, top1_agreement=None, latency_ratio=None, latency_ms={}, comparison=None, unoptimized=None,
        kept_float=[], format=None,
    )  # fmt: skip
    assert "w8a8" in bare.summary()
    assert set(bare.to_dict()) >= KEYS
    assert replace(result, sqnr_db=math.inf).summary()
    assert "slower" in replace(result, latency_ms={"float": 1.0, "quantized": 2.0}).summary()


def test_calibrate(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    result = onnxq.calibrate(model(), path, calibration=FEEDS, threads=1)
    assert isinstance(result, CalibrateResult)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(data) >= {"output", "seconds", "samples", "tensors"}
    assert data["output"] == str(path) and path.is_file()
    assert data["samples"] == len(FEEDS) and data["tensors"] == len(result.statistics) > 3
    assert data["seconds"] > 0
    text = result.summary()
    assert str(path) in text and "10 samples" in text


def test_benchmark_compare_and_inspect(result: QuantizeResult) -> None:
    assert result.output is not None
    timed = onnxq.benchmark([result.output, result.output], seconds=0.02, memory=False)
    rows = json.loads(json.dumps(timed.to_dict(), allow_nan=False))["models"]
    assert len(rows) == 2 and rows[0]["ratio"] == 1.0 and rows[0]["size_bytes"] == result.size_after
    assert str(result.output) in timed.summary()
    same = onnxq.compare(result.output, result.output, data=FEEDS)
    data = json.loads(dumps(same.to_dict()), parse_constant=refuse)
    assert data["sqnr_db"] == "Infinity" and data["top1_agreement"] == 1.0
    assert "equal" in same.summary()
    looked = onnxq.inspect(result.output)
    assert json.loads(dumps(looked.to_dict()), parse_constant=refuse)["coverage"]["Conv"]["total"] == 2
    assert "body" in looked.summary() and "float" in looked.summary()
