"""Single numbers, and numbers a channel, right before a layer."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared, weights

TWO, THREE = np.array(2.5, np.float32), np.array([-0.75], np.float32)
LAYERS = {
    "conv": ("float[N,3,9]", "c = Conv (a, w, b)", {"w": weights(5, 3, 3), "b": weights(5)}),
    "gemm": ("float[N,4]", "c = Gemm (a, w, b)", {"w": weights(4, 5), "b": weights(5)}),
    "turned": ("float[N,4]", "c = Gemm <transB = 1> (a, w, b)", {"w": weights(5, 4), "b": weights(5)}),
    "matmul": ("float[N,6,4]", "p = MatMul (a, w) c = Add (p, b)", {"w": weights(4, 5), "b": weights(5)}),
}
ARITHMETIC = ["Mul (x, n)", "Div (x, n)", "Add (n, x)", "Sub (x, n)", "Sub (n, x)"]


def of(kind: str, step: str, number: np.ndarray = TWO) -> object:
    shape, layer, constants = LAYERS[kind]
    text = f"g ({shape} x) => (float[{', '.join('?' * shape.count(',') + '?')}] y) {{ a = {step} {layer} y = Neg (c) }}"
    return build(text, opset=13, ir=7, n=number, **constants)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("step", ARITHMETIC)
def test_a_number_goes_into_the_layer(kind: str, step: str) -> None:
    model, report = prepared(of(kind, step))
    assert report.changes["ahead"] == 1
    assert not {"Mul", "Div", "Sub"} & set(ops(model))
    assert ops(model)["Add"] == (kind == "matmul")


def test_behind_padding_the_factor_goes_and_the_addend_stays() -> None:
    text = """g (float[N, 3, 9] x) => (float[N, 3, 9] y) {
        m = Mul (x, n) a = Add (m, k) y = Conv <group = 3, pads = [1, 1]> (a, w) }"""
    model, report = prepared(build(text, opset=13, ir=7, n=TWO, k=THREE, w=weights(3, 1, 3)))
    assert ops(model) == Counter({"Add": 1, "Conv": 1})
    assert report.changes["ahead"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "a = Add (x, n) y = Conv <pads = [1, 1]> (a, w)",
        "a = Div (n, x) y = Conv <pads = [1, 1]> (a, w)",
        "a = Mul (x, n) c = Conv <pads = [1, 1]> (a, w) y = Add (c, a)",
        "a = Mul (x, n) c = Conv <pads = [1, 1]> (a, w) d = Conv <pads = [1, 1]> (x, w) y = Sub (c, d)",
    ],
)
def test_what_cannot_go_stays(body: str) -> None:
    constants = {"w": weights(3, 3, 3), "n": TWO}
    used = {name: array for name, array in constants.items() if f" {name})" in body or f"({name}," in body}
    _, report = prepared(build(f"g (float[N, 3, 9] x) => (float[N, 3, 9] y) {{ {body} }}", opset=13, ir=7, **used))
    assert not report.changes["ahead"]


def test_an_extreme_factor_stays() -> None:
    _, report = prepared(of("conv", "Mul (x, n)", np.array(1e-20, np.float32)))
    assert not report.changes["ahead"]


def test_shared_number_and_body() -> None:
    text = """g (float[2, 4] x, bool k) => (float[2, 5] y) {
        y = If (k) <
            then_branch = t () => (float[2, 5] p) { a = Mul (x, n) p = Gemm (a, w) },
            else_branch = e () => (float[2, 5] q) { d = Gemm (x, v) r = Tanh (d) q = Mul (r, n) }
        >
    }"""
    model, report = prepared(build(text, opset=13, ir=7, n=TWO, w=weights(4, 5), v=weights(4, 5, seed=3)))
    assert report.changes["ahead"] == 1
    assert "n" in model.graph.initializers


def test_the_half_of_a_gelu_stays() -> None:
    text = """g (float[N, 4] x) => (float[N, 5] y) {
        d = Div (x, root) e = Erf (d) s = Add (e, one) m = Mul (x, s) h = Mul (m, half) y = Gemm (h, w) }"""
    numbers = {"root": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    constants = {name: np.array(number, np.float32) for name, number in numbers.items()}
    _, report = prepared(build(text, opset=13, ir=7, w=weights(4, 5), **constants))
    assert not report.changes["ahead"]


SCALE, SHIFT = np.array([0.5, -2.0, 4.0], np.float32), np.array([1.0, 0.25, -3.0], np.float32)
IMAGE = "g (float[N, 3, 9, 9] x) => (float[?, ?, ?, ?] y) {"


def image(body: str, **constants: np.ndarray) -> object:
    used = {"s": SCALE.reshape(3, 1, 1), "t": SHIFT.reshape(1, 3, 1, 1), **constants}
    used = {name: array for name, array in used.items() if re.search(rf"[( ]{name}[,)]", body)}
    return build(f"{IMAGE} {body} }}", opset=13, ir=7, **used)


@pytest.mark.parametrize("step", ["Mul (x, s)", "Div (x, s)", "Mul (s, x)", "Add (x, t)", "Sub (x, t)", "Sub (t, x)"])
@pytest.mark.parametrize(("group", "w"), [(1, weights(6, 3, 3, 3)), (3, weights(6, 1, 3, 3))])
def test_numbers_by_channel_go_into_a_convolution(step: str, group: int, w: np.ndarray) -> None:
    body = f"a = {step} y = Conv <group = {group}> (a, w, b)"
    model, report = prepared(image(body, w=w, b=weights(6)))
    assert ops(model) == Counter({"Conv": 1})
    assert report.changes["ahead"] == 1


def test_factors_by_channel_go_into_a_transposed_convolution() -> None:
    body = "a = Mul (x, s) y = ConvTranspose <group = 3, pads = [1, 1, 1, 1]> (a, w)"
    model, _ = prepared(image(body, w=weights(3, 2, 3, 3)))
    assert ops(model) == Counter({"ConvTranspose": 1})


@pytest.mark.parametrize(
    "step", ["Sub (x, t) d = Div (a, s)", "Mul (x, s) d = Add (a, t)", "Div (x, s) d = Sub (t, a)"]
)
@pytest.mark.parametrize(("pads", "left"), [("[0, 0, 0, 0]", 0), ("[1, 1, 1, 1]", 1)])
def test_an_image_is_normalized_in_the_first_convolution(step: str, pads: str, left: int) -> None:
    body = f"a = {step} y = Conv <pads = {pads}> (d, w)"
    model, _ = prepared(image(body, w=weights(4, 3, 3, 3)))
    assert ops(model)["Conv"] == 1
    assert sum(ops(model).values()) == 1 + left


def test_in_front_of_a_transpose() -> None:
    text = """g (float[N, 9, 9, 3] x) => (float[N, 4, 7, 7] y) {
        m = Mul (x, n) a = Sub (m, t) d = Div (a, s) i = Transpose <perm = [0, 3, 1, 2]> (d) y = Conv (i, w) }"""
    model, _ = prepared(build(text, opset=13, ir=7, n=THREE, t=SHIFT, s=SCALE, w=weights(4, 3, 3, 3)))
    assert ops(model) == Counter({"Transpose": 1, "Conv": 1})


@pytest.mark.parametrize(
    ("shape", "step", "constant"),
    [
        ("N, 1, 9, 9", "Mul (x, s)", SCALE.reshape(3, 1, 1)),
        ("N, C, 9, 9", "Mul (x, s)", SCALE.reshape(3, 1, 1)),
        ("N, 3, 9, 9", "Mul (x, s)", weights(3, 9, 1)),
        ("N, 3, 9, 9", "Mul (x, s)", weights(9)),
        ("N, 3, 9, 9", "Mul (x, s)", np.array([1, 1, 100], np.float32).reshape(3, 1, 1)),
        ("N, 3, 9, 9", "Mul (x, s)", np.array([1, 1, 0], np.float32).reshape(3, 1, 1)),
        ("3, 9, 9", "Mul (x, s)", weights(2, 3, 1, 1)),
    ],
)
def test_numbers_that_are_not_one_a_channel_stay(shape: str, step: str, constant: np.ndarray) -> None:
    text = f"g (float[{shape}] x) => (float[?, ?, ?, ?] y) {{ a = {step} y = Conv (a, w) }}"
    _, report = prepared(build(text, opset=13, ir=7, s=constant, w=weights(4, 3, 3, 3)), dims=3)
    assert not report.changes["ahead"]


def test_numbers_of_a_layer_of_rows_stay_where_norms_have_them() -> None:
    text = "g (float[N, 4] x) => (float[N, 5] y) { a = Mul (x, s) y = Gemm (a, w) }"
    _, report = prepared(build(text, opset=13, ir=7, s=weights(4, low=0.5), w=weights(4, 5)))
    assert not report.changes["ahead"]


def test_numbers_that_two_nodes_share_and_a_body() -> None:
    text = """g (float[2, 3, 9, 9] x, bool k) => (float[2, 4, 7, 7] y) {
        y = If (k) <
            then_branch = t () => (float[2, 4, 7, 7] p) { a = Mul (x, s) p = Conv (a, w) },
            else_branch = e () => (float[2, 4, 7, 7] q) { c = Conv (x, v) r = Tanh (c) z = Tanh (s) q = Mul (r, one) }
        >
    }"""
    constants = {"s": SCALE.reshape(3, 1, 1), "w": weights(4, 3, 3, 3), "v": weights(4, 3, 3, 3, seed=2), "one": TWO}
    _, report = prepared(build(text, opset=13, ir=7, **constants))
    assert report.changes["ahead"] == 1
