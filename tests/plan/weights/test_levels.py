"""Accuracy levels by layer: rounding as the kernel does it, and where it costs too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.plan.decisions import WEIGHT, NodePlan
from onnxq.plan.weights.levels import rounding_db
from onnxq.plan.weights.weight_only import NBITS, grid
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build, run, weights

WIDTH = 256
CHANNELS = (5, 130)
FACTOR = 1500.0


def planned(bits: int = 8, size: int = 128) -> NodePlan:
    return NodePlan("n", "MatMul", WEIGHT, weights={1: grid(bits, size, Recipe())}, form=NBITS, accuracy_level=4)


def massive(factor: float = FACTOR, count: int = 200) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    rows[:, list(CHANNELS)] *= factor
    return rows


def matrix(factor: float = FACTOR, outputs: int = 300) -> np.ndarray:
    found = np.random.default_rng(1).normal(0, 0.05, (outputs, WIDTH)).astype(np.float32)
    found[:, list(CHANNELS)] /= factor
    return found


def network(factor: float = FACTOR) -> Any:
    """x · scale → MatMul → Relu → MatMul, with two channels of the first input far larger than the others."""
    scale = np.ones(WIDTH, np.float32)
    scale[list(CHANNELS)] = factor
    return build(
        f"g (float[N, {WIDTH}] x) => (float[N, 256] y) {{ xs = Mul (x, s) [fc] h = MatMul (xs, a) r = Relu (h)"
        " [head] y = MatMul (r, b) }",
        s=scale, a=np.ascontiguousarray(matrix(factor, 256).T), b=weights(256, 256) / 16,
    )  # fmt: skip


DATA = [{"x": np.random.default_rng(i).normal(size=(8, WIDTH)).astype(np.float32)} for i in range(10)]


def levels(**options: Any) -> tuple[dict[str, Any], Any]:
    result = onnxq.quantize(network(), benchmark=False, force=True, **({"calibration": DATA} | options))
    return {
        name: node.accuracy_level if node.action == WEIGHT else node.action
        for name, node in result.plan.nodes.items()
        if name in ("fc", "head")
    }, result


@pytest.mark.parametrize("bits", [4, 8])
def test_ordinary_inputs_may_be_rounded(bits: int) -> None:
    assert rounding_db(matrix(1.0), planned(bits), massive(1.0)) is None
    assert rounding_db(matrix(1.0), planned(bits), np.zeros((4, WIDTH), np.float32)) is None


def test_a_few_massive_channels_may_not() -> None:
    found = {size: rounding_db(matrix(), planned(8, size), massive()) for size in (32, 128, 0)}
    assert all(db is not None for db in found.values())
    # the smaller the blocks, the fewer channels share one with a massive one
    assert found[32] > found[128] + 3.0


def test_noise_of_the_weights_hides_that_of_the_input() -> None:
    factor = 20.0
    assert rounding_db(matrix(factor), planned(8), massive(factor)) is not None
    assert rounding_db(matrix(factor), planned(2, 128), massive(factor)) is None


@pytest.mark.parametrize("size", [32, 128])
def test_it_is_what_the_kernel_does(size: int) -> None:
    """The signal to noise that the runtime has at level 4, beside level 0."""
    model = build(
        f"g (float[N, {WIDTH}] x) => (float[N, 256] y) {{ [fc] y = MatMul (x, a) }}",
        a=np.ascontiguousarray(matrix(outputs=256).T),
    )
    outputs = []
    for level in (0, 4):
        options = {"preset": "w8", "block_size": size, "accuracy_level": level, "include": ("fc",)}
        result = onnxq.quantize(model, benchmark=False, force=True, **options)
        outputs.append(run(result.model.SerializeToString(), {"x": massive()})["y"].astype(np.float64))
    exact, rounded = outputs
    measured = 10 * np.log10((exact**2).sum() / ((rounded - exact) ** 2).sum())
    found = rounding_db(matrix(outputs=256), planned(8, size), massive())
    assert found == pytest.approx(measured, abs=2.0)


@pytest.mark.parametrize(("preset", "level", "gain"), [("w4", 0, 4.0), ("w8", "storage", 10.0)])
def test_layers_get_the_level_that_samples_ask_for(preset: str, level: Any, gain: float) -> None:
    found, result = levels(preset=preset)
    assert found == {"fc": level, "head": 4}
    assert any("layer 'fc': accuracy level 0 (float32)" in line for line in result.warnings)
    fixed, rounded = levels(preset=preset, accuracy_level=4)
    assert fixed == {"fc": 4, "head": 4}
    assert result.sqnr_db > rounded.sqnr_db + gain


def test_what_the_user_says_and_what_is_not_known_stays() -> None:
    insisted, result = levels(recipe=Recipe(preset="w4", rules=(Rule("fc", accuracy_level=4),)))
    assert insisted == {"fc": 4, "head": 4}
    assert not any("accuracy level 0" in line for line in result.warnings)
    assert levels(preset="w4", accuracy_level=0)[0] == {"fc": 0, "head": 0}
    without, result = levels(preset="w8", calibration=None)
    assert without == {"fc": 4, "head": 4}
    assert any(
        "MatMulNBits rounds them to int8 inside, which --accuracy-level 0 prevents" in w for w in result.warnings
    )


def test_the_qdq_format_cannot_and_says_so() -> None:
    text = "g (float[N, 256] x) => (float[N, 256] y) { xs = Mul (x, s) [fc] y = MatMul (xs, a) }"
    scale = np.ones(WIDTH, np.float32)
    scale[list(CHANNELS)] = FACTOR
    model = build(text, s=scale, a=np.ascontiguousarray(matrix(outputs=256).T))
    result = onnxq.quantize(model, preset="w4", format="qdq", calibration=DATA, benchmark=False, force=True)
    assert (result.plan.nodes["fc"].form, result.plan.nodes["fc"].accuracy_level) == ("DequantizeLinear", 4)
    assert any("--format qoperator computes such layers in float32" in line for line in result.warnings)
