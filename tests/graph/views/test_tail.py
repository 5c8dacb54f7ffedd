"""The part of a model behind a value, also where the file gives no types of inner values."""

from __future__ import annotations

import numpy as np

from onnxq.graph.files import io
from onnxq.graph.views.tail import tail, typed
from onnxq.runtime.session import session_of
from tests.graph.build import build, weights

TEXT = """g (float[N,4] x) => (float y) { s = Shape (x) a = MatMul (x, w) b = Relu (a) [y] y = Reshape (b, s) }"""


def test_values_that_are_no_floats_keep_their_types() -> None:
    model = io.load(build(TEXT, w=weights(4, 4)))
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    cut = tail(typed(model, {"s": np.dtype(np.int64), "a": np.dtype(np.float32)}), "a")
    given = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    (got,) = session_of(cut.model).run({cut.given: given, cut.beside["s"]: np.array([4, 2], np.int64)})
    np.testing.assert_array_equal(got, np.maximum(given, 0).reshape(4, 2))
    assert all(value.type is None for node in model.graph for value in node.outputs)


def test_initializers_that_are_inputs_too_are_gone_where_nothing_reads_them() -> None:
    """Before IR version 4 all of them are, and the runtime refuses one that neither a node nor the inputs name."""
    text = """g (float[N,4] x, float[4,4] w, float[3] idle) => (float[N,4] y) {
        a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }"""
    for version in (3, 8):
        cut = tail(io.load(build(text, opset=9, ir=version, w=weights(4, 4), idle=weights(3))), "b")
        assert [value.name for value in cut.model.graph.inputs if value.name != cut.given] == ["w"]
        given = np.ones((2, 4), np.float32)
        (got,) = session_of(cut.model).run({cut.given: given})
        np.testing.assert_allclose(got, given @ weights(4, 4), rtol=1e-6)
