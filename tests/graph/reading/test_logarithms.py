"""Layers whose results go into a logarithm without an activation between, and that they stay float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.graph.reading.logarithms import before_logs
from tests.graph.build import build, weights
from tests.plan.planning import plan_of

SPECTRUM = """[stft] s = Conv <strides = [16]> (x, w) p = Mul (s, s) t = Transpose <perm = [0, 2, 1]> (p)
    [mel] m = MatMul (t, v) c = Max (m, floor) l = Log (c)"""
NET = "[first] h = MatMul (l, u) r = Relu (h) [second] y = MatMul (r, u2)"
CONSTANTS = {
    "w": weights(64, 1, 32),
    "v": weights(64, 32, low=0.0),
    "floor": np.array(1e-6, np.float32),
    "u": weights(32, 64),
    "u2": weights(64, 32),
}


def front_end(between: str = "") -> onnx.ModelProto:
    spectrum = SPECTRUM.replace("[mel] m = MatMul (t", f"{between} [mel] m = MatMul ({'q' if between else 't'}")
    return build(f"g (float[1, 1, 512] x) => (float[?, ?, ?] y) {{ {spectrum} {NET} }}", **CONSTANTS)


def test_all_linear_layers_in_front_and_none_behind() -> None:
    assert before_logs(io.load(front_end()).graph) == {"stft", "mel"}


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh"])
def test_an_activation_ends_it(activation: str) -> None:
    assert before_logs(io.load(front_end(f"q = {activation} (t)")).graph) == {"mel"}


def test_in_a_body() -> None:
    text = """g (float[2, 8] x, bool c) => (float[2, 8] y) {
        y = If (c) <then_branch = t () => (float[2, 8] p) { [a] m = MatMul (x, w) q = Abs (m) p = Log (q) },
                    else_branch = e () => (float[2, 8] o) { [b] o = MatMul (x, w) }> }"""
    assert before_logs(io.load(build(text, w=weights(8, 8))).graph) == {"a"}


def test_they_stay_float_unless_the_user_insists() -> None:
    planned = plan_of(front_end())
    assert planned.actions["mel"] in ("float", "storage") and "goes into a Log" in planned["mel"].reason
    assert planned.actions["first"] == planned.actions["second"] == "integer"
    assert plan_of(front_end(), include=("mel",)).actions["mel"] == "integer"


def test_so_they_do_where_activations_are_quantized_at_inference() -> None:
    proto = front_end()
    feeds = [{"x": weights(1, 1, 512, seed=i)} for i in range(8)]
    result = onnxq.quantize(proto, calibration=feeds, preset="w8a8-dynamic", threads=1, benchmark=False, force=True)
    said = {name: reason for name, _, reason in result.kept_float}
    assert "mel" not in said or "goes into a Log" in said["mel"]
    assert result.model is not None
    products = [node.name for node in result.model.graph.node if "Integer" in node.op_type]
    assert not any("mel" in name for name in products)
