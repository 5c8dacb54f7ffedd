"""Element-wise nodes move in front of what only moves elements, to the layer behind it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared, weights


def test_the_bias_of_a_convolution_over_time_as_tensorflow_writes_it() -> None:
    text = """g (float[N, 3, 1, 9] x) => (float[N, 5, 7] y) {
        c = Conv (x, w) s = Squeeze (c, axes) a = Add (s, b) y = Relu (a) }"""
    constants = {"w": weights(5, 3, 1, 3), "b": weights(1, 5, 1), "axes": np.array([2])}
    model, report = prepared(build(text, opset=13, ir=7, **constants))
    assert ops(model) == Counter({"Conv": 1, "Relu": 1, "Squeeze": 1})
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Squeeze"]
    assert report.changes["hoist"] == 2


def test_a_normalization_written_out_behind_a_transpose() -> None:
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 5] y) {
        c = Conv (x, w) t = Transpose <perm = [0, 2, 3, 1]> (c)
        a = Add (t, p) s = Sub (a, m) k = Mul (s, f) d = Div (k, f) e = Add (d, q) y = Clip (e, low) }"""
    constants = {"w": weights(5, 3, 3, 3), "p": weights(5), "m": weights(1, 1, 1, 5), "q": weights(1)}
    constants |= {"f": weights(5, low=0.5), "low": np.array(-0.5, np.float32)}
    model, report = prepared(build(text, opset=13, ir=7, **constants))
    assert ops(model) == Counter({"Conv": 1, "Clip": 1, "Transpose": 1})
    assert report.changes["hoist"] == 6
    assert report.changes["affine"] == 5


@pytest.mark.parametrize("axes", [[1], [-1]])
def test_unsqueeze(axes: list[int]) -> None:
    bias = weights(1, 1, 5) if axes == [1] else weights(5, 1)
    shape = "float[N, 1, 5]" if axes == [1] else "float[N, 5, 1]"
    text = f"g (float[N, 4] x) => ({shape} y) {{ c = Gemm (x, w) u = Unsqueeze (c, axes) y = Add (u, b) }}"
    model, _ = prepared(build(text, opset=13, ir=7, w=weights(4, 5), b=bias, axes=np.array(axes)))
    assert ops(model) == Counter({"Gemm": 1, "Unsqueeze": 1})


def test_two_movers_and_a_number() -> None:
    text = """g (float[N, 3, 1, 9] x) => (float[N, 7, 5] y) {
        c = Conv (x, w) s = Squeeze (c, axes) t = Transpose <perm = [0, 2, 1]> (s) y = Mul (t, k) }"""
    constants = {"w": weights(5, 3, 1, 3), "k": np.array([0.5], np.float32), "axes": np.array([2])}
    model, _ = prepared(build(text, opset=13, ir=7, **constants))
    assert ops(model) == Counter({"Conv": 1, "Squeeze": 1, "Transpose": 1})


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("t = Transpose <perm = [0, 2, 1]> (x) y = Add (t, b)", {"b": weights(3)}),  # no layer
        ("c = Conv (x, w) t = Transpose <perm = [0, 2, 1]> (c) y = Tanh (t)", {}),
        ("c = Conv (x, w) t = Tanh (c) y = Mul (t, n)", {"n": np.array(0.5, np.float32)}),
        ("c = Conv (x, w) t = Transpose <perm = [0, 2, 1]> (c) u = Add (t, t) y = Relu (u)", {}),
        ("c = Conv (x, w) t = Transpose <perm = [0, 2, 1]> (c) r = Relu (t) y = Mul (r, t)", {}),
        ("c = Conv (x, w) n = Neg (c) t = Transpose <perm = [0, 2, 1]> (n) y = Mul (t, n2)", {"n2": weights(1, 7, 3)}),
    ],
)
def test_what_has_no_layer_behind_or_other_readers_stays(body: str, extra: dict[str, np.ndarray]) -> None:
    constants = ({"w": weights(3, 3, 3)} if "(x, w)" in body else {}) | extra
    text = f"g (float[N, 3, 9] x) => (float[?, ?, ?] y) {{ {body} }}"
    _, report = prepared(build(text, opset=13, ir=7, **constants))
    assert not report.changes["hoist"]


def test_shared_constant_and_body() -> None:
    text = """g (float[2, 3, 9] x, bool k) => (float[2, 7, 5] y) {
        y = If (k) <
            then_branch = t () => (float[2, 7, 5] p) {
                c = Conv (x, w) s = Transpose <perm = [0, 2, 1]> (c) p = Add (s, b) },
            else_branch = e () => (float[2, 7, 5] q) {
                d = Conv (x, w) r = Transpose <perm = [0, 2, 1]> (d) n = Neg (r) q = Add (n, b) }
        >
    }"""
    model, report = prepared(build(text, opset=13, ir=7, w=weights(5, 3, 3), b=weights(5)))
    assert report.changes["hoist"] == 1
    assert "b" in model.graph.initializers
