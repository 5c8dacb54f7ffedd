"""Estimated times: they grow with the work, and say nothing where a shape is not known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.graph.files import io
from onnxq.graph.reading.ops import OPS
from onnxq.graph.types import Node
from onnxq.plan.placement.cost import elements, kernel_is_slower, node_costs
from onnxq.targets import TARGETS
from onnxq.targets.cpu import COSTS
from onnxq.targets.target import Rate, Target
from tests.graph.build import build, weights

TYPES = {"Conv", "Gemm", "MatMul"}


def node(op_type: str, *shapes: tuple[int, ...], **attributes: object) -> tuple[Node, dict[str, tuple[int, ...]]]:
    """A node whose inputs have the first shapes and whose output has the last one."""
    inputs = [onnx_ir.Value(name=f"in{i}") for i in range(len(shapes) - 1)]
    made = onnx_ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]
    made.outputs[0].name = "out"
    return made, dict(zip([*(f"in{i}" for i in range(len(inputs))), "out"], shapes, strict=True))


def costs(op_type: str, *shapes: tuple[int, ...], **attributes: object) -> tuple[float, float]:
    made, known = node(op_type, *shapes, **attributes)
    return node_costs(made, OPS[op_type], known, COSTS)


def conv(batch: int, channels: int, filters: int, kernel: int, size: int, group: int = 1) -> tuple[float, float]:
    weight = (filters, channels // group, kernel, kernel)
    return costs("Conv", (batch, channels, size, size), weight, (batch, filters, size, size), group=group)


LENGTHS = {
    "batch": st.integers(1, 8), "channels": st.integers(4, 64), "filters": st.integers(1, 64),
    "kernel": st.sampled_from([1, 3, 5]), "size": st.integers(1, 32),
}  # fmt: skip


@given(st.fixed_dictionaries(LENGTHS), st.sampled_from([*LENGTHS]), st.integers(1, 4))
def test_a_convolution_never_gets_cheaper_by_growing(lengths: dict[str, int], grown: str, factor: int) -> None:
    small = conv(**lengths)
    large = conv(**{**lengths, grown: lengths[grown] * (factor if grown != "kernel" else 1) + 2 * (grown == "kernel")})
    assert small[0] <= large[0] * (1 + 1e-9) and small[1] <= large[1] * (1 + 1e-9)
    assert min(small) > 0


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.sampled_from(["Gemm", "MatMul"]))
def test_a_product_never_gets_cheaper_by_growing(depth: int, columns: int, rows: int, op_type: str) -> None:
    def cost(k: int, n: int, m: int) -> tuple[float, float]:
        return costs(op_type, (m, k), (k, n), (m, n))

    small = cost(depth, columns, rows)
    for large in (cost(2 * depth, columns, rows), cost(depth, 2 * columns, rows), cost(depth, columns, 2 * rows)):
        assert small[0] <= large[0] * (1 + 1e-9) and small[1] <= large[1] * (1 + 1e-9)


@given(st.sampled_from(sorted(set(OPS) - TYPES)), st.integers(1, 1 << 16), st.integers(1, 5))
def test_other_operators_never_get_cheaper_by_growing(op_type: str, size: int, factor: int) -> None:
    shape = {"kernel_shape": [2, 2]} if "Pool" in op_type and "Global" not in op_type else {}
    small = costs(op_type, (1, size), (1, size), **shape)
    large = costs(op_type, (1, size * factor), (1, size * factor), **shape)
    assert small[0] <= large[0] and small[1] <= large[1]


def test_a_transposed_weight_costs_the_same() -> None:
    assert costs("Gemm", (8, 40), (10, 40), (8, 10), transB=1) == costs("Gemm", (8, 40), (40, 10), (8, 10))


@pytest.mark.parametrize("op_type", sorted(TYPES))
def test_layers_of_unknown_shapes_cost_nothing(op_type: str) -> None:
    made, known = node(op_type, (2, 8, 4, 4), (8, 8, 1, 1), (2, 8, 4, 4))
    row = OPS[op_type]
    assert node_costs(made, row, known, COSTS) != (0.0, 0.0)
    for missing in ("in1", "out"):
        partly = {name: shape for name, shape in known.items() if name != missing}
        assert node_costs(made, row, partly, COSTS) == (0.0, 0.0)
        assert not kernel_is_slower(made, partly, COSTS)
    assert node_costs(made, row, {}, COSTS) == (0.0, 0.0)


def test_shapes_of_the_run_come_before_those_of_the_file() -> None:
    model = io.load(build("g (float[N,4,6] x) => (float[N,4,6] y) { y = Relu (x) }"))
    value = model.graph.inputs[0]
    assert elements(value, {}) == 24  # a free axis counts once
    assert elements(value, {"x": (3, 4, 6)}) == 72
    assert elements(None, {}) is None and elements(onnx_ir.Value(name="z"), {}) is None


def test_the_thin_stem_is_slower_on_integers_and_the_body_is_not() -> None:
    stem, stem_shapes = node("Conv", (1, 3, 224, 224), (32, 3, 3, 3), (1, 32, 112, 112))
    body, body_shapes = node("Conv", (1, 64, 56, 56), (64, 64, 3, 3), (1, 64, 56, 56))
    assert kernel_is_slower(stem, stem_shapes, COSTS)
    assert not kernel_is_slower(body, body_shapes, COSTS)
    as_float, as_int = node_costs(body, OPS["Conv"], body_shapes, COSTS)
    assert as_float > 2 * as_int


SIMPLE = replace(
    COSTS.float_macs, dense=1e3, grouped=1e2, depthwise=1e1, depthwise_width=1, output_ns=0.0, row_ns=0.0,
    thin_row_ns=0.0, weights_per_us=1e9, min_columns=1, fixed_us=5.0,
)  # fmt: skip


def test_each_kind_of_convolution_has_its_own_rate() -> None:
    chosen = replace(COSTS, float_macs=SIMPLE, int_macs=replace(SIMPLE, min_columns=16, depthwise_width=32))
    for group, rate in ((1, 1e3), (2, 1e2), (64, 1e1)):
        made, known = node("Conv", (1, 64, 8, 8), (64, 64 // group, 3, 3), (1, 64, 8, 8), group=group)
        as_float, as_int = node_costs(made, OPS["Conv"], known, chosen)
        assert as_float == as_int == pytest.approx(5 + 64 * 64 * 9 * 64 // group / rate)
    for group, width in ((1, 16), (4, 32)):  # four columns take as long as sixteen, four channels as thirty-two
        made, known = node("Conv", (1, 4, 8, 8), (4, 4 // group, 3, 3), (1, 4, 8, 8), group=group)
        as_float, as_int = node_costs(made, OPS["Conv"], known, chosen)
        assert as_int - 5 == pytest.approx(width / 4 * (as_float - 5))


def test_few_rows_are_bound_by_reading_the_weight() -> None:
    chosen = replace(COSTS, float_macs=replace(SIMPLE, weights_per_us=1e2))
    made, known = node("Gemm", (1, 1000), (1000, 1000), (1, 1000))
    assert node_costs(made, OPS["Gemm"], known, chosen)[0] == pytest.approx(5 + 1e6 / 1e2)
    made, known = node("Gemm", (100, 1000), (1000, 1000), (100, 1000))
    assert node_costs(made, OPS["Gemm"], known, chosen)[0] == pytest.approx(5 + 1e8 / 1e3)


def test_pools_are_counted_by_window() -> None:
    two = costs("MaxPool", (1, 8, 8, 8), (1, 8, 4, 4), kernel_shape=[2, 2])
    three = costs("MaxPool", (1, 8, 8, 8), (1, 8, 4, 4), kernel_shape=[3, 3])
    fixed = COSTS.float_ops["MaxPool"].fixed_us
    assert (three[0] - fixed) / (two[0] - fixed) == pytest.approx(9 / 4)


def test_an_operator_without_a_rate_takes_the_default() -> None:
    few = replace(COSTS, float_ops={}, int_ops={}, float_default=Rate(1.0, 7.0))
    made, known = node("Add", (1, 1000), (1, 1000), (1, 1000))
    assert node_costs(made, OPS["Add"], known, few) == (8.0, 8.0)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_rates_are_positive(target: Target) -> None:
    costs = target.costs
    for macs in (costs.float_macs, costs.int_macs):
        speeds = {
            name: value for name, value in vars(macs).items() if not name.endswith(("_ns", "_us")) or "per" in name
        }
        assert min(speeds.values()) > 0 and min(vars(macs).values()) >= 0
    for rate in (*costs.float_ops.values(), *costs.int_ops.values(), costs.quantize, costs.dequantize):
        assert rate.ns_per_element >= 0 and rate.us(1000) > 0


def test_constants_count_with_the_shape_they_have() -> None:
    model = io.load(build("g (float[2,8] x) => (float[2,4] y) { y = Gemm (x, w) }", w=weights(8, 4)))
    (made,) = model.graph
    assert np.all(np.array(node_costs(made, OPS["Gemm"], {"y": (2, 4)}, COSTS)) > 0)


def test_a_product_of_activations_gains_less_than_one_with_a_packed_weight() -> None:
    model = io.load(build("g (float[64,64] x) => (float[64,64] y) { y = MatMul (x, w) }", w=weights(64, 64)))
    packed = node_costs(model.graph[0], OPS["MatMul"], {"x": (64, 64), "y": (64, 64)}, COSTS)
    both = costs("MatMul", (64, 64), (64, 64), (64, 64))
    assert packed[0] == pytest.approx(both[0]) and packed[1] < both[1]


def test_a_transposition_of_rows_gains_little() -> None:
    shapes = (1, 64, 8, 32), (1, 8, 64, 32)
    rows = costs("Transpose", *shapes, perm=[0, 2, 1, 3])
    elements_ = costs("Transpose", (1, 64, 8, 32), (1, 64, 32, 8), perm=[0, 1, 3, 2])
    assert 1 < rows[0] / rows[1] < elements_[0] / elements_[1]
