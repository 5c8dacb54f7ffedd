"""Initializers that a caller may override stay so where quantization did not take them up, and the report names the
others.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import initializer_inputs
from tests.graph.build import Array, build, weights
from tests.runtime_version import needs_runtime

NET = """g (float[N,64] x, float[64,64] w, float[64] shift, float[1] gain) => (float[N,64] y) {
    h = MatMul (x, w)  r = Relu (h)  s = Sigmoid (r)  t = Mul (s, gain)  y = Sub (shift, t)
}"""


def net(ir: int = 8) -> onnx.ModelProto:
    constants = {"w": weights(64, 64), "shift": weights(64), "gain": np.array([2.0], np.float32)}
    return build(NET, ir=ir, **constants)


def quantized(proto: onnx.ModelProto, **options: object) -> onnxq.QuantizeResult:
    samples = [{"x": weights(1, 64, seed=i)} for i in range(8)]
    return onnxq.quantize(proto, calibration=samples, benchmark=False, **options)  # type: ignore[arg-type]


def opened(proto: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("preset", ["w8a8", "w8", "w8a8-dynamic"])
def test_what_was_not_taken_up_can_be_overridden(preset: str) -> None:
    proto = net()
    result = quantized(proto, preset=preset)
    assert result.model is not None
    assert [value.name for value in result.model.graph.input] == ["x", "shift", "gain"]
    session = opened(result.model)
    assert [value.name for value in session.get_inputs()] == ["x"]
    feed = {"x": weights(2, 64, seed=9), "shift": np.full(64, 5, np.float32), "gain": np.array([-3], np.float32)}
    expected, found = opened(proto).run(None, feed)[0], session.run(None, feed)[0]
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert [line for line in result.warnings if "became constant" in line] == [
        "initializer 'w': became constant, so that a caller can no longer override it as an input"
    ]


def test_before_version_4_they_are_constants_and_nothing_is_said() -> None:
    result = quantized(net(ir=3), preset="w8a8")
    assert result.model is not None
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert not any("became constant" in line for line in result.warnings)


def test_one_that_is_folded_for_one_reader_is_a_constant_for_all() -> None:
    text = """g (float[N,64] x, float[64] c) => (float[N,64] y, float[N,64] z) {
        h = MatMul (x, w)  y = Mul (h, c)  z = Add (y, c) }"""
    proto = build(text, w=weights(64, 64), c=weights(64, low=0.5))
    result = quantized(proto, preset="w8")
    assert result.model is not None
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert any("initializer 'c': became constant" in line for line in result.warnings)


def test_one_whose_contents_changed_is_a_constant() -> None:
    model = io.load(net())
    prepare(model)
    value = model.graph.initializers["shift"]
    assert value.const_value is not None
    value.const_value = type(value.const_value)(value.const_value.numpy() + 1, name="shift")
    assert "shift" in initializer_inputs.restore(model)


@needs_runtime("1.32", "ends the process on a Cast of a float16 default")
def test_float16_defaults_keep_their_type() -> None:
    text = "g (float16[N,64] x, float16[64,64] v) => (float16[N,64] y) { h = MatMul (x, w) y = MatMul (h, v) }"
    half: dict[str, Array] = {name: weights(64, 64).astype(np.float16) for name in "wv"}
    half["v"] = weights(64, 64, seed=5).astype(np.float16)
    samples = [{"x": weights(1, 64, seed=i).astype(np.float16)} for i in range(8)]
    result = onnxq.quantize(
        build(text, **half), preset="w8a8", exclude=["MatMul_1"], calibration=samples, benchmark=False
    )
    assert result.model is not None
    assert [value.name for value in result.model.graph.input] == ["x", "v"]
    assert result.model.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert opened(result.model).run(None, samples[0])


def test_a_second_restore_changes_nothing() -> None:
    model = io.load(net())
    prepare(model)
    initializer_inputs.restore(model)
    before = io.to_bytes(model)
    initializer_inputs.restore(model)
    assert io.to_bytes(model) == before


def test_one_without_elements_is_a_constant() -> None:
    """Resize takes it for a missing input, as long as nobody can override it."""
    text = """g (float[N,4,6,6] x, float[0] none) => (float[N,4,12,12] y) {
        h = Conv (x, w)  y = Resize <mode="linear"> (h, roi, none, sizes) }"""
    more = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 4, 12, 12])}
    proto = build(text, opset=12, ir=7, w=weights(4, 4, 1, 1), roi=np.zeros(8, np.float32), **more)
    samples = [{"x": weights(1, 4, 6, 6, seed=i)} for i in range(8)]
    result = onnxq.quantize(proto, preset="w8a8", include=["*"], calibration=samples, benchmark=False)
    assert result.model is not None
    assert [value.name for value in result.model.graph.input] == ["x"]
    opened(result.model)
