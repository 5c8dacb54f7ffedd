"""Ranges and parameters: shared where elements only move, derived for Concat, exact where a clamp was folded away."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.core.affine import params_from_range, quantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import QParams, TensorSpec
from onnxq.errors import CalibrationError
from onnxq.graph.reading.ops import clamp_bounds
from onnxq.plan import solve as solve_module
from onnxq.plan.decisions import Derived, SharedWith
from onnxq.plan.solve import SHARED_WIDENING, clamps_exactly, solve
from onnxq.stats.statistics import Statistics
from tests.graph.build import build, weights
from tests.plan.planning import Planned, plan_of

UINT8 = TensorSpec(QType.UINT8)


def statistics_of(planned: Planned, ranges: dict[str, tuple[float, float]]) -> Statistics:
    """Statistics with the given extrema; (−1, 1) where none are given."""
    statistics = Statistics()
    for name in planned.plan.calibrated:
        statistics.update(name, np.array(ranges.get(name, (-1.0, 1.0)), np.float32))
    return statistics


def same(a: QParams, b: QParams) -> bool:
    return bool(a.scale.reshape(()) == b.scale.reshape(()) and a.zero_point.reshape(()) == b.zero_point.reshape(()))


def test_values_that_only_move_have_the_parameters_of_where_they_come_from() -> None:
    text = """g (float[N,16,8,8] x) => (float[N,16,16] y) {
        [conv] a = Conv (x, w) [pool] b = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
        [turn] c = Transpose <perm = [0,1,3,2]> (b)
        [flat] d = Reshape (c, shape) [mm] y = MatMul (d, v) }"""
    planned = plan_of(
        build(text, w=weights(16, 16, 1, 1), v=weights(16, 16), shape=np.array([0, 16, 16], np.int64)), include=("*",)
    )
    assert [planned.plan.values[name] for name in "bcd"] == [SharedWith("a"), SharedWith("b"), SharedWith("c")]
    solution = planned.solve()
    values = solution.rewrite.values
    assert all(values[name] is values["a"] for name in "bcd")
    assert set(solution.ranges) == {"x", "a"}


JOIN = """g (float[N,16,4,4] x) => (float[N,M,H,W] y) {{
    [one] a = Conv (x, w1) [two] b = Conv (x, w2) {clamps} [join] c = Concat <axis = 1> ({left}, b)
    [last] y = Conv (c, w3) }}"""


def join(clamps: str = "", left: str = "a", **constants: np.ndarray) -> Planned:
    arrays = {"w1": weights(16, 16, 1, 1), "w2": weights(16, 16, 1, 1, seed=1), "w3": weights(16, 32, 1, 1)}
    proto = build(JOIN.format(clamps=clamps, left=left), **arrays, **constants)
    return plan_of(proto, include=("*",))


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ((-1.0, 1.0), (-1.0, 1.0), True),
        ((-1.0, 1.0), (-1.15, 1.15), True),
        ((-1.0, 1.0), (-1.25, 1.25), False),
        ((0.0, 1.0), (-0.1, 1.0), True),
        ((0.0, 1.0), (-1.0, 0.0), False),
    ],
)
def test_concat_gives_one_range_to_all_where_that_costs_little(
    a: tuple[float, float], b: tuple[float, float], shared: bool
) -> None:
    planned = join()
    assert planned.plan.values["c"] == Derived(("a", "b"), "union")
    solution = planned.solve(statistics_of(planned, {"a": a, "b": b}))
    values = solution.rewrite.values
    assert solution.ranges["c"] == pytest.approx((min(a[0], b[0]), max(a[1], b[1])))
    union = params_from_range(*solution.ranges["c"], UINT8)
    assert same(values["c"], union)
    for name, (low, high) in (("a", a), ("b", b)):
        own = params_from_range(np.float32(low), np.float32(high), UINT8)
        assert same(values[name], union if shared else own)
        assert values[name].scale <= SHARED_WIDENING * own.scale * 1.0001


def test_a_value_that_two_concats_read_has_one_range() -> None:
    text = """g (float[N,16,4,4] x) => (float[N,M,H,W] y) {
        [one] a = Conv (x, w1) [two] b = Conv (x, w2) [three] c = Conv (x, w1b) [j1] d = Concat <axis = 1> (a, b)
        [j2] e = Concat <axis = 1> (b, c) [j3] f = Concat <axis = 1> (d, e, d) [last] y = Conv (f, w3) }"""
    arrays = {"w1": weights(16, 16, 1, 1), "w2": weights(16, 16, 1, 1, seed=1), "w1b": weights(16, 16, 1, 1, seed=2)}
    planned = plan_of(build(text, w3=weights(16, 96, 1, 1), **arrays), include=("*",))
    values = planned.solve(statistics_of(planned, {"a": (-1, 1), "b": (-1.1, 1), "c": (-1, 1.05)})).rewrite.values
    assert all(same(values[name], values["f"]) for name in "abcde")
    assert same(values["f"], params_from_range(np.float32(-1.1), np.float32(1.05), UINT8))
    far = planned.solve(statistics_of(planned, {"a": (-1, 1), "b": (-1, 1), "c": (-3, 3)})).rewrite.values
    assert same(far["a"], far["b"]) and same(far["a"], far["d"])
    assert not same(far["d"], far["e"]) and not same(far["c"], far["b"])


def test_concat_does_not_widen_a_range_that_does_the_work_of_a_clip() -> None:
    bounds = {"lo": np.array(-1, np.float32), "hi": np.array(1, np.float32)}
    planned = join("[clip] r = Clip (a, lo, hi)", left="r", **bounds)
    assert planned.actions["clip"] == "folded"
    wider = planned.solve(statistics_of(planned, {"r": (-1, 1), "b": (-1.1, 1.1)})).rewrite.values
    assert not same(wider["r"], wider["c"]) and clamps_exactly(wider["r"], (-1, 1))
    inside = planned.solve(statistics_of(planned, {"r": (-1, 1), "b": (-0.9, 1.0)})).rewrite.values
    assert same(inside["r"], inside["b"]) and clamps_exactly(inside["r"], (-1, 1))


@given(st.floats(-8, -0.0625, width=32), st.floats(0.0625, 8, width=32), st.floats(0.875, 1.0))
def test_a_clip_that_shares_its_range_is_still_done_exactly(
    clipped: Planned, low: float, high: float, share: float
) -> None:
    set_bounds(clipped, low, high)
    values = clipped.solve(statistics_of(clipped, {"r": (low, high), "b": (low * share, high)})).rewrite.values
    assert same(values["r"], values["b"])
    assert clamps_exactly(values["r"], (low, high))


@pytest.fixture(scope="module")
def clipped() -> Planned:
    """A Concat with a folded Clip among its inputs, whose bounds `set_bounds` changes."""
    return join("[clip] r = Clip (a, lo, hi)", left="r", lo=np.array(-1, np.float32), hi=np.array(1, np.float32))


def set_bounds(planned: Planned, low: float, high: float) -> None:
    for position, bound in ((1, low), (2, high)):
        value = planned.node("clip").inputs[position]
        assert value is not None
        value.const_value = onnx_ir.tensor(np.array(bound, np.float32))


@pytest.mark.parametrize("seen, high", [((0.0, 0.02), 0.02), ((0.0, 1.0), 1.0), ((0.0, 1.5), 1.0)])
def test_an_insisted_softmax_is_calibrated_within_its_bounds(seen: tuple[float, float], high: float) -> None:
    planned = join("[soft] s = Softmax <axis = -1> (a)", left="s")
    values = planned.solve(statistics_of(planned, {"s": seen, "b": (-3.0, 3.0)})).rewrite.values
    assert same(values["s"], params_from_range(0.0, high, UINT8))
    assert same(values["c"], params_from_range(-3.0, 3.0, UINT8))


BOUNDS = {
    "lo": np.array(-1, np.float32),
    "hi": np.array(1, np.float32),
    "six": np.array(6, np.float32),
    "none": np.array(0, np.float32),
}


def folded(clamp: str, **options: object) -> Planned:
    text = "g (float[N,16,4,4] x) => (float[N,16,4,4] y) {{ [a] c = Conv (x, w) [t] r = {} [b] y = Conv (r, w) }}"
    used = {name: array for name, array in BOUNDS.items() if name in clamp}
    return plan_of(build(text.format(clamp), w=weights(16, 16, 1, 1), **used), include=("*",), **options)


@pytest.mark.parametrize(
    ("clamp", "seen", "expected"),
    [
        ("Relu (c)", (0.0, 3.0), (0.0, 3.0)),
        ("Clip (c, , six)", (-2.0, 6.0), (-2.0, 6.0)),
        ("Clip (c, lo, hi)", (-1.0, 1.0), (-1.0, 1.0)),
        ("Clip (c, lo, hi)", (-0.25, 0.5), (-0.25, 0.5)),  # narrower than the bounds: the grid clips even more
        ("Clip (c, lo, none)", (0.0, 0.0), (0.0, 0.0)),  # nothing below zero was seen
        ("Clip (c, lo, six)", (-4.0, 9.0), (-1.0, 6.0)),  # statistics of another clip would not widen it
    ],
)
def test_the_range_of_a_folded_clamp_lies_within_its_bounds(
    clamp: str, seen: tuple[float, float], expected: tuple[float, float]
) -> None:
    planned = folded(clamp)
    solution = planned.solve(statistics_of(planned, {"r": seen}))
    assert solution.ranges["r"] == expected
    assert solution.rewrite.nodes["a"].folds == "t"
    assert clamps_exactly(solution.rewrite.values["r"], clamp_bounds(planned.node("t")))


def test_a_symmetric_grid_does_the_work_of_a_symmetric_clip_and_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = folded("Clip (c, lo, hi)", symmetric=True)
    assert planned.actions["t"] == "folded"
    tries: list[QParams] = []

    def counted(params: QParams, bounds: tuple[float, float]) -> bool:
        tries.append(params)
        return clamps_exactly(params, bounds)

    monkeypatch.setattr(solve_module, "clamps_exactly", counted)
    params = planned.solve(statistics_of(planned, {"r": (-1.0, 1.0)})).rewrite.values["r"]
    assert 0 < len(tries) < 10
    assert clamps_exactly(params, (-1.0, 1.0))
    assert params.zero_point.reshape(()) == 128
    assert float(params.scale.reshape(())) == pytest.approx(1 / 127, rel=5e-3)


@st.composite
def grids(draw: st.DrawFn) -> QParams:
    spec = TensorSpec(draw(st.sampled_from([QType.UINT8, QType.INT8])), symmetric=draw(st.booleans()))
    low = draw(st.floats(-100, 0, width=32))
    high = draw(st.floats(0, 100, width=32).filter(lambda x: x - low > 1e-6))
    return params_from_range(low, high, spec)


@given(grids(), st.data())
def test_saturation_is_the_clamp_if_and_only_if_clamps_exactly_says_so(params: QParams, data: st.DataObject) -> None:
    scale, zero, spec = float(params.scale), int(params.zero_point), params.spec
    # bounds near the ends of the grid, at ties above all, and anywhere
    step = st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0])
    near_low = step.map(lambda d: float(np.float32((spec.qmin - zero + d) * scale)))
    near_high = step.map(lambda d: float(np.float32((spec.qmax - zero + d) * scale)))
    low = data.draw(st.one_of(near_low, st.floats(-200, 0, width=32), st.just(-np.inf)))
    high = data.draw(st.one_of(near_high, st.floats(0, 200, width=32), st.just(np.inf)))
    ends = np.array([spec.qmin, spec.qmax]) - zero
    x = np.concatenate([np.linspace(1.5 * ends[0], 1.5 * ends[1], 999) * scale, [low, high, -1e30, 1e30]])
    x = x.astype(np.float32)
    clamped = np.minimum(np.maximum(x, np.float32(low)), np.float32(high))
    equal = np.array_equal(quantize(clamped, params), quantize(x, params))
    assert clamps_exactly(params, (low, high)) == equal


@given(st.floats(-50, 0, width=32), st.floats(0.0625, 50, width=32))
def test_any_bounds_are_kept_exactly(clipped: Planned, low: float, high: float) -> None:
    set_bounds(clipped, low, high)
    statistics = statistics_of(clipped, {"r": (2 * low - 1, 2 * high), "b": (-999, 999)})
    params = clipped.solve(statistics).rewrite.values["r"]
    assert clamps_exactly(params, (low, high))
    plain = params_from_range(np.float32(low), np.float32(high), UINT8)
    assert float(params.scale.reshape(())) == pytest.approx(float(plain.scale), rel=1e-4)


def test_a_value_without_statistics_is_an_error() -> None:
    planned = folded("Relu (c)")
    statistics = Statistics()
    statistics.update("x", np.ones(3, np.float32))
    message = "value 'r': the statistics do not have it; run onnxq calibrate on this very model"
    with pytest.raises(CalibrationError, match=message):
        planned.solve(statistics)
    with pytest.raises(CalibrationError, match="value 'x': the statistics do not have it"):
        solve(planned.model, planned.plan, None)


def test_solving_changes_neither_model_nor_plan_and_gives_the_same_twice() -> None:
    planned = folded("Relu (c)")
    statistics = planned.statistics()
    before = [array.const_value.numpy().copy() for array in planned.model.graph.initializers.values()]
    first, second = planned.solve(statistics), planned.solve(statistics)
    assert first.ranges == second.ranges
    assert all(same(first.rewrite.values[n], second.rewrite.values[n]) for n in first.rewrite.values)
    for old, value in zip(before, planned.model.graph.initializers.values(), strict=True):
        assert np.array_equal(old, value.const_value.numpy())
