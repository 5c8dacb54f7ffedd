"""Single numbers right before a layer."""

from __future__ import annotations

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
        "a = Mul (x, v) y = Conv <pads = [1, 1]> (a, w)",
        "a = Div (n, x) y = Conv <pads = [1, 1]> (a, w)",
        "a = Mul (x, n) c = Conv <pads = [1, 1]> (a, w) y = Add (c, a)",
        "a = Mul (x, n) c = Conv <pads = [1, 1]> (a, w) d = Conv <pads = [1, 1]> (x, w) y = Sub (c, d)",
    ],
)
def test_what_cannot_go_stays(body: str) -> None:
    constants = {"w": weights(3, 3, 3), "n": TWO, "v": weights(3, 1)}
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
