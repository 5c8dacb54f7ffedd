"""Estimated times of plans: every kernel and every conversion is counted once."""

from __future__ import annotations

import onnx
import pytest

from onnxq.graph.reading.ops import OPS
from onnxq.plan.placement.cost import node_costs
from onnxq.plan.placement.estimate import estimated_us
from onnxq.recipe.recipe import Rule
from onnxq.runtime.probe import probe
from onnxq.targets import target_named
from tests.graph.build import build, weights
from tests.plan.planning import Planned, plan_of

TARGET = target_named("cpu")
TEXT = """g (float[1,256] x) => (float[1,256] y) {
    [a] a = Gemm (x, w, b) [r] r = Relu (a) [c] c = Gemm (r, w, b) [d] y = Gemm (c, w, b) }"""
CONV = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    [a] a = Conv <pads = [1,1,1,1]> (x, w, b) [m] m = MaxPool <kernel_shape = [1,1]> (a)
    [c] y = Conv <pads = [1,1,1,1]> (m, w, b) }"""


def chain() -> onnx.ModelProto:
    return build(TEXT, w=weights(256, 256), b=weights(256))


def shapes(planned: Planned) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in probe(planned.model, planned.feeds[0], threads=1).items()}


def estimate(planned: Planned) -> float:
    return estimated_us(planned.model, planned.plan, TARGET, shapes(planned))


def kernels(planned: Planned, *integer: str) -> float:
    """Times of all kernels, of those named on integers."""
    total = 0.0
    for node in planned.model.graph:
        times = node_costs(node, OPS[node.op_type], shapes(planned), TARGET.costs)
        total += times[(node.name or "") in integer]
    return total


def test_all_integers_cost_a_conversion_at_the_start_and_none_where_products_go_straight_to_float() -> None:
    planned = plan_of(chain())
    assert planned.actions == {"a": "integer", "r": "folded", "c": "integer", "d": "integer"}
    relu = node_costs(planned.node("r"), OPS["Relu"], shapes(planned), TARGET.costs)[0]
    expected = kernels(planned, "a", "c", "d") - relu + TARGET.costs.quantize.us(256)
    assert estimate(planned) == pytest.approx(expected)


def test_a_float_layer_in_between_costs_its_kernel_and_the_way_back() -> None:
    planned = plan_of(chain(), rules=(Rule("c", quantize=False),))
    assert planned.actions["c"] == "float"
    relu = node_costs(planned.node("r"), OPS["Relu"], shapes(planned), TARGET.costs)[0]
    conversions = 2 * TARGET.costs.quantize.us(256) + TARGET.costs.dequantize.us(256)
    assert estimate(planned) == pytest.approx(kernels(planned, "a", "d") - relu + conversions)


def test_more_float_layers_take_longer() -> None:
    times = [
        estimate(plan_of(chain(), rules=tuple(Rule(name, quantize=False) for name in names)))
        for names in ((), ("a",), ("a", "d"))
    ]
    assert times == sorted(times)
    assert len(set(times)) == 3


def test_weights_that_are_only_stored_cost_what_float_costs() -> None:
    stored, floats = (plan_of(chain(), rules=(Rule("c", **rule),)) for rule in ({"preset": "w8"}, {"quantize": False}))
    assert stored.actions["c"] in ("storage", "weight")
    assert estimate(stored) == pytest.approx(estimate(floats))


def test_scales_at_inference_cost_an_integer_kernel_and_a_pass_over_the_input() -> None:
    planned = plan_of(chain(), preset="w8a8-dynamic")
    assert planned.actions["a"] == "dynamic"
    expected = kernels(planned, "a", "c", "d") + 3 * TARGET.costs.quantize.us(256)
    assert estimate(planned) == pytest.approx(expected)


def test_images_lie_badly_behind_a_conversion() -> None:
    proto = build(CONV, w=weights(16, 16, 3, 3), b=weights(16))
    together = plan_of(proto)
    apart = plan_of(proto, rules=(Rule("a", quantize=False), Rule("m", quantize=True)))
    pooled = plan_of(proto, rules=(Rule("a", quantize=False), Rule("m", quantize=False)))
    assert pooled.actions == {"a": "float", "m": "float", "c": "integer"}
    assert together.actions == dict.fromkeys(("a", "m", "c"), "integer")
    assert apart.actions == {"a": "float", "m": "integer", "c": "integer"}
    slower = TARGET.costs.behind_quantize["MaxPool"].us(16 * 8 * 8)
    conversions = TARGET.costs.quantize.us(1024) + TARGET.costs.dequantize.us(1024)
    assert estimate(together) == pytest.approx(kernels(together, "a", "m", "c") + conversions)
    assert estimate(apart) == pytest.approx(kernels(apart, "m", "c") + conversions + slower)
    moved = TARGET.costs.before_quantize["MaxPool"].us(16 * 8 * 8)
    assert estimate(pooled) == pytest.approx(kernels(pooled, "c") + conversions + moved)
