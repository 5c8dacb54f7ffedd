"""A budget of bits is kept, and spent where the error is largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build
from tests.runtime_version import TWO_BITS

RNG = np.random.default_rng(3)


def stack() -> onnx.ModelProto:
    """Three layers; the weight of the second has outliers, so that blocks of few levels serve it badly."""
    weights = {name: RNG.standard_normal((128, 128)).astype(np.float32) for name in "abc"}
    weights["b"][RNG.random((128, 128)) < 0.02] *= 30
    return build(
        "g (float[B, 128] x) => (float[B, 128] y) {"
        " [first] h = MatMul(x, a) [second] i = MatMul(h, b) [third] y = MatMul(i, c) }",
        **weights,
    )


def quantize(model: onnx.ModelProto, **options: Any) -> onnxq.QuantizeResult:
    return onnxq.quantize(model, **{"preset": "w4", "benchmark": False, "force": True, **options})


def bits_of(result: onnxq.QuantizeResult) -> dict[str, int]:
    return {
        node.name: next(a.i for a in node.attribute if a.name == "bits")
        for node in result.model.graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
    }


@pytest.mark.parametrize("target", [pytest.param(3.0, marks=TWO_BITS), 4.5, 5.0, 6.0, 9.0])
def test_the_budget_is_kept_and_used(target: float) -> None:
    result = quantize(stack(), target_bits=target)
    assert result.bits_per_weight is not None
    assert target - 1.6 < result.bits_per_weight <= target + 1e-9


def test_more_bits_go_where_the_error_is_larger() -> None:
    bits = bits_of(quantize(stack(), target_bits=5.6))
    assert bits["second"] > max(bits["first"], bits["third"])
    assert quantize(stack(), target_bits=9.0).sqnr_db > quantize(stack(), target_bits=4.5).sqnr_db


@TWO_BITS
def test_the_users_own_rules_win_and_count() -> None:
    recipe = Recipe(preset="w4", target_bits=5.0, rules=(Rule("third", bits=8, block_size=32),))
    result = quantize(stack(), recipe=recipe)
    assert bits_of(result)["third"] == 8
    assert result.bits_per_weight is not None and result.bits_per_weight <= 5.0


def test_a_tied_weight_counts_once_and_stays_one() -> None:
    table = RNG.standard_normal((64, 96)).astype(np.float32)
    model = build(
        "g (int64[B] ids) => (float[B, 64] y) { [emb] e = Gather(t, ids) [head] y = Gemm<transB=1>(e, t) }", t=table
    )
    result = quantize(model, target_bits=5.0)
    assert bits_of(result) == {"emb": 4, "head": 4}
    assert [layer["shares"] for layer in result.weights].count(None) == 1
    assert result.bits_per_weight == pytest.approx(5.0)


def test_the_inputs_say_where_weights_matter() -> None:
    """Two layers alike but for their inputs: of the second's, only those matter that its large weights never meet."""
    weight = RNG.standard_normal((128, 128)).astype(np.float32)
    weight[::2] *= 100
    model = build(
        "g (float[B, 128] x) => (float[B, 128] y, float[B, 128] z) {"
        " [plain] y = MatMul(x, w) x2 = Mul(x, odd) [picky] z = MatMul(x2, v) }",
        w=weight, v=weight[:, ::-1].copy(), odd=np.tile(np.array([1e-6, 1], np.float32), 64),
    )  # fmt: skip
    samples = [{"x": RNG.standard_normal((64, 128)).astype(np.float32)} for _ in range(6)]
    bits = bits_of(quantize(model, calibration=samples, algorithm="gptq", target_bits=6.6))
    assert bits["picky"] > bits["plain"]


@TWO_BITS
def test_a_budget_that_no_form_keeps_is_refused() -> None:
    with pytest.raises(RecipeError, match="target bits 2: the cheapest choices take 2.266 bits a weight"):
        quantize(stack(), target_bits=2.0)


def test_a_budget_needs_weights_in_blocks() -> None:
    with pytest.raises(RecipeError, match="--target-bits 4.5: nothing is packed in blocks with --preset lut4"):
        quantize(stack(), preset="lut4", target_bits=4.5)
