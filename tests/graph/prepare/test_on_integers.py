"""Masks and reciprocals in the forms that engines of integers alone compute rightly."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import on_integers
from onnxq.graph.types import Model
from onnxq.graph.walk import const_array
from tests.graph.build import build, ops, run

LOWEST = np.finfo(np.float32).min
MASKED = """g (float[2, 4, 4] x, bool[2, 4, 4] m) => (float[2, 4, 4] y) {
    [w] a = Where (m, none, low) [s] b = Add (x, a) [p] y = Softmax <axis = -1> (b) }"""


def masked(low: float = LOWEST, text: str = MASKED) -> Model:
    return io.load(build(text, none=np.array(0, np.float32), low=np.array(low, np.float32)))


def constants(model: Model) -> set[float]:
    arrays = [const_array(value) for value in model.graph.initializers.values()]
    return {float(entry) for array in arrays if array is not None for entry in array.reshape(-1)}


@pytest.mark.parametrize("low", [LOWEST, -10000.0])
def test_masks_end_where_a_softmax_gives_zero(low: float) -> None:
    model = masked(low)
    rng = np.random.default_rng(0)
    feed = {"x": rng.normal(size=(2, 4, 4)).astype(np.float32) * 20, "m": rng.random((2, 4, 4)) < 0.6}
    before = outputs(model, feed)
    assert on_integers.run(model) == 1
    assert constants(model) == {0.0, on_integers.NARROW}
    np.testing.assert_array_equal(outputs(model, feed), before)
    assert on_integers.run(model) == 0


def outputs(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(run(io.to_bytes(model), feed)["y"])


def test_a_mask_that_others_read_keeps_its_numbers_for_them() -> None:
    text = MASKED.replace("=> (float[2, 4, 4] y)", "=> (float[2, 4, 4] y, float[2, 4, 4] z)")
    model = masked(text=text.replace("[p]", "[o] z = Add (x, low) [p]"))
    assert on_integers.run(model) == 1
    assert constants(model) == {0.0, on_integers.NARROW, float(LOWEST)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[p] y = Softmax <axis = -1> (b)", "[p] y = Relu (b)"),
        ("=> (float[2, 4, 4] y)", "=> (float[2, 4, 4] y, float[2, 4, 4] b)"),
    ],
)
def test_numbers_that_are_no_mask_stay(old: str, new: str) -> None:
    model = masked(text=MASKED.replace(old, new))
    assert on_integers.run(model) == 0
    assert float(LOWEST) in constants(model)


def test_a_bias_of_logits_is_no_mask() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { a = Add (x, b) y = Softmax (a) }"
    model = io.load(build(text, b=np.array([-20000, 3, 0], np.float32)))
    assert on_integers.run(model) == 0


def test_a_reciprocal_is_a_division_with_its_names() -> None:
    model = io.load(build("g (float[2, 3] x) => (float[2, 3] y) { [r] y = Reciprocal (x) }"))
    feed = {"x": np.array([[0.02, 0.1, 0.2], [1, 3, 9]], np.float32)}
    assert on_integers.run(model) == 1
    assert [(node.op_type, node.name) for node in model.graph] == [("Div", "r")]
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_array_equal(outputs(model, feed), 1 / feed["x"])
    assert on_integers.run(model) == 0


def test_a_reciprocal_in_a_body_stays() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] q) { q = Reciprocal (x) },
            else_branch = e () => (float[2] r) { r = Abs (x) }> }"""
    model = io.load(build(text))
    assert on_integers.run(model) == 0


@pytest.mark.parametrize("integers", [False, True])
def test_only_what_runs_on_integers_alone_is_rewritten(integers: bool) -> None:
    model = io.load(build("g (float[2, 3] x) => (float[2, 3] y) { [r] y = Reciprocal (x) }"))
    prepare(model, integers=integers)
    assert ops(model) == ({"Div": 1} if integers else {"Reciprocal": 1})
