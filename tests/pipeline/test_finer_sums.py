"""Depthwise layers with 16-bit activations, for an engine that cuts sums of their products off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from tests.graph.build import Array, build, weights

NETWORK = """g (float[1, 3, 24, 24] x) => (float[1, 16, 24, 24] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w, b) [gate] s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (a)
    [swish] h = Mul (a, s) [deep] c = Conv <group = 16, pads = [1, 1, 1, 1]> (h, v) [last] y = Conv (c, u) }"""


def network() -> onnx.ModelProto:
    """One channel is hundreds of times larger than the others, and the weights make up for it behind the gate."""
    first, deep = weights(16, 3, 3, 3), weights(16, 1, 3, 3, seed=1)
    first[1:] /= 150.0
    deep[1:] *= 150.0
    return build(NETWORK, w=first, b=np.full(16, 0.01, np.float32), v=deep, u=weights(16, 16, 1, 1, seed=2))


def samples(count: int = 8) -> list[dict[str, Array]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(size=(1, 3, 24, 24)).astype(np.float32)} for _ in range(count)]


def quantize(target: str = "qnn", preset: str = "w8a16", **options: Any) -> onnxq.QuantizeResult:
    return onnxq.quantize(
        network(), target=target, preset=preset, calibration=samples(), benchmark=False, threads=1, **options
    )


def added(result: onnxq.QuantizeResult) -> list[str]:
    assert result.model is not None
    return [node.name for node in result.model.graph.node if node.op_type == "Mul" and node.name.endswith("_evened")]


def test_small_channels_get_a_mul_and_that_is_said() -> None:
    result = quantize()
    assert added(result) == ["deep_evened"]
    assert any(
        "1 depthwise layer(s) have a Mul in front of them (the first 'deep_evened')" in w for w in result.warnings
    )
    assert result.sqnr_db is not None and result.sqnr_db > 35.0


@pytest.mark.parametrize(("target", "preset"), [("qnn", "w8a8"), ("openvino", "w8a8"), ("cpu", "w8a16")])
def test_nothing_is_added_where_sums_are_exact(target: str, preset: str) -> None:
    assert added(quantize(target, preset)) == []


def test_nothing_is_added_where_nothing_would_be_lost() -> None:
    even = build(
        NETWORK, w=weights(16, 3, 3, 3), b=np.full(16, 0.01, np.float32), v=weights(16, 1, 3, 3, seed=1),
        u=weights(16, 16, 1, 1, seed=2),
    )  # fmt: skip
    options: dict[str, Any] = {"calibration": samples(), "benchmark": False, "threads": 1}
    assert added(onnxq.quantize(even, target="qnn", preset="w8a16", **options)) == []


def test_a_rule_with_16_bits_counts_too() -> None:
    recipe = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("deep", preset="w8a16"),))
    assert added(quantize(recipe=recipe, preset=None)) == ["deep_evened"]


def test_diagnose_compares_with_weights_that_were_divided_as_well() -> None:
    result = quantize()
    found = onnxq.diagnose(network(), result.model, data=samples(), threads=1)
    (deep,) = [finding for finding in found.findings if finding.node == "deep"]
    assert deep.weight_sqnr_db is not None and deep.weight_sqnr_db > 35.0


@pytest.mark.qnn
def test_the_simulator_is_as_good_as_the_cpu_with_it_and_far_behind_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = []
    for _ in range(2):
        result = quantize(output=tmp_path / "q.onnx")
        assert result.engine is not None and result.engine["refused"] == []
        behind.append(result.engine["sqnr_db_on_cpu"] - result.engine["sqnr_db"])
        monkeypatch.setattr("onnxq.pipeline.transformation.finer_sums", lambda job: [])
    assert behind[0] < 1.0
    assert behind[1] > 3.0
