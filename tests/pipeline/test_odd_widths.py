"""Grids of other than 8 bits where ONNX Runtime has operators of its own for 8: beside biases, clamps and in bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from tests.graph.build import Array, build, session, weights

BODIES = """g (float[N,64] x, bool c) => (float[N,64] y) { a = Sigmoid (x)
    y = If (c) <then_branch = t () => (float[N,64] p) { p0 = MatMul (a, w) p = Neg (p0) },
                else_branch = e () => (float[N,64] q) { q0 = Relu (a) q = MatMul (q0, w) }> }"""


def quantized(model: onnx.ModelProto, count: int = 16, **options: Any) -> onnxq.QuantizeResult:
    more = {"c": lambda i: np.array(i % 2 == 0)}
    named = [value.name for value in model.graph.input]
    samples: list[dict[str, Array]] = [
        {name: more[name](i) if name in more else weights(3, 64, seed=i) for name in named} for i in range(count)
    ]
    result = onnxq.quantize(model, calibration=samples, benchmark=False, include=["*"], **options)
    assert result.model is not None
    session(result.model.SerializeToString())
    return result


@pytest.mark.parametrize("preset", ["w8a16", "w4a16"])
@pytest.mark.parametrize("behind", ["Add (m, b)", "Relu (m)", "Clip (m, low)"])
def test_products_of_16_bits_in_front_of_floats(behind: str, preset: str) -> None:
    text = f"g (float[N,64] x) => (float[N,64] y) {{ r = Relu (x) m = MatMul (r, w) k = {behind} y = Neg (k) }}"
    model = build(text, w=weights(64, 64), b=weights(64), low=np.float32(-1))
    result = quantized(model, preset=preset)
    assert result.sqnr_db is not None and result.sqnr_db > (40 if preset == "w8a16" else 15)


def test_a_rule_of_16_bits_in_front_of_a_bias() -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { r = Relu (x) m = MatMul (r, w) k = Add (m, b) y = Neg (k) }"
    model = build(text, w=weights(64, 64), b=weights(64))
    for rule in (onnxq.ValueRule("r", bits=16), onnxq.ValueRule("r", convert=16)):
        result = quantized(model, recipe=onnxq.Recipe(preset="w8a8", values=(rule,)))
        assert result.sqnr_db is not None and result.sqnr_db > 30


def test_products_of_16_bits_in_bodies() -> None:
    result = quantized(build(BODIES, w=weights(64, 64)), preset="w8a16")
    assert result.sqnr_db is not None and result.sqnr_db > 40


@pytest.mark.parametrize("bias", [(64, 1), (), (1,), (1, 64), (64, 64)])
def test_biases_of_any_shape_for_engines_of_integers_alone(bias: tuple[int, ...]) -> None:
    text = "g (float[64,64] x) => (float[64,64] y) { y = Gemm <transA=1,transB=1,alpha=0.5> (x, w, b) }"
    model = build(text, w=weights(64, 64), b=weights(*bias))
    samples = [{"x": weights(64, 64, seed=i)} for i in range(8)]
    result = onnxq.quantize(model, calibration=samples, benchmark=False, preset="w8a8", target="tensorrt")
    assert result.sqnr_db is not None and result.sqnr_db > 30
