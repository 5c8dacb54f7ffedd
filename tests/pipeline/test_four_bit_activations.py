"""Activations on 16 steps: what is stored, what is computed, what is refused, and what learning wins back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError, TargetError
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import Array, build, run, weights
from tests.graph.emit.networks import Net

TEXT = """g (float[N,3,8,8] x) => (float[N,6] y) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r1] b = Relu (a)
    [c2] c = Conv <pads = [1,1,1,1]> (b, w2, b2) [s] d = Add (b, c) [p] e = MaxPool <kernel_shape = [2,2]> (d)
    [c3] f = Conv (e, w3, b3) [r3] h = Clip (f, low, high)
    [g] k = GlobalAveragePool (h) [fl] l = Flatten (k) [fc] y = Gemm (l, w5, b5)
}"""


def model() -> onnx.ModelProto:
    return build(
        TEXT, w1=weights(12, 3, 3, 3), b1=weights(12), w2=weights(12, 12, 3, 3) / 2, b2=weights(12),
        w3=weights(16, 12, 1, 1), b3=weights(16), w5=weights(16, 6), b5=weights(6), low=np.float32(0),
        high=np.float32(3),
    )  # fmt: skip


def feeds(count: int = 20) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    mixed = rng.normal(0, 1, (count, 2, 3, 8, 8)) @ (rng.normal(0, 0.3, (8, 8)) + np.eye(8))
    return [{"x": array.astype(np.float32)} for array in mixed]


def quantized(**options: Any) -> onnxq.QuantizeResult:
    recipe = Recipe(**{"preset": "w4a4", "include": ("*",), **options})
    return onnxq.quantize(model(), calibration=feeds(), recipe=recipe, threads=1, benchmark=False, force=True)


def ratio(result: onnxq.QuantizeResult) -> float:
    assert result.model is not None
    both = [(run(m.SerializeToString(), f)["y"] for m in (model(), result.model)) for f in feeds()]
    exact, found = map(np.concatenate, zip(*both, strict=True))
    return sqnr_db(exact, found)


def optimized(content: bytes, feed: dict[str, Array]) -> dict[str, Array]:
    """The outputs with all optimizations."""
    opened = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return dict(zip([spec.name for spec in opened.get_outputs()], opened.run(None, feed), strict=True))


def integers(model: onnx.ModelProto) -> dict[str, Array]:
    """All quantized values of one run, beyond what the samples have shown."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    read = {node.input[0] for node in probe.graph.node if node.op_type == "DequantizeLinear"}
    stored = {tensor.name for tensor in probe.graph.initializer}
    for name in sorted(read - stored):
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    found = run(probe.SerializeToString(), {"x": 3.0 * feeds()[0]["x"]})
    return {name: found[name] for name in sorted(read - stored)}


def test_all_that_is_quantized_has_sixteen_steps() -> None:
    result = quantized()
    assert result.model is not None
    values = integers(result.model)
    assert len(values) >= 6 and all(array.dtype == np.uint8 and array.max() <= 15 for array in values.values())
    assert max(array.max() for array in values.values()) == 15
    stored = [onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer]
    held = [array.astype(int) for array in stored if array.dtype == np.int8 and array.ndim > 1]
    assert len(held) == 4 and all(np.abs(array).max() == 7 for array in held)
    assert any("no smaller and no faster than with w8a8" in warning for warning in result.warnings)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_both_formats_give_the_same_with_and_without_optimizations(form: str) -> None:
    made, other = quantized(format=form).model, quantized().model
    assert made is not None and other is not None
    content = made.SerializeToString()
    for feed in feeds(4):
        plain, fast = run(content, feed)["y"], optimized(content, feed)["y"]
        step = np.abs(plain).max() / 15
        assert np.abs(plain - fast).max() <= step
        assert np.abs(plain - run(other.SerializeToString(), feed)["y"]).max() <= step


def test_the_width_of_weights_is_a_choice_of_its_own() -> None:
    for options in ({"bits": 8}, {"rules": (Rule("*", bits=8),)}):
        made = quantized(**options).model
        assert made is not None
        held = [onnx.numpy_helper.to_array(t) for t in made.graph.initializer]
        assert all(np.abs(a.astype(int)).max() == 127 for a in held if a.dtype == np.int8 and a.ndim > 1)
        assert all(array.max() <= 15 for array in integers(made).values())


def test_softmax_and_sigmoid_have_sixteen_steps() -> None:
    net = Net()
    x = net.op("Softmax", [net.conv("x", 8, 8)], axis=1)
    made = onnxq.quantize(
        net.model([1, 8, 6, 6], [net.conv(net.op("Sigmoid", [net.conv(x, 8, 8)]), 8, 8)]),
        calibration=[{"x": feed} for feed in np.random.default_rng(0).normal(size=(8, 1, 8, 6, 6)).astype(np.float32)],
        preset="w4a4", include=["*"], threads=1, benchmark=False, force=True,
    )  # fmt: skip
    assert made.sqnr_db is not None and made.sqnr_db > 3.0


@pytest.mark.torch
def test_learning_wins_back_what_few_steps_cost() -> None:
    plain = ratio(quantized())
    assert ratio(quantized(reconstruct=True)) > plain
    assert ratio(quantized(finetune=True, epochs=3)) > plain


@pytest.mark.torch
def test_eight_bit_activations_take_fewer_bits_of_weights_where_something_learns() -> None:
    learned = quantized(preset="w8a8", bits=3, reconstruct=True)
    assert learned.model is not None
    held = [onnx.numpy_helper.to_array(t) for t in learned.model.graph.initializer]
    assert all(np.abs(a.astype(int)).max() <= 3 for a in held if a.dtype == np.int8 and a.ndim > 1)
    with pytest.raises(RecipeError, match="--bits 3: does nothing with preset w8a8"):
        quantized(preset="w8a8", bits=3)


def test_what_has_no_such_grids_refuses(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="--target qnn: does not run w4a4"):
        quantized(target="qnn")
    with pytest.raises(RecipeError, match=r"w4a4 activations of 4 bits and w8a8 activations of 8 bits, but all"):
        quantized(rules=(Rule("c1", preset="w8a8"),))
    with pytest.raises(RecipeError, match="w4a4 needs calibration data|needs calibration"):
        onnxq.quantize(model(), preset="w4a4", benchmark=False)
