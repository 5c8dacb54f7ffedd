"""Max and Min with one number are Relu and Clip."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared


def one(number: float, *shape: int) -> np.ndarray:
    return np.full(shape, number, np.float32)


@pytest.mark.parametrize(
    ("node", "number", "expected"),
    [
        ("Max (x, c)", one(0.0), "Relu"),
        ("Max (c, x)", one(0.5, 1), "Clip"),
        ("Min (x, c)", one(6.0, 1, 1), "Clip"),
        ("Max (x, c)", one(-1.0), "Clip"),
    ],
)
def test_one_number(node: str, number: np.ndarray, expected: str) -> None:
    model, report = prepared(build(f"g (float[N, 4] x) => (float[N, 4] y) {{ y = {node} }}", opset=13, ir=7, c=number))
    assert ops(model) == Counter({expected: 1})
    assert report.changes["bounds"] == 1
    assert model.graph[-1].outputs[0].name == "y"


@pytest.mark.parametrize("body", ["a = Max (x, c) y = Min (a, d)", "a = Min (x, d) y = Max (c, a)"])
@pytest.mark.parametrize("low", [0.0, -0.5])
def test_two_bounds_are_one_clip(body: str, low: float) -> None:
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}"
    model, _ = prepared(build(text, opset=13, ir=7, c=one(low), d=one(1.5)))
    assert ops(model) == Counter({"Clip": 1})


@pytest.mark.parametrize(
    ("node", "number"),
    [
        ("Max (x, c)", np.arange(4, dtype=np.float32)),
        ("Max (x, c)", one(0.0, 1, 1, 1)),
        ("Max (x, c, x)", one(0.0)),
        ("Min (x, c)", one(float("nan"))),
    ],
)
def test_what_is_no_bound_stays(node: str, number: np.ndarray) -> None:
    shape = "float[1, N, 4]" if number.ndim == 3 else "float[N, 4]"
    model, report = prepared(build(f"g (float[N, 4] x) => ({shape} y) {{ y = {node} }}", opset=13, ir=7, c=number))
    assert not report.changes["bounds"]
    assert ops(model).total() == 1


def test_bounds_that_let_nothing_through_stay_two() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Max (x, c) y = Min (a, d) }"
    model, _ = prepared(build(text, opset=13, ir=7, c=one(2.0), d=one(1.0)))
    assert ops(model) == Counter({"Clip": 2})


def test_shared_constant_and_body() -> None:
    text = """g (float[2, 4] x, bool k) => (float[2, 4] y) {
        u = Mul (x, c)
        y = If (k) <
            then_branch = t () => (float[2, 4] p) { p = Max (u, c) },
            else_branch = e () => (float[2, 4] q) { q = Identity (u) }
        >
    }"""
    model, report = prepared(build(text, opset=13, ir=7, c=one(0.25)))
    assert report.changes["bounds"] == 1
    assert ops(model)["Clip"] == 1
    assert "c" in model.graph.initializers


def test_integers_stay() -> None:
    text = "g (int64[N, 4] x) => (int64[N, 4] y) { y = Max (x, c) }"
    _, report = prepared(build(text, opset=13, ir=7, c=np.array(0, np.int64)))
    assert not report.changes["bounds"]
