"""What is quantized differently between two models, also between those of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxq
from onnxq.cli._app import app
from tests.graph.build import build, weights

TEXT = """g (float[N,3,16,16] x) => (float[N,10] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w1) [relu] b = Relu (a) [body] c = Conv <pads = [1,1,1,1]> (b, w2)
    [pool] d = GlobalAveragePool (c) e = Flatten (d) [fc] y = MatMul (e, w3) }"""
FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 3, 16, 16)).astype(np.float32)} for i in range(8)]


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._feeds = iter(FEEDS)

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("diff")
    names = ("float", "ours", "minmax", "theirs", "operators", "dynamic")
    paths = {name: folder / f"{name}.onnx" for name in names}
    model = build(TEXT, w1=weights(32, 3, 3, 3), w2=weights(64, 32, 3, 3), w3=weights(64, 10))
    onnx.save(model, paths["float"])
    for name, method in (("ours", "mse"), ("minmax", "minmax")):
        onnxq.quantize(
            paths["float"], paths[name], calibration=FEEDS, preset="w8a8", range=method, benchmark=False, threads=1,
            op_types=["Conv", "MatMul"],
        )  # fmt: skip
    for name, form in (("theirs", QuantFormat.QDQ), ("operators", QuantFormat.QOperator)):
        quantize_static(
            paths["float"], paths[name], Reader(), quant_format=form, per_channel=True, weight_type=QuantType.QInt8
        )
    quantize_dynamic(paths["float"], paths["dynamic"], weight_type=QuantType.QInt8)
    return paths


def test_a_model_does_not_differ_from_itself(files: dict[str, Path]) -> None:
    for path in files.values():
        found = onnxq.diff(path, path)
        assert (found.nodes, found.only_first, found.only_second) == ([], [], []) and found.same >= 4


@pytest.mark.parametrize("name", ["ours", "theirs", "operators", "dynamic"])
def test_float_against_quantized(files: dict[str, Path], name: str) -> None:
    rows = {row["node"]: row for row in onnxq.diff(files["float"], files[name]).nodes}
    layer = rows["fc" if name == "dynamic" else "body"]
    assert layer["first"]["state"] == "float" and layer["second"]["state"] == "integer"
    assert "int8" in layer["second"]["weight"] and layer["first"]["weight"] == "float32"
    assert layer["weight_sqnr_db"] is None or 35 < layer["weight_sqnr_db"] < 60


def test_two_quantized_models(files: dict[str, Path]) -> None:
    rows = {row["node"]: row for row in onnxq.diff(files["ours"], files["minmax"]).nodes}
    assert rows["body"]["differs"] == ["output"]
    low, high = rows["body"]["second"]["output"]
    assert low < rows["body"]["first"]["output"][0] and high > rows["body"]["first"]["output"][1]
    found = onnxq.diff(files["theirs"], files["operators"])
    body = next((row for row in found.nodes if row["node"] == "body"), None)
    assert body is not None and body["second"]["how"].startswith("QLinearConv") and "output" not in body["differs"]


def test_the_command(files: dict[str, Path]) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)

    text = run("diff", files["float"], files["ours"]).output
    assert "nodes differ" in text and "int8" not in text.split("node ")[0]
    data = json.loads(run("diff", files["float"], files["ours"], "--json").output)
    assert data == onnxq.diff(files["float"], files["ours"]).to_dict()
    assert onnxq.diff(files["float"], files["ours"]).summary().startswith(text.splitlines()[0])
    assert run("diff", files["float"], files["float"].with_name("none.onnx")).return_value == 1
    schemes = run("inspect", files["float"], "--schemes").output
    assert "symmetric 4 bits groups of 32" in schemes and "nf4" in schemes
    assert len(json.loads(run("inspect", files["float"], "--schemes", "--json").output)["schemes"]["weights"]) == 3
    assert "schemes" not in json.loads(run("inspect", files["float"], "--json").output)


def test_weights_are_compared_as_the_quantized_model_had_them() -> None:
    """What was folded into a weight, and factors between layers, are no error of its rounding."""
    text = """g (float[N,3,16,16] x) => (float[N,24,16,16] y) {
        [stem] a = Conv <pads = [1,1,1,1]> (x, w1) [norm] b = BatchNormalization (a, s, o, m, v) [relu] c = Relu (b)
        [body] y = Conv <pads = [1,1,1,1]> (c, w2) }"""
    rng = np.random.default_rng(3)
    norm = dict(zip("somv", (rng.uniform(0.01, 9.0, 32).astype(np.float32) for _ in range(4)), strict=True))
    model = build(text, w1=weights(32, 3, 3, 3), w2=weights(24, 32, 3, 3), **norm)
    options: dict[str, Any] = {"preset": "w8a8", "op_types": ["Conv"], "benchmark": False, "threads": 1, "force": True}
    quantized = onnxq.quantize(model, calibration=FEEDS, **options).model
    assert quantized is not None
    for pair in ((model, quantized), (quantized, model)):
        ratios = {row["node"]: row["weight_sqnr_db"] for row in onnxq.diff(*pair).nodes}
        assert ratios["stem"] > 35 and ratios["body"] > 35
