"""Passes that write an operator in the form the runtime is fast at: pools, stacks, Softmax, Transpose, broadcasts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared, weights

AXIS = {"ax": np.array([3])}
NUMBER = np.array([1.5], np.float32)


def in_a_body(node: str, shape: str, result: str) -> str:
    return f"""g ({shape} x, bool k) => ({result} y) {{
        y = If (k) <
            then_branch = t () => ({result} p) {{ p = {node} }},
            else_branch = e () => ({result} q) {{ q = {node} }}
        >
    }}"""


@pytest.mark.parametrize("slopes", [weights(3, 1, 1, low=0.0), np.array([0.25], np.float32)])
def test_max_pool_before_prelu(slopes: np.ndarray) -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, 4, 4] y) {
        p = PRelu (x, s) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p) }"""
    model, report = prepared(build(text, opset=13, ir=7, s=slopes), rtol=0.0)
    assert [node.op_type for node in model.graph] == ["MaxPool", "PRelu"]
    assert report.changes["pool_order"] == 1


@pytest.mark.parametrize("slopes", [weights(3, 1, 1), weights(3, 8, 8, low=0.0)])
def test_slopes_that_fall_or_vary_over_the_image_stay(slopes: np.ndarray) -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, 4, 4] y) {
        p = PRelu (x, s) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p) }"""
    _, report = prepared(build(text, opset=13, ir=7, s=slopes))
    assert not report.changes["pool_order"]


def test_prelu_that_something_else_reads_stays_in_front() -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, 4, 4] y, float[N, 3, 8, 8] p) {
        p = PRelu (x, s) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p) }"""
    _, report = prepared(build(text, opset=13, ir=7, s=weights(3, 1, 1, low=0.0)))
    assert not report.changes["pool_order"]


@pytest.mark.parametrize(("reduce", "direct"), [("ReduceMax", "Max"), ("ReduceMin", "Min"), ("ReduceMean", "Mean")])
def test_a_stack_made_to_be_reduced(reduce: str, direct: str) -> None:
    text = f"""g (float[N, 4, 5] a, float[N, 4, 5] b) => (float[N, 4, 5] y) {{
        p = Unsqueeze (a, ax) q = Unsqueeze (b, ax) s = Concat <axis = -1> (p, q)
        y = {reduce} <axes = [3], keepdims = 0> (s) }}"""
    model, report = prepared(build(text, opset=13, ir=7, **AXIS))
    assert ops(model) == Counter({direct: 1})
    assert report.changes["stacks"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "s = Concat <axis = -1> (p, q) y = ReduceMax <axes = [3], keepdims = 1> (s)",
        "s = Concat <axis = -1> (p, q) y = ReduceMax <axes = [2], keepdims = 0> (s)",
        "s = Concat <axis = -1> (p, q) y = ReduceMax <keepdims = 0> (s)",
        "s = Concat <axis = 2> (p, q) y = ReduceMax <axes = [2], keepdims = 0> (s)",
        "s = Concat <axis = -1> (p, q) r = ReduceMax <axes = [3], keepdims = 1> (s) y = Add (r, s)",
    ],
)
def test_other_reductions_stay(body: str) -> None:
    text = f"""g (float[N, 4, 5] a, float[N, 4, 5] b) => (float y) {{
        p = Unsqueeze (a, ax) q = Unsqueeze (b, ax) {body.replace("y =", "z =")} y = ReduceSum <keepdims = 0> (z) }}"""
    _, report = prepared(build(text, opset=13, ir=7, **AXIS))
    assert not report.changes["stacks"]


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("shape", "axis"), [("2, 16, 4, N", 1), ("16, 3, 2, 64", 0), ("N, 16, 20, 20", -3)])
def test_softmax_far_from_the_last_axis(op_type: str, shape: str, axis: int) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ y = {op_type} <axis = {axis}> (x) }}"
    model, report = prepared(build(text, opset=13, ir=7), rtol=1e-6)
    assert ops(model) == Counter({"Reshape": 2, op_type: 1})
    assert report.changes["softmax_axis"] == 1


@pytest.mark.parametrize(
    ("shape", "axis"),
    [("2, 64, 640", -1), ("2, 64, 640", 1), ("2, 64, 100, 1, 1", 3), ("2, 64, M, N", 1), ("2, 4, 4, 4", 1)],
)
def test_softmax_that_is_fast_small_or_unknown_stays(shape: str, axis: int) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Softmax <axis = {axis}> (x) }}"
    _, report = prepared(build(text, opset=13, ir=7))
    assert not report.changes["softmax_axis"]


def test_softmax_in_a_body() -> None:
    text = in_a_body("Softmax <axis = 1> (x)", "float[2, 16, 4, 64]", "float[2, 16, 4, 64]")
    _, report = prepared(build(text, opset=13, ir=7))
    assert report.changes["softmax_axis"] == 2


def test_a_transpose_around_an_axis_of_one_element() -> None:
    shape, turned = "float[1, 1, N, 128]", "float[1, 128, N, 1]"
    text = f"g ({shape} x) => ({turned} y) {{ y = Transpose <perm = [0, 3, 2, 1]> (x) }}"
    model, report = prepared(build(text, opset=13, ir=7), rtol=0.0)
    assert ops(model) == Counter({"Squeeze": 1, "Transpose": 1, "Unsqueeze": 1})
    assert report.changes["unit_axes"] == 1
    _, report = prepared(build(in_a_body("Transpose <perm = [0, 3, 2, 1]> (x)", shape, turned), opset=13, ir=7))
    assert report.changes["unit_axes"] == 2


def test_the_axis_is_not_put_in_where_it_is_taken_out_again() -> None:
    text = """g (float[1, N, 128] x) => (float[1, N, 128] y) {
        u = Unsqueeze (x, one) t = Transpose <perm = [0, 3, 2, 1]> (u) a = Abs (t)
        b = Transpose <perm = [0, 3, 2, 1]> (a) y = Squeeze (b, one) }"""
    model, _ = prepared(build(text, opset=13, ir=7, one=np.array([1])), rtol=0.0)
    assert ops(model)["Transpose"] == 2
    assert ops(model).total() == 5


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ("1, 64, 8, 8", [0, 2, 3, 1]),
        ("2, 8, 32, 8", [0, 3, 2, 1]),
        ("1, 1, 4, 8", [0, 3, 2, 1]),
        ("1, 1, N, 8", [3, 0, 1, 2]),
    ],
)
def test_transposes_that_are_fast_already_or_cannot_be_stay(shape: str, perm: list[int]) -> None:
    text = f"g (float[{shape}] x) => (float[?, ?, ?, ?] y) {{ y = Transpose <perm = {perm}> (x) }}"
    _, report = prepared(build(text, opset=13, ir=7))
    assert not report.changes["unit_axes"]


@pytest.mark.parametrize(
    ("put", "taken", "left"),
    [
        ([1], [1], {}),
        ([0, 1], [1], {"Unsqueeze": 1}),
        ([1], [1, 2], {"Squeeze": 1}),
        ([1], [0], {"Unsqueeze": 1, "Squeeze": 1}),
    ],
)
def test_axes_put_in_and_taken_out(put: list[int], taken: list[int], left: dict[str, int]) -> None:
    text = (
        "g (float[1, 1, 4] x) => (float y) { u = Unsqueeze (x, p) s = Squeeze (u, t) y = ReduceSum <keepdims = 0> (s) }"
    )
    model, _ = prepared(build(text, opset=13, ir=7, p=np.array(put), t=np.array(taken)))
    assert ops(model) == Counter({"ReduceSum": 1, **left})


@pytest.mark.parametrize("number", [np.array(1.5, np.float32), NUMBER])
def test_one_number_beside_a_last_axis_of_one_element(number: np.ndarray) -> None:
    text = "g (float[N, 5, 1] x) => (float[N, 5, 1] y) { a = Mul (x, n) y = Sub (n, a) }"
    model, report = prepared(build(text, opset=13, ir=7, n=number), rtol=0.0)
    assert report.changes["broadcast"] == 2
    assert all(value.const_value.numpy().shape == (1, 1, 1) for value in model.graph.initializers.values())


def test_a_constant_beside_a_short_last_axis() -> None:
    text = "g (float[N, 5, 2] x) => (float[N, 5, 2] y) { y = Mul (x, n) }"
    model, report = prepared(build(text, opset=13, ir=7, n=weights(1, 5, 1)), rtol=0.0)
    assert report.changes["broadcast"] == 1
    (value,) = model.graph.initializers.values()
    assert value.const_value.numpy().shape == (1, 5, 2)


@pytest.mark.parametrize(
    ("shape", "constant"), [("N, 5, 4", NUMBER), ("N, 5, M", weights(1, 5, 1)), ("N, 5, 2", weights(2))]
)
def test_broadcasts_that_are_fast_or_unknown_stay(shape: str, constant: np.ndarray) -> None:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Mul (x, n) }}"
    _, report = prepared(build(text, opset=13, ir=7, n=constant))
    assert not report.changes["broadcast"]


def test_a_number_that_others_read_in_a_body() -> None:
    text = in_a_body("Mul (x, n)", "float[2, 5, 1]", "float[2, 5, 1]")
    model, report = prepared(build(text, opset=13, ir=7, n=NUMBER))
    assert report.changes["broadcast"] == 2
    assert ops(model)["Mul"] == 2


def test_the_numbers_of_a_norm_stay_single_ones() -> None:
    """Libraries that join norms read epsilon and exponent as scalars."""
    text = """g (float[N, 4, 1] v) => (float[N, 4, 1] y) {
        p = Pow (v, two) a = Add (p, eps) y = Sqrt (a) }"""
    eps, two = np.array(1e-5, np.float32), np.array(2, np.float32)
    model, report = prepared(build(text, opset=13, ir=7, eps=eps, two=two))
    assert not report.changes["broadcast"]
    assert all(not value.shape or value.shape == (1,) for value in model.graph.initializers.values())
