"""Which nodes quantize their input at inference, and in what words the others do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, PerToken
from onnxq.plan.decisions import NodePlan
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build, weights
from tests.plan.planning import plan_of

W = weights(64, 96)


def planned(text: str, *, preset: str = "w8a8-dynamic", opset: int = 17, ir: int = 8, **options: Any) -> NodePlan:
    """The plan of the node named ``n``."""
    arrays = {k: options.pop(k) for k in list(options) if isinstance(options[k], np.ndarray)}
    return plan_of(build(text, opset=opset, ir=ir, **arrays), preset=preset, **options)["n"]


@pytest.mark.parametrize(
    ("text", "action", "reason"),
    [
        (
            "g (float[4,4] x) => (float[512,4] y) { [n] y = MatMul (narrow, x) }",
            "storage",
            "its left operand is constant, and so small that turning the product around costs what integers save",
        ),
        (
            "g (float[64,64] x) => (float[64,64] y) { [n] y = MatMul (x, x) }",
            "float",
            "both operands are activations: quantizing both at each inference costs what the product saves",
        ),
        (
            "g (float[1024] x) => (float y) { [n] y = MatMul (x, vector) }",
            "float",
            "its weight of shape (1024,) is no matrix",
        ),
        (
            "g (float[4,64] x) => (float[4,1] y) { [n] y = MatMul (x, column) }",
            "float",
            "its weight has fewer than 1024 elements, so that storing it as integers would save nothing",
        ),
        (
            "g (float[4,512] x) => (float[4,4] y) { [n] y = MatMul (x, narrow) }",
            "storage",
            "with a weight of 512 × 4 quantizing its input at each inference costs more than the integer product saves",
        ),
        (
            "g (float[1,64,4,4] x) => (float[1,64,4,4] y) { [n] y = Conv (x, kernel) }",
            "storage",
            "an integer convolution that quantizes its input at inference is slower than the float one",
        ),
        (
            "g (float[1,64,4,4] x) => (float[1,64,4,4] y) { [n] y = ConvTranspose (x, kernel) }",
            "storage",
            "onnxruntime has no integer ConvTranspose",
        ),
        (
            "g (int64[4] i) => (float[64,4] y) { [n] y = Gather <axis = 1> (w, i) }",
            "dynamic",
            "slices of the table are stored as int8 and scaled once gathered",
        ),
        (
            "g (int64[4] i) => (float[4,4] y) { [n] y = Gather <axis = 1> (flat, i) }",
            "float",
            "its scales, one a slice, would take what the integers of its table save",
        ),
        (
            "g (int64[4] i) => (float[4,4] y) { [n] y = Gather (small, i) }",
            "float",
            "its table has fewer than 1024 elements or no rows",
        ),
        ("g (float[8,4] x, int64[2] i) => (float[2,4] y) { [n] y = Gather (x, i) }", "float", "it only moves elements"),
        ("g (float[4,4] x) => (float[4,4] y) { [n] y = Erf (x) }", "float", "no integer kernel that quantizes"),
    ],
)  # fmt: skip
def test_a_node_that_does_not_says_why(text: str, action: str, reason: str) -> None:
    feed = {"x": np.ones((4, 4), np.float32), "i": np.zeros(4, np.int64)}
    arrays = {
        "w": W, "vector": weights(1024), "column": weights(64, 1), "narrow": weights(512, 4),
        "kernel": weights(64, 64, 1, 1), "small": weights(8, 4), "flat": weights(4, 512),
    }  # fmt: skip
    used = {name: array for name, array in arrays.items() if f"{name}," in text or f"{name})" in text}
    feeds = [{"i": feed["i"]}] if "x)" not in text and "x," not in text else None
    plan = planned(text, feeds=feeds, **used) if feeds else planned(text, **used)
    assert (plan.action, plan.reason[: len(reason)]) == (action, reason)


def test_a_small_layer_that_is_insisted_on_is_quantized() -> None:
    text = "g (float[4,16] x) => (float[4,6] y) { [n] y = MatMul (x, v) }"
    assert planned(text, v=weights(16, 6)).action == "float"
    assert planned(text, v=weights(16, 6), include=("n",)).action == "dynamic"
    assert planned(text, v=weights(16, 6), rules=(Rule("n", quantize=True),)).action == "dynamic"


@pytest.mark.parametrize(
    ("preset", "columns", "action"),
    [
        ("w8a8-dynamic", 12, "storage"),
        ("w8a8-dynamic", 24, "dynamic"),
        ("w8a8-token", 64, "storage"),
        ("w8a8-token", 128, "dynamic"),
    ],
)
def test_rows_need_larger_weights_than_tensors(preset: str, columns: int, action: str) -> None:
    text = f"g (float[4,128] x) => (float[4,{columns}] y) {{ [n] y = MatMul (x, v) }}"
    assert planned(text, preset=preset, v=weights(128, columns)).action == action


@pytest.mark.parametrize(
    ("options", "granularity"),
    [
        ({}, PerAxis(1)),
        ({"per_channel": False}, PerTensor()),
        ({"rules": (Rule("n", per_channel=False),)}, PerTensor()),
        ({"preset": "w8a8-token", "block_size": 32}, PerBlock(0, 32)),
        ({"preset": "w8a8-token", "rules": (Rule("n", block_size=64),)}, PerBlock(0, 64)),
        ({"preset": "w8a8-token", "block_size": 32, "rules": (Rule("n", block_size=0),)}, PerAxis(1)),
        ({"block_size": 32}, PerAxis(1)),
    ],
)
def test_which_weights_share_a_scale(options: dict[str, Any], granularity: object) -> None:
    plan = planned("g (float[4,128] x) => (float[4,160] y) { [n] y = MatMul (x, v) }", v=weights(128, 160), **options)
    assert plan.weights[1].granularity == granularity
    assert plan.weights[1].symmetric and plan.weights[1].narrow_range


def test_an_lstm_has_a_scale_for_each_gate_in_each_direction() -> None:
    text = "g (float[3,2,16] x) => (float[3,1,2,32] y) { [n] y = LSTM <hidden_size = 32> (x, w, r) }"
    plan = planned(text, w=weights(1, 128, 16), r=weights(1, 128, 32))
    assert (plan.action, plan.form) == ("dynamic", "lstm")
    assert plan.weights[1].granularity == plan.weights[2].granularity == PerToken()


def test_an_lstm_of_run_time_weights_stays_float() -> None:
    text = "g (float[3,2,16] x, float[1,128,16] w) => (float[3,1,2,32] y) { [n] y = LSTM <hidden_size = 32> (x, w, r) }"
    assert planned(text, r=weights(1, 128, 32)).reason.startswith("its weights are not constant")


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token"])
def test_float16_models_compute_in_float32(preset: str) -> None:
    model = build("g (float16[4,64] x) => (float16[4,96] y) { [n] y = MatMul (x, w) }", w=W.astype(np.float16))
    result = onnxq.quantize(model, preset=preset, benchmark=False, threads=1)
    assert result.coverage["MatMul"] == {"quantized": 1, "total": 1}


def test_rules_choose_the_preset_by_node() -> None:
    text = "g (float[4,128] x) => (float[4,128] y) { [a] h = MatMul (x, v) [n] y = MatMul (h, v) }"
    recipe_rules = (Rule("n", preset="w8a8-token"), Rule("a", preset="w8"))
    plan = plan_of(build(text, v=weights(128, 128)), preset="w8a8-dynamic", rules=recipe_rules)
    assert (plan["n"].form, plan["a"].action) == ("token", "storage")
    assert Recipe.from_yaml(plan.recipe.to_yaml()) == plan.recipe


def test_coverage_counts_what_is_dynamic() -> None:
    plan = plan_of(
        build("g (float[4,64] x) => (float[4,96] y) { [n] y = MatMul (x, w) }", w=W), preset="w8a8-dynamic"
    ).plan
    assert plan.coverage() == {"MatMul": {"quantized": 1, "total": 1}}
    assert plan.kept_float() == []
    assert plan.calibrated == []
