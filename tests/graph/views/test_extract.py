"""Parts of a model as models of their own, errors added to values, and which outputs are embeddings."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.graph.files import io
from onnxq.graph.reading.embeddings import embedding_outputs
from onnxq.graph.views.extract import extract, signature
from onnxq.graph.views.outputs import with_offsets
from tests.graph.build import build, weights

TEXT = """g (float[N,8] x, float[N,8] z) => (float[N,4] y) {
    [first] a = Gemm (x, w1, b1) [relu] b = Relu (a) [sum] c = Add (b, z) [last] y = MatMul (c, w2) }"""
FEED = {"x": weights(3, 8), "z": weights(3, 8)}


def model() -> object:
    return build(TEXT, w1=weights(8, 8), b1=weights(8), w2=weights(8, 4))


def run(content: bytes, feed: dict[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(outputs, feed)


def test_a_part_computes_what_it_computes_in_the_model() -> None:
    loaded = io.load(model())
    part = extract(loaded, ["first", "relu"], FEED)
    assert part is not None
    assert [value.name for value in part.graph.inputs] == ["x"]
    assert [value.name for value in part.graph.outputs] == ["b"]
    (got,) = run(io.to_bytes(part), {"x": FEED["x"]})
    gemm = FEED["x"] @ weights(8, 8) + weights(8)
    np.testing.assert_allclose(got, np.maximum(gemm, 0), rtol=1e-5, atol=1e-6)
    assert [node.name for node in loaded.graph] == ["first", "relu", "sum", "last"]


def test_a_part_with_two_inputs_and_one_that_is_not_known() -> None:
    loaded = io.load(model())
    part = extract(loaded, ["sum"], {"b": FEED["x"], "z": FEED["z"]})
    assert part is not None
    (got,) = run(io.to_bytes(part), {"b": FEED["x"], "z": FEED["z"]})
    np.testing.assert_array_equal(got, FEED["x"] + FEED["z"])
    assert extract(loaded, ["sum"], {"z": FEED["z"]}) is None


def test_a_node_with_a_body_is_no_part() -> None:
    text = """g (float[4] x, bool c) => (float[4] y) {
        [if] y = If (c) <then_branch = t () => (float[4] p) { p = Relu (x) },
        else_branch = e () => (float[4] q) { q = Abs (x) }> }"""
    assert extract(io.load(build(text)), ["if"], {"c": np.array(True)}) is None


def test_equal_kernels_have_one_signature() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
        [a] p = MatMul (x, w1) [b] q = MatMul (p, w2) [c] y = Gemm <transB = 1> (q, w2) }"""
    nodes = {n.name: n for n in io.load(build(text, w1=weights(8, 8), w2=weights(8, 8) + 1)).graph}
    arrays = {"x": weights(3, 8), "p": weights(3, 8), "q": weights(3, 8)}
    assert signature(nodes["a"], arrays) == signature(nodes["b"], arrays) != signature(nodes["c"], arrays)
    assert signature(nodes["a"], arrays) != signature(nodes["a"], {**arrays, "x": weights(5, 8)})


def test_errors_are_added_where_they_are_asked_for() -> None:
    loaded = io.load(model())
    moved, inputs = with_offsets(loaded, ["a", "y", "unknown"])
    assert set(inputs) == {"a", "y"}
    content, none = io.to_bytes(moved), dict.fromkeys(inputs.values(), np.zeros((), np.float32))
    (plain,) = run(io.to_bytes(loaded), FEED)
    np.testing.assert_array_equal(run(content, {**FEED, **none})[0], plain)
    np.testing.assert_allclose(
        run(content, {**FEED, **none, inputs["y"]: np.full((), 2, np.float32)})[0], plain + 2, rtol=1e-6
    )
    shift = weights(3, 8)
    (got,) = run(content, {**FEED, **none, inputs["a"]: shift})
    gemm = FEED["x"] @ weights(8, 8) + weights(8)
    expected = (np.maximum(gemm + shift, 0) + FEED["z"]) @ weights(8, 4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = MatMul (x, w) y = LayerNormalization (a, g)", True),
        ("a = MatMul (x, w) b = LayerNormalization (a, g) y = Reshape (b, shape)", True),
        ("a = LayerNormalization (x, g) y = MatMul (a, w)", False),
        ("a = MatMul (x, w) y = Add (a, g)", False),
        ("a = MatMul (x, w) y = Softmax (a)", False),
        ("a = MatMul (x, w) n = ReduceL2 <axes = [1]> (a) c = Max (n, tiny) y = Div (a, c)", True),
        ("m = ReduceMean <axes = [1]> (x) d = Sub (x, m) v = Mul (d, d) s = ReduceMean <axes = [1]> (v) "
         "r = Sqrt (s) q = Div (d, r) k = Mul (q, g) y = Add (k, g)", True),
        ("a = MatMul (x, w) y = Tanh (a)", True),
        ("a = LayerNormalization (x, g) b = MatMul (x, w) y = Add (a, b)", False),
    ],
)  # fmt: skip
def test_embeddings_are_what_comes_out_of_a_normalization(body: str, expected: bool) -> None:
    constants = {"w": weights(8, 8), "g": np.ones(8, np.float32), "tiny": np.float32(1e-9).reshape(1)}
    constants["shape"] = np.array([-1, 8], np.int64)
    used = {name: array for name, array in constants.items() if f" {name}" in body or f"({name}" in body}
    proto = build(f"g (float[N,8] x) => (float[N,8] y) {{ {body} }}", **used)
    assert embedding_outputs(io.load(proto)) == (frozenset({"y"}) if expected else frozenset())
