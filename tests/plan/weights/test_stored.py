"""Weights on either side of a product, in an Einsum, in stacks: all that can be dequantized at load is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxq
from onnxq.core.spec import PerAxis, PerBlock, PerTensor
from onnxq.graph.files import io
from onnxq.graph.reading.inspection import inspect_model
from onnxq.graph.reading.ops import contracted_axes
from tests.graph.build import build, run, weights

X = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32)


def einsum(equation: str, shape: tuple[int, ...], swapped: bool = False, rank: int = 3) -> Any:
    operands = "w, x" if swapped else "x, w"
    out = ", ".join(f"d{i}" for i in range(rank))
    return build(
        f'g (float[N, S, 64] x) => (float[{out}] y) {{ [layer] y = Einsum <equation = "{equation}"> ({operands}) }}',
        w=weights(*shape),
    )


CASES = {
    "left": (
        build("g (float[N, 64, S] x) => (float[N, 16, S] y) { [layer] y = MatMul (w, x) }", w=weights(16, 64)),
        {0: PerAxis(0)},
    ),
    "left stack": (
        build("g (float[N, 64, S] x) => (float[3, 16, S] y) { [layer] y = MatMul (w, x) }", w=weights(3, 16, 64)),
        {0: PerBlock(2, 64)},
    ),
    "right stack": (
        build("g (float[N, S, 64] x) => (float[3, S, 48] y) { [layer] y = MatMul (x, w) }", w=weights(3, 64, 48)),
        {1: PerBlock(1, 64)},
    ),
    "projection": (einsum("nsd,de->nse", (64, 48)), {1: PerAxis(1)}),
    "spaces": (einsum(" n s d , d e -> n s e ", (64, 48)), {1: PerAxis(1)}),
    "implicit": (einsum("nsd,de", (64, 48)), {1: PerAxis(1)}),
    "first": (einsum("de,nsd->nse", (64, 48), swapped=True), {0: PerAxis(1)}),
    "experts": (einsum("nsd,kde->nske", (3, 64, 48), rank=4), {1: PerBlock(1, 64)}),
    "two sums": (einsum("nsd,dse->ne", (64, 5, 48), rank=2), {1: PerAxis(2)}),
    "ellipsis": (einsum("...d,de->...e", (64, 48)), {1: PerTensor()}),
}


@pytest.mark.parametrize("preset", ["w8", "w4", "w8a8-dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_what_can_be_unfolded_at_load_is_stored(case: str, preset: str) -> None:
    model, expected = CASES[case]
    x = X.transpose(0, 2, 1).copy() if "left" in case else X
    result = onnxq.quantize(model, preset=preset, benchmark=False, calibration=[{"x": x}] * 3)
    plan = result.plan.nodes["layer"]
    if preset == "w8a8-dynamic" and plan.action == "dynamic":
        return  # a kernel multiplies it
    assert plan.action == "storage"
    assert {position: spec.granularity for position, spec in plan.weights.items()} == expected
    assert result.size_after < 0.5 * result.size_before
    assert result.sqnr_db > 30.0
    data = result.model.SerializeToString()
    assert "DequantizeLinear" not in {node.op_type for node in result.model.graph.node}
    real, found = run(model.SerializeToString(), {"x": x})["y"], run(data, {"x": x})["y"]
    assert found.shape == real.shape
    assert any("int8 weights" in node["how"] for node in inspect_model(io.load(result.model), 0).nodes)


def test_scales_for_each_output_are_more_exact_than_one() -> None:
    model, _ = CASES["experts"]
    results = [
        onnxq.quantize(model, preset="w8", benchmark=False, calibration=[{"x": X}] * 3, per_channel=each)
        for each in (True, False)
    ]
    assert results[0].sqnr_db > results[1].sqnr_db


@pytest.mark.parametrize(
    ("equation", "position", "rank", "axes"),
    [
        ("ab,bc->ac", 1, 2, (0,)), ("ab,bc->ac", 0, 2, (1,)), ("ab,bc", 1, 2, (0,)), ("ab,cb->ac", 1, 2, (1,)),
        ("ab,ab->ab", 1, 2, None), ("aab,bc->ac", 0, 3, None), ("ab,bc->ac", 2, 2, None), ("a...,ab->b...", 1, 2, None),
        ("ab,bc->ac", 1, 3, None),
    ],
)  # fmt: skip
def test_axes_that_are_summed_are_read_off_the_equation(
    equation: str, position: int, rank: int, axes: tuple[int, ...] | None
) -> None:
    model = io.load(einsum("nsd,de->nse", (64, 48)))
    node = next(node for node in model.graph if node.op_type == "Einsum")
    node.attributes["equation"] = ir.AttrString("equation", equation)
    assert contracted_axes(node, position, rank) == axes


def test_constants_alone_small_ones_and_activations_stay_as_they_are() -> None:
    model = build(
        "g (float[8, 8] x, float[64, 64] z) => (float[8, 8] y, float[64, 64] v, float[64, 64] t) {"
        ' [small] y = Einsum <equation = "ab,bc->ac"> (x, a) [both] v = Einsum <equation = "ab,bc->ac"> (z, z)'
        " [left] t = MatMul (b, z) }",
        a=weights(8, 8), b=weights(64, 64),
    )  # fmt: skip
    result = onnxq.quantize(model, preset="w8", benchmark=False)
    plan = result.plan.nodes
    assert plan["left"].action == "storage"
    assert (plan["small"].action, plan["both"].action) == ("float", "float")
    assert plan["small"].reason.startswith("its weight has fewer than 1024 elements")


MIXTURE = """g (float[N, 64] x, int64[N, 2] ids) => (float[N, 2, 1, 48] y) {{
 [experts] w = Gather <axis = {axis}> (all, ids)
 two = Unsqueeze (x, axes)
 [layer] y = MatMul (two, w) }}"""


def mixture(*, width: int = 48, axis: int = 0, dtype: Any = np.float32) -> Any:
    stack = weights(6, 64, width) * np.geomspace(0.1, 9, width, dtype=np.float32)
    return build(MIXTURE.format(axis=axis), all=stack.astype(dtype), axes=np.array([1, 2]))


FEEDS = [
    {
        "x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32),
        "ids": np.random.default_rng(i).integers(0, 6, (4, 2)),
    }
    for i in range(4)
]


@pytest.mark.parametrize(
    ("options", "decibels", "share"),
    [
        ({"preset": "w8"}, 36.0, 0.35), ({"preset": "w4"}, 16.0, 0.25), ({"preset": "w8a8-dynamic"}, 36.0, 0.35),
        ({"preset": "w4", "symmetric": False}, 16.0, 0.25), ({"preset": "w4", "block_size": 16}, 17.0, 0.3),
        ({"preset": "w8", "block_size": 0}, 36.0, 0.35), ({"preset": "w4", "format": "qdq"}, 16.0, 0.25),
    ],
)  # fmt: skip
def test_stacked_weights_of_experts_are_packed(options: dict[str, Any], decibels: float, share: float) -> None:
    model = mixture()
    result = onnxq.quantize(model, benchmark=False, calibration=FEEDS, **options)
    assert result.plan.nodes["experts"].action in ("weight", "dynamic")
    assert result.sqnr_db > decibels
    assert result.size_after < share * result.size_before
    same = onnxq.compare(model, result.model, data=FEEDS)
    assert same.sqnr_db > decibels
    if result.weights:
        (row,) = result.weights
        assert row["elements"] == 6 * 64 * 48
        assert row["error_db"] > decibels


def test_each_matrix_of_a_stack_has_its_own_scales_when_rows_are_gathered_at_inference() -> None:
    result = onnxq.quantize(mixture(), benchmark=False, calibration=FEEDS, preset="w8a8-dynamic")
    assert result.plan.nodes["experts"].weights[0].granularity == PerBlock(1, 64)


@pytest.mark.parametrize("preset", ["w8a8", "w8a8-dynamic", "w8", "w4"])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_a_table_that_is_looked_up_along_another_axis_is_stored_by_slices(preset: str, axis: int) -> None:
    text = (
        "g (float[N, 64] x, int64[2, K] ids) => (float y, float[N, 32] z) {"
        f" [table] y = Gather <axis = {axis}> (all, ids) z = MatMul (x, w) }}"
    )
    model = build(text, all=weights(6, 40, 48), w=weights(64, 32))
    feeds = [{"x": weights(3, 64, seed=i), "ids": np.array([[1, -1, 7], [0, 3, 3]])} for i in range(4)]
    result = onnxq.quantize(model, preset=preset, calibration=feeds, benchmark=False)
    assert result.plan.nodes["table"].weights[0].granularity == PerAxis(axis % 3)
    assert result.model is not None
    assert "table" in {weight["node"] for weight in onnxq.inspect(result.model).weights}
    back = onnxq.dequantize(result.model).model
    assert back is not None
    expected, *others = (run(m.SerializeToString(), feeds[0])["y"] for m in (model, result.model, back))
    for got in others:
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 0.5 / 127 + 1e-6
    np.testing.assert_array_equal(*others)


@pytest.mark.parametrize(("shape", "stored"), [((1, 4096), False), ((1, 1024), False), ((4, 1024), True)])
def test_scales_that_take_more_than_integers_save(shape: tuple[int, int], stored: bool) -> None:
    depth, columns = shape
    text = f"""g (float[N, {depth}] x) => (float[N, 64] y) {{
        [wide] h = MatMul (x, w) a = Tanh (h) [narrow] y = MatMul (a, v) }}"""
    model = build(text, w=weights(*shape), v=weights(columns, 64, seed=1))
    x = np.random.default_rng(0).normal(size=(8, depth)).astype(np.float32)
    result = onnxq.quantize(model, preset="w8", benchmark=False, calibration=[{"x": x}])
    plan = result.plan.nodes["wide"]
    assert plan.action == ("storage" if stored else "float")
    assert stored or plan.reason == "the scales of its weight would take the bytes that storing it as integers saves"
    without = onnxq.quantize(model, preset="w8", benchmark=False, calibration=[{"x": x}], exclude=["wide"])
    assert result.size_after <= without.size_after
