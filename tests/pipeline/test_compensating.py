"""Weights of integer layers that are rounded by how they are used: closer to float, on the same grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError
from onnxq.pipeline.learned.compensating import compensates
from onnxq.recipe.recipe import Recipe
from onnxq.targets import TARGETS
from tests.graph.build import build, run, weights

CONVS = """g (float[N,24,8,8] x) => (float[N,6,4,4] y) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r1] b = Relu (a)
    [dw] c = Conv <group = 12, pads = [1,1,1,1], strides = [2,2]> (b, w2, b2) [r2] d = Relu (c)
    [out] y = Conv (d, w3) }"""
DENSE = """g (float[N,48] x) => (float[N,6] y) { [up] a = MatMul (x, w1) [act] b = Tanh (a)
    [mid] c = MatMul (b, w2) [act2] d = Tanh (c) [down] y = MatMul (d, w3) }"""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose weights have 4 bits, so that how they are rounded counts."""
    monkeypatch.setitem(TARGETS, "narrow", replace(TARGETS["cpu"], name="narrow", weight_bits=4))


def convs() -> onnx.ModelProto:
    return build(
        CONVS, w1=weights(12, 24, 3, 3) / 9, b1=weights(12), w2=weights(12, 1, 3, 3), b2=weights(12),
        w3=weights(6, 12, 1, 1),
    )  # fmt: skip


def dense() -> onnx.ModelProto:
    return build(DENSE, w1=weights(48, 64) / 6, w2=weights(64, 64) / 6, w3=weights(64, 6))


def images(count: int = 12) -> list[dict[str, np.ndarray]]:
    """Smooth pictures whose channels share four directions."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 24))
    rough = np.einsum("nkhw,kc->nchw", rng.normal(0.5, 1, (count, 4, 8, 8)), mixing)
    smooth = (rough + np.roll(rough, 1, 2) + np.roll(rough, 1, 3)) / 3 + rng.normal(0, 0.1, rough.shape)
    return [{"x": array[None].astype(np.float32)} for array in smooth]


def vectors(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(6, 48))
    return [
        {"x": (rng.normal(size=(16, 6)) @ mixing + 0.2 * rng.normal(size=(16, 48))).astype(np.float32)}
        for _ in range(count)
    ]


def quantized(model: onnx.ModelProto, samples: Any, **options: Any) -> onnx.ModelProto:
    result = onnxq.quantize(model, calibration=samples, force=True, benchmark=False, **options).model
    assert result is not None
    return result


def ratio(model: onnx.ModelProto, made: onnx.ModelProto, samples: list[dict[str, np.ndarray]]) -> float:
    pairs = [[run(m.SerializeToString(), feed)["y"] for m in (model, made)] for feed in samples]
    return sqnr_db(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type in (2, 3) and t.dims}


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_static_layers_come_closer_on_the_same_scales(form: str, per_channel: bool) -> None:
    samples, model = images(36)[:24], convs()
    recipe = Recipe(preset="w8a8", target="narrow", include=("*",), format=form, per_channel=per_channel)
    plain = quantized(model, samples, recipe=recipe)
    better = quantized(model, samples, recipe=replace(recipe, algorithm="gptq"))
    held_out = images(36)[24:]
    assert ratio(model, better, held_out) > ratio(model, plain, held_out) + 0.2
    floats = [
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer if t.data_type == 1 and "scale" in t.name}
        for m in (plain, better)
    ]
    assert floats[0].keys() == floats[1].keys()
    assert all(np.array_equal(floats[0][name], floats[1][name]) for name in floats[0])
    moved = [n for n, array in integers(plain).items() if array.ndim and not np.array_equal(array, integers(better)[n])]
    assert {"w1_quantized", "w3_quantized"} <= set(moved)


@pytest.mark.parametrize("preset", ["w8", "w8a8-dynamic"])
def test_weights_without_static_activations_do_so_too(preset: str) -> None:
    samples, model = vectors(), dense()
    plain = quantized(model, samples, preset=preset, target="narrow", include=["*"])
    better = quantized(model, samples, preset=preset, target="narrow", include=["*"], algorithm="gptq")
    changed = [n for n, array in integers(plain).items() if not np.array_equal(array, integers(better)[n])]
    assert changed
    held_out = vectors(20)[12:]
    assert ratio(model, better, held_out) > ratio(model, plain, held_out) + 0.2


def test_a_weight_that_two_layers_read_stays_one() -> None:
    model = build(
        """g (float[N,48] x) => (float[N,48] y) { [a] a = MatMul (x, w) [t] b = Tanh (a) [c] y = MatMul (b, w) }""",
        w=weights(48, 48) / 6,
    )
    made = quantized(model, vectors(), preset="w8a8", include=["*"], algorithm="gptq")
    assert len([array for array in integers(made).values() if array.size == 48 * 48]) == 1


def test_float_stays_float_and_no_layer_is_no_fault() -> None:
    model = build("g (float[N,48] x) => (float[N,48] y) { [t] a = Tanh (x) [m] y = Mul (a, a) }")
    made = quantized(model, vectors(), preset="w8a8", include=["*"], algorithm="gptq")
    assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "w8a8", "algorithm": "hqq"}, "rounds weights to nearest or with gptq"),
        ({"preset": "w8a8", "algorithm": "gptq", "adaround": True}, "leave one of the two out"),
        ({"preset": "nf4", "algorithm": "gptq"}, "has no weights that it rounds"),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        onnxq.quantize(dense(), calibration=vectors(), benchmark=False, **options)


def test_it_needs_samples() -> None:
    with pytest.raises(RecipeError, match="--algorithm gptq: needs calibration data"):
        onnxq.quantize(dense(), preset="w8", algorithm="gptq", benchmark=False)


def test_recipes_that_pack_weights_in_few_bits_round_those_alone() -> None:
    assert compensates(Recipe(preset="w8a8", algorithm="gptq"))
    assert compensates(Recipe(preset="w8", algorithm="gptq"))
    assert not compensates(Recipe(preset="w4", algorithm="gptq"))
    assert not compensates(Recipe(preset="w8", bits=4, algorithm="gptq"))
    assert not compensates(Recipe(preset="w8a8"))
